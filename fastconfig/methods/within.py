"""The group of parameters that a call merges, for what keeps something of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[str | None] = ContextVar("fastconfig.group", default=None)


@contextmanager
def within(name: str) -> Iterator[None]:
    """Within it, operators with a state use that of a group, and monitors are told of it."""
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def group_name() -> str | None:
    """Of the group that the call around is within; None if there is one Gram matrix for all parameters."""
    return _current.get()


def state_name(name: str) -> str:
    """What a part of the state is called: in a group, after it."""
    group = _current.get()
    return name if group is None else f"groups.{group}.{name}"
