"""Errors a user can fix: one line names the option, the value and a value that works."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Invalid input. Scripts print its one line and exit with code 2."""


class RunError(RuntimeError):
    """A run that cannot continue. Scripts print its one line and exit with code 1."""


def nearest(name: str, choices: Iterable[str], most: int = 3) -> str:
    """``"did you mean a, b?"`` with the choices closest to ``name``; all if none is close."""
    known = sorted(choices)
    lowered = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=most, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(lowered[match] for match in near)}?"
    return f"choose one of {', '.join(known)}"


class Interrupted(RunError):
    """A signal ended the run after a chunk and a checkpoint. Scripts exit with 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
