from array import array
from typing import Any

from .gradients import Update

device_type: str
most: int
few: int

def attach(exchange: object, current: object | None) -> None: ...
def device(index: int) -> tuple[int, int, int, bool]: ...
def merge_into(
    rows: list[Any],
    parameters: list[Any],
    types: tuple[type, ...],
    rule: int,
    cutoffs: tuple[float, ...],
    scratch: dict[tuple[int, int], Any],
) -> list[Any] | None: ...
def momentum(
    state: array[int],
    given: array[int],
    k: int,
    m: int,
    kind: int,
    given_kind: int,
    parts: int,
    update: int,
    device: int,
    stream: int,
    memory: int,
    size: int,
    rule: int,
    steps: int,
    decayed: int,
    rcond: float,
    beta_1: float,
    beta_2: float,
) -> int: ...
def options(one_launch: bool, overlapped: bool) -> None: ...
def problem() -> str | None: ...
def run(
    rows: Any,
    out: Update | None,
    steps: int,
    device: int,
    stream: int,
    memory: int,
    size: int,
    rule: int,
    gram: int,
    c: int,
    rcond: float,
) -> int: ...
def solve(
    gram: int,
    c: int,
    m: int,
    problems: int,
    device: int,
    stream: int,
    memory: int,
    size: int,
    rule: int,
    rcond: float,
) -> int: ...
def update(
    grads: Any,
    types: tuple[type, ...],
    rule: int,
    cutoffs: tuple[float, ...],
    scratch: dict[tuple[int, int], Any],
) -> Any | None: ...
