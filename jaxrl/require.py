"""Checks of single values: a UsageError names the option, the value, and values that work."""

from __future__ import annotations

import math
from typing import Any, get_args

import jax
import numpy as np

from jaxrl.errors import UsageError, nearest


def require(
    name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Raise UsageError unless ``low <= value <= high`` (``low <`` if ``above``) and finite.

    None and tracers pass.
    """
    if value is None or isinstance(value, jax.core.Tracer):
        return
    try:
        given = np.atleast_1d(np.asarray(value, float)).tolist()
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; it must be a number") from None
    for number in given:
        fits = (low < number if above else low <= number) and number <= high
        if not fits or math.isinf(number):
            bounds = f"more than {low:g}" if above else f"at least {low:g}"
            bounds = "" if low == -math.inf else bounds
            upper = "finite" if high == math.inf else f"at most {high:.10g}"
            if high == math.inf and not math.isinf(number) and bounds:
                upper = ""
            text = " and ".join(filter(None, (bounds, upper)))
            raise UsageError(f"{name} is {number:.10g}; it must be {text}")


def require_choice(name: str, value: Any, literal: Any) -> None:
    """Raise UsageError unless ``value`` is one of the strings of a ``Literal``."""
    if value not in get_args(literal):
        raise UsageError(f"{name} is {value!r}; {nearest(str(value), get_args(literal))}")
