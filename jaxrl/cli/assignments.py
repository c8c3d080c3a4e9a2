"""Parsing words such as ``backend=mjx`` or ``gamma=0.9,0.99`` into values by name."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from jaxrl.errors import UsageError


def assignments(words: Sequence[str], option: str, example: str = "backend=mjx") -> dict[str, Any]:
    """Parse ``["backend=mjx", "max_steps=500"]``; values are Python literals or text.

    Raises:
        UsageError: for a word without "=", or a name that is given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UsageError(f"{option} {word!r} is not NAME=VALUE, as {example}")
        if name in found:
            raise UsageError(f"{option} {name} is given twice; once is enough, as {example}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):  # TypeError: for {[]: 1}, with a list as key
            found[name] = value
    return found


def swept(words: Sequence[str]) -> dict[str, tuple[float, ...]] | None:
    """Parse ``["gamma=0.9,0.99"]`` into the values to sweep.

    Raises:
        UsageError: for values that are not numbers.
    """
    sweep = {}
    for name, value in assignments(words, "sweep", "gamma=0.9,0.99").items():
        values = value if isinstance(value, tuple) else (value,)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not (values and numbers):
            raise UsageError(f"sweep {name}={value} is not a list of numbers, as gamma=0.9,0.99")
        sweep[name] = tuple(float(v) for v in values)
    return sweep or None
