"""Hyper-parameter values that a sweep tries: lists and ranges, as grids or random draws.

Grids, draws and perturbations of a range use its scale: ``linear``; ``log``, for learning rates; or
``log1m``, the logarithm of one minus the value, for discounts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UsageError
from jaxrl.require import is_number, plain, require_choice, require_integer, shown
from jaxrl.types import Array, Key

Scale = Literal["linear", "log", "log1m"]
# A scale's function and its inverse, with numpy or jax.numpy.
SCALES: dict[str, tuple[Callable, Callable]] = {
    "linear": (lambda np, x: x, lambda np, x: x),
    "log": (lambda np, x: np.log(x), lambda np, x: np.exp(x)),
    "log1m": (lambda np, x: np.log1p(-x), lambda np, x: -np.expm1(x)),
}
EXAMPLES = {"linear": "linear:0,0.02", "log": "log:1e-4,1e-2", "log1m": "log1m:0.9,0.999"}
DIGITS = 5  # significant digits of values between a range's ends, so that they are easy to type


@dataclasses.dataclass(frozen=True)
class Values:
    """A list of numbers: tried one by one in a grid, and drawn with equal probability."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        given = plain(self.values)
        if not isinstance(given, tuple) or not given or not all(map(is_number, given)):
            raise UsageError(f"values are {shown(given)}; give numbers, as 0.9,0.99")
        object.__setattr__(self, "values", tuple(map(float, given)))

    def grid(self) -> list[float]:
        """Return the values as they were given."""
        return list(self.values)

    def draw(self, rng: np.random.Generator, count: int) -> list[float]:
        """Return ``count`` random values."""
        return [self.values[i] for i in rng.integers(0, len(self.values), count)]

    def __contains__(self, value: float) -> bool:
        return value in self.values

    def resample(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Return random values of ``shape``."""
        values = jnp.array(self.values, jnp.float32)
        return values[jax.random.randint(key, shape, 0, len(self.values))]

    def perturb(self, value: Array, factor: Array) -> Array:
        """Return neighbours: the next larger value if ``factor`` is above 1, else the smaller."""
        values = jnp.array(sorted(self.values), jnp.float32)
        nearest = jnp.argmin(jnp.abs(values - value[..., None]), axis=-1)
        moved = nearest + jnp.sign(jnp.log(factor)).astype(jnp.int32)
        return jnp.where(factor == 1.0, value, values[jnp.clip(moved, 0, len(values) - 1)])


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high`` on a ``scale``; ``count`` of them in a grid.

    Raises:
        UsageError: for bounds that do not form an interval on the scale.
    """

    low: float
    high: float
    scale: Scale = "linear"
    count: int | None = None

    def __post_init__(self) -> None:
        require_choice("scale", self.scale, Scale)
        require_integer("the number of values", self.count, 2, optional=True)
        ends = plain(self.low), plain(self.high)
        inside = {"linear": (-math.inf, math.inf), "log": (0, math.inf), "log1m": (-math.inf, 1)}
        least, most = inside[self.scale]
        if not (all(map(is_number, ends)) and least < ends[0] < ends[1] < most):
            bounds = {"linear": "", "log": "0 < ", "log1m": ""}[self.scale] + "low < high"
            bounds += " < 1" if self.scale == "log1m" else ""
            raise UsageError(
                f"{self.scale} range {shown(ends[0])} to {shown(ends[1])}: it needs {bounds}, "
                f"both finite, as {EXAMPLES[self.scale]}"
            )
        for name, end in zip(("low", "high"), ends, strict=True):
            object.__setattr__(self, name, float(end))

    def grid(self) -> list[float]:
        """Return ``count`` values, evenly spaced on the scale, from ``low`` to ``high``."""
        if self.count is None:
            example = f"{EXAMPLES[self.scale]},8"
            raise UsageError(
                f"{self.scale}:{self.low:g},{self.high:g} has no number of values, which a grid "
                f"needs; give one, as {example}"
            )
        low, high = self._forward(np.array([self.low, self.high]))
        return [self.low, *self._typed(np.linspace(low, high, self.count)[1:-1]), self.high]

    def draw(self, rng: np.random.Generator, count: int) -> list[float]:
        """Return ``count`` random values, uniform on the scale."""
        low, high = self._forward(np.array([self.low, self.high]))
        return self._typed(low + (high - low) * rng.uniform(size=count))

    def __contains__(self, value: float) -> bool:
        return self.low - 1e-6 * abs(self.low) <= value <= self.high + 1e-6 * abs(self.high)

    def resample(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Return random values of ``shape``, uniform on the scale."""
        low, high = self._forward(np.array([self.low, self.high]))
        drawn = low + (high - low) * jax.random.uniform(key, shape)
        return self._clipped(SCALES[self.scale][1](jnp, drawn))

    def perturb(self, value: Array, factor: Array) -> Array:
        """Return ``value`` times ``factor``, or 1 - (1 - value) factor on ``log1m``, clipped."""
        moved = 1.0 - (1.0 - value) * factor if self.scale == "log1m" else value * factor
        return jnp.where(factor == 1.0, value, self._clipped(moved))

    def _forward(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(SCALES[self.scale][0](np, x))

    def _clipped(self, x: Array) -> Array:
        return jnp.clip(x, jnp.float32(self.low), jnp.float32(self.high))

    def _typed(self, positions: np.ndarray) -> list[float]:
        """Return the values at positions on the scale, rounded so that they are easy to type."""
        values = SCALES[self.scale][1](np, positions).tolist()
        if self.scale == "log1m":
            rounded = [round(1.0 - _rounded(1.0 - x), 12) for x in values]
        else:
            rounded = [_rounded(x) for x in values]
        return [min(max(x, self.low), self.high) for x in rounded]


Space = Values | Range


def spaces_of(argument: str, given: Any) -> dict[str, Space]:
    """Return spaces by name; lists of numbers become ``Values``.

    Raises:
        UsageError: for anything else.
    """
    if not isinstance(given, Mapping):
        raise UsageError(f"{argument} is {shown(given)}; give a dictionary, as {{'gamma': [0.9]}}")
    return {name: _space(argument, name, each) for name, each in given.items()}


def _space(argument: str, name: str, given: Any) -> Space:
    if isinstance(given, Space):
        return given
    try:
        return Values(given)
    except UsageError:
        raise UsageError(
            f"{argument} has {name}={shown(given)}; give numbers, as [0.9, 0.99], or a Range"
        ) from None


def _rounded(x: float) -> float:
    return float(f"{x:.{DIGITS}g}")


def grid(spaces: Mapping[str, Space]) -> list[dict[str, float]]:
    """Return all combinations of the spaces' values; the last name varies fastest.

    Raises:
        UsageError: for a range without a ``count``.
    """
    values = [space.grid() for space in spaces.values()]
    return [dict(zip(spaces, each, strict=True)) for each in itertools.product(*values)]


def draw(spaces: Mapping[str, Space], count: int, seed: int = 0) -> list[dict[str, float]]:
    """Return ``count`` random configurations; equal seeds give equal draws.

    Raises:
        UsageError: for a count below 1.
    """
    require_integer("the number of random configurations", count)
    rng = np.random.default_rng(seed)
    columns: list[Any] = [space.draw(rng, count) for space in spaces.values()]
    return [dict(zip(spaces, each, strict=True)) for each in zip(*columns, strict=True)]
