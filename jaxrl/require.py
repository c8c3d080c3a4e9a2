"""Checks of single values: a UsageError names the option, the value, and values that work."""

from __future__ import annotations

import math
from typing import Any, TypeGuard, get_args

import jax
import numpy as np

from jaxrl.errors import UsageError, nearest

INT32_MAX = 2**31 - 1  # the upper limit for int32 counts


def plain(value: Any) -> Any:
    """Convert a numpy or JAX value to Python's own bool, int, float, str or tuple.

    Lists become tuples, recursively. Values without such a form, including traced values, are
    returned unchanged.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array) and _has_items(value):
        value = value.tolist()
    if type(value) in (tuple, list):
        return tuple(map(plain, value))
    return str(value) if isinstance(value, str) else value


def _has_items(value: Any) -> bool:
    """Whether an array holds numbers or strings, not keys."""
    return isinstance(value, np.ndarray | np.generic) or not jax.dtypes.issubdtype(
        value.dtype, jax.dtypes.extended
    )


def is_integer(value: Any) -> bool:
    """Whether ``value`` is a Python, numpy or JAX integer, and not a bool."""
    value = plain(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a real Python, numpy or JAX number, and not a bool."""
    value = plain(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def require(
    name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Raise UsageError unless ``low <= value <= high`` (``low <`` if ``above``) and finite.

    None, traced values and traced bounds pass.
    """
    if value is None or isinstance(value, jax.core.Tracer) or isinstance(low, jax.core.Tracer):
        return
    if not is_number(value):
        raise UsageError(f"{name} is {shown(value)}; it must be a number")
    number = plain(value)
    fits = (low < number if above else low <= number) and number <= high
    if fits and not math.isinf(number):
        return
    bounds = f"more than {low:g}" if above else f"at least {low:g}"
    bounds = "" if low == -math.inf else bounds
    upper = "finite" if high == math.inf else f"at most {high:.10g}"
    if high == math.inf and not math.isinf(number) and bounds:
        upper = ""
    text = " and ".join(filter(None, (bounds, upper)))
    raise UsageError(f"{name} is {number:.10g}; it must be {text}")


def require_integer(
    name: str, value: Any, low: float = 1, high: float = math.inf, *, optional: bool = False
) -> None:
    """Raise UsageError unless ``value`` is an integer in ``[low, high]``.

    None passes if it is ``optional``.
    """
    if value is None and optional:
        return
    if not is_integer(value):
        raise UsageError(f"{name} is {shown(value)}; it must be an integer")
    if plain(value) > high:
        raise UsageError(f"{name} is {plain(value)}; it must be at most {high}")
    require(name, value, low)


def require_instance(name: str, value: Any) -> None:
    """Raise UsageError if ``value`` is a class instead of an instance of it."""
    if isinstance(value, type):
        kind = value.__name__
        raise UsageError(f"{name} is the class {kind}; give an instance, as {kind}()")


def shown(value: Any) -> str:
    """Return ``repr(value)`` on one line."""
    return " ".join(repr(value).split())


def require_choice(name: str, value: Any, literal: Any) -> None:
    """Raise UsageError unless ``value`` is one of the strings of a ``Literal``."""
    if not isinstance(value, str) or value not in get_args(literal):
        raise UsageError(f"{name} is {shown(value)}; {nearest(str(value), get_args(literal))}")
