"""Helpers shared by the commands of ``python -m jaxrl.analysis``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from jaxrl.errors import UsageError

PICTURE = "comparison.png"


class Parser(argparse.ArgumentParser):
    """A parser that reports usage errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see --help")


def picture(out: str | None) -> str:
    """Return the output path of a figure; an existing file is only replaced if named explicitly."""
    if out is None and Path(PICTURE).exists():
        raise UsageError(f"{PICTURE} exists; to replace it or name another, give --out {PICTURE}")
    return PICTURE if out is None else out
