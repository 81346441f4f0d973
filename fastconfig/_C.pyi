from collections.abc import Sequence
from typing import Any

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
        parameters: Sequence[float],
        state: int = 0,
        state_step: int = 0,
    ) -> None: ...
    @property
    def address(self) -> int: ...

METHODS: tuple[str, ...]
HEAVY: frozenset[str]  # those that have a launch of their own on a GPU
coefficients_address: int

def coefficients(gram: int, c: int, batch: int, m: int, rule: Rule, rcond: float) -> None: ...
def attach(capsule: Any, /) -> None: ...
def describe(tensor: Any, types: tuple[type, ...], /) -> tuple[int, int, int, int, int] | None: ...
def scan(rows: list[Any], types: tuple[type, ...], /) -> tuple[int, int, list[Any] | None, int] | None: ...
def run(
    run: int,
    steps: int,
    table: int,
    problems: int,
    segments: int,
    m: int,
    gram: int,
    c: int,
    rule: int,
    size: int,
    threads: int,
    team: int,
    gram_body: int,
    combine_body: int,
    rcond: float,
    /,
) -> None: ...
def run_plain(
    run: int,
    steps: int,
    rows: list[Any],
    out: Any,
    gram: int,
    c: int,
    rule: int,
    size: int,
    threads: int,
    team: int,
    gram_body: int,
    combine_body: int,
    rcond: float,
    /,
) -> None: ...
def run_groups(
    run: int,
    rows: Any,
    out: Any,
    places: list[list[int]],
    rules: list[int],
    size: int,
    threads: int,
    enough: int,
    team: int,
    gram_body: int,
    combine_body: int,
    rcond: float,
    /,
) -> None: ...
def keep_kernels(
    kind: int,
    empty_like: Any,
    threads_for: Any,
    run: int,
    team: int,
    gram_body: int,
    combine_body: int,
    size: int,
    alone: int,
    most: int,
    /,
) -> None: ...
def new_results(like: Any, shapes: list[Any], most: int, /) -> list[Any] | None: ...
def short_update(
    grads: Any, types: tuple[type, ...], rule: int, cutoffs: tuple[float, ...], ring: int, /
) -> Any | None: ...
def keep_step_kernels(
    kind: int,
    given: int,
    empty_like: Any,
    threads_for: Any,
    run: int,
    team: int,
    accumulate_body: int,
    rescale_body: int,
    size: int,
    alone: int,
    most: int,
    /,
) -> None: ...
def short_step(
    vectors: list[Any],
    gram: Any,
    clock: Any,
    indexes: Any,
    grads: Any,
    types: tuple[type, ...],
    rule: int,
    cutoffs: tuple[float, ...],
    ring: int,
    /,
) -> Any | None: ...
def merge_into(
    rows: list[Any],
    parameters: list[Any],
    types: tuple[type, ...],
    rule: int,
    cutoffs: tuple[float, ...],
    ring: int,
    /,
) -> list[Any] | None: ...
def parameters(module: Any, walker: Any, /) -> list[Any] | None: ...
def leaves(tensors: list[Any], types: tuple[type, ...], /) -> list[Any] | None: ...
def join(
    tensors: list[Any],
    gradients: bool,
    all: bool,
    types: tuple[type, ...],
    most: int,
    /,
) -> Any | None: ...
def spread(
    vector: Any, parameters: list[Any], all: bool, types: tuple[type, ...], most: int, /
) -> list[Any] | None: ...
