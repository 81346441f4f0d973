"""The group of parameters that a call merges, for what keeps something of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[str | None] = ContextVar("fastconfig.group", default=None)


@contextmanager
def within(name: str) -> Iterator[None]:
    """Merge a group in this block: operators use its state, and monitors its name."""
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def group_name() -> str | None:
    """The name of the group that is being merged; None if all parameters are merged together."""
    return _current.get()


def state_name(name: str) -> str:
    """The name of a part of the state; within a group, the group's name comes first."""
    group = _current.get()
    return name if group is None else f"groups.{group}.{name}"
