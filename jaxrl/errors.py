"""Errors that a user can mend: one line that names the option, the value and a value that works."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Wrong input. Scripts print its one line and exit with code 2."""


class RunError(RuntimeError):
    """A run that cannot go on. Scripts print its one line and exit with code 1."""


def nearest(name: str, choices: Iterable[str], most: int = 3) -> str:
    """``"did you mean a, b?"`` for the choices nearest to ``name``; all if none is near."""
    known = sorted(choices)
    lowered = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=most, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(lowered[match] for match in near)}?"
    return f"choose one of {', '.join(known)}"


class Interrupted(RunError):
    """A signal ended the run after its chunk, with a checkpoint. Scripts exit with 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
