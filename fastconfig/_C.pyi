class Rule:
    def __init__(
        self,
        *,
        method: int,
        length: int,
        track_id: int,
        mean: bool,
        weights: int,
        weights_step: int,
        order: int,
        order_step: int,
    ) -> None: ...
    @property
    def address(self) -> int: ...

coefficients_address: int

def coefficients(gram: int, c: int, batch: int, m: int, rule: Rule, rcond: float) -> None: ...
