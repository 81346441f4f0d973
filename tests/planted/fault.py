"""What a planted fault is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """An edit of one file that breaks one thing.

    Attributes:
        name: short, of all faults different.
        file: from the root of the repository.
        old: exact text that occurs once in the file.
        new: what takes its place.
        breaks: what is wrong then, in a few words.
        tests: files in tests/, or tests in them (``test_x.py::test_name``), that are tried first.
        argument: why no test finds it, and why that is right; empty for all that must be found.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]
    argument: str = ""
