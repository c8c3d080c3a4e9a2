"""Sample efficiency: learning curves, their bands, area, and steps to a threshold.

A bootstrap sample draws the seeds once and keeps their whole curves. Resampling seeds at every step
would give the same band, but far too narrow intervals for areas and steps to a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxrl.analysis.aggregate import (
    CONFIDENCE,
    RESAMPLES,
    Array,
    Statistic,
    aggregate_iqm,
    as_tasks,
    bootstrap,
    interval,
)
from jaxrl.analysis.load import Curve
from jaxrl.errors import UsageError

Curves = Mapping[str, ArrayLike] | Sequence[ArrayLike]


def common_steps(curves: Sequence[Curve]) -> NDArray[np.int64]:
    """Return the union of the curves' steps ``[T]`` within the range all cover, with both ends.

    A curve is linear between its own steps, so these steps describe it completely.

    Raises:
        UsageError: if the curves share no steps.
    """
    low = max(curve.steps[0] for curve in curves)
    high = min(curve.steps[-1] for curve in curves)
    inside = [c.steps[(c.steps >= low) & (c.steps <= high)] for c in curves]
    if low > high:
        raise UsageError(f"curves share no steps: one begins at {low}, another ends at {high}")
    return np.unique(np.concatenate(inside))


def at_steps(curve: Curve, steps: NDArray[Any]) -> Array:
    """Return a curve's returns ``[len(steps), seeds]``, linear between its own steps."""
    columns = [np.interp(steps, curve.steps, seed) for seed in curve.returns.T]
    return np.stack(columns, axis=-1)


def curve_ci(
    curves: Curves,
    statistic: Statistic = aggregate_iqm,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Array, Array, Array]:
    """Return a statistic of learning curves and its pointwise bootstrap band: three ``[T]``.

    ``curves`` has each task's returns ``[T, n_i]``, all at the same steps.

    Raises:
        UsageError: for curves that are not finite or have different lengths.
    """
    parts = curves.values() if isinstance(curves, Mapping) else curves
    tasks = [np.asarray(part, np.float64) for part in parts]
    if any(task.ndim != 2 or task.shape[0] != tasks[0].shape[0] for task in tasks):
        shapes = ", ".join(str(task.shape) for task in tasks)
        raise UsageError(f"curves have the shapes {shapes}; give [T, seeds] of every task, one T")
    low, high = interval(bootstrap(tasks, statistic, resamples, seed), confidence)
    return statistic(as_tasks(tasks)), low, high


def area_under_curve(steps: ArrayLike, returns: ArrayLike) -> Array:
    """Return each seed's area under its curve over the steps covered: its mean return ``[n]``.

    Args:
        steps: ``[T]``, increasing.
        returns: ``[T, n]``; linear between steps (the trapezoidal rule).

    Raises:
        UsageError: if the steps do not increase, or do not match the returns.
    """
    x, y = _curve(steps, returns)
    return y[0] if len(x) == 1 else np.trapezoid(y, x, axis=0) / (x[-1] - x[0])


def steps_to_threshold(steps: ArrayLike, returns: ArrayLike, threshold: float) -> Array:
    """Return each seed's steps at its first evaluation of at least ``threshold``: ``[n]``.

    Infinite for a seed that never reaches it. So the median over seeds is correct as long as half
    of them reach it; a mean over only those seeds would be biased.

    Raises:
        UsageError: as in ``area_under_curve``.
    """
    x, y = _curve(steps, returns)
    reached = y >= threshold
    return np.where(reached.any(axis=0), x[np.argmax(reached, axis=0)], np.inf)


def _curve(steps: ArrayLike, returns: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(steps, np.float64), np.asarray(returns, np.float64)
    if x.ndim != 1 or not x.size or y.ndim != 2 or len(x) != len(y) or (np.diff(x) <= 0).any():
        raise UsageError(
            f"a curve has steps {x.shape} and returns {y.shape}; give [T], increasing, and [T, n]"
        )
    return x, y
