"""A check of the doctor, and its result. This module does not depend on any particular check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Result:
    """The result of one check, as `--json` prints it.

    found: what the check found, in one line. remedy: one line, if possible a command. remedy is None if the status is
    not `wrong`.
    """

    name: str
    status: Status
    found: str
    remedy: str | None = None


@dataclass(frozen=True)
class Check:
    """One check.

    examine: a function that performs the check. If there is no problem, the function returns either a complete
    `Result`, or only the text for `Result.found`. If there is a problem, the function raises `ProblemError` or any
    other exception. remedy: the remedy that is printed for a problem, unless the `ProblemError` contains another
    remedy. cuda: True if the check matters only on machines that serve with CUDA.
    """

    name: str
    examine: Callable[[], Result | str]
    remedy: str
    cuda: bool = False


class ProblemError(Exception):
    """A check found a problem. If `remedy` is given, it replaces the remedy of the check."""

    def __init__(self, found: str, remedy: str | None = None) -> None:
        super().__init__(found)
        self.remedy = remedy


def first_line(text: str) -> str:
    """Return the first line of `text` that is not blank. If all lines are blank, return 'no reason given'."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")


def dotted(version: tuple[int, ...]) -> str:
    """Format a version with dots: 13.0.1."""
    return ".".join(map(str, version))
