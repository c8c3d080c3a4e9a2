"""Statistics of a few seeds: interquartile means and bootstrap intervals.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxrl.errors import UsageError

Array = NDArray[np.float64]
_BLOCK = 2**23  # scores that are resampled at once


def iqm(x: ArrayLike, axis: int = -1) -> Any:
    """Return the interquartile mean of scores ``[..., n]``.

    ``floor(n / 4)`` scores are trimmed at each end, as ``scipy.stats.trim_mean(x, 0.25)`` does; for
    one to three scores it is the mean. NaN among the scores gives NaN.

    Raises:
        UsageError: if there is no score.
    """
    scores = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    n = scores.shape[-1]
    if n == 0:
        raise UsageError("iqm needs at least one score")
    # NaN sorts to the end, where it would be trimmed silently.
    missing = np.isnan(scores).any(axis=-1)
    middle = np.sort(scores, axis=-1)[..., n // 4 : n - n // 4].mean(axis=-1)
    return np.where(missing, np.nan, middle)[()]


def bootstrap_ci(
    per_task_scores: Mapping[str, ArrayLike] | Sequence[ArrayLike] | ArrayLike,
    statistic: Callable[..., Any] = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic, stratified by task.

    Args:
        per_task_scores: ``{task: [n_i]}``, a sequence of ``[n_i]``, ``[tasks, n]``, or ``[n]`` for
            one task. Seeds are resampled within each task; the statistic is taken over all tasks.
        statistic: called as ``statistic(scores[resamples, n], axis=-1)``, such as ``numpy.mean``.
        confidence: the level, in (0, 1).
        resamples: the number of bootstrap samples.
        seed: the seed of resampling; the same seed gives the same interval.

    One score per task gives an interval of no width, which says nothing about the spread.

    Raises:
        UsageError: for no scores, scores that are not finite, or another ``confidence``.
    """
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    tasks = _tasks(per_task_scores)
    rng = np.random.default_rng(seed)
    block = max(_BLOCK // sum(map(len, tasks)), 1)  # of many scores, a few samples at a time
    values: list[float] = []
    while len(values) < resamples:
        rows = min(block, resamples - len(values))
        drawn = [task[rng.integers(0, len(task), (rows, len(task)))] for task in tasks]
        values.extend(statistic(np.concatenate(drawn, axis=1), axis=-1))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def _tasks(scores: Any) -> list[Array]:
    parts: Any = list(scores.values()) if isinstance(scores, Mapping) else scores
    nested = any(np.ndim(part) for part in parts)
    tasks = [np.asarray(part, np.float64) for part in (parts if nested else [parts])]
    if not tasks or not all(task.size and np.isfinite(task).all() for task in tasks):
        raise UsageError("bootstrap_ci needs finite scores, at least one of every task")
    return tasks


def final_return(per_seed: Sequence[float | None] | ArrayLike) -> dict[str, Any]:
    """Return ``{"per_seed": [n], "mean", "iqm", "ci95": [low, high]}``, ready for JSON.

    ``ci95`` is the bootstrap interval of the IQM; for one seed it is the return twice. A return
    that is not finite is None, and so are all statistics: leaving failures out would be biased.
    """
    scores = np.asarray(per_seed, np.float64)
    if not scores.size or not np.isfinite(scores).all():
        known = [float(score) if np.isfinite(score) else None for score in scores]
        return {"per_seed": known, "mean": None, "iqm": None, "ci95": [None, None]}
    return {
        "per_seed": scores.tolist(),
        "mean": float(scores.mean()),
        "iqm": float(iqm(scores)),
        "ci95": list(bootstrap_ci(scores)),
    }


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Return the probability, in [0, 1], that a score of ``x[n]`` beats one of ``y[m]``.

    Ties count half. Over several tasks, take the mean of this over the tasks.

    Raises:
        UsageError: if ``x`` or ``y`` is empty, or holds NaN.
    """
    a, b = _scores(x)[:, None], _scores(y)[None, :]
    return float(np.mean((a > b) + 0.5 * (a == b)))


def performance_profile(scores: ArrayLike, taus: ArrayLike) -> Array:
    """Return the fraction of ``scores`` (any shape) above each of ``taus[k]``: ``[k]``.

    Raises:
        UsageError: if ``scores`` is empty, or holds NaN.
    """
    return np.mean(_scores(scores) > np.asarray(taus, np.float64)[:, None], axis=1)


def _scores(x: ArrayLike) -> Array:
    scores = np.asarray(x, np.float64).ravel()
    if not scores.size or np.isnan(scores).any():
        raise UsageError("scores must be numbers, at least one")
    return scores
