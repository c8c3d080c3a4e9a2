"""Aggregates of scores over several tasks, and their stratified bootstrap.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice";
with equally many seeds on every task, the aggregates equal those of its library ``rliable``. All
tasks have equal weight, regardless of their number of seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxrl.errors import UsageError
from jaxrl.require import require_integer

Array = NDArray[np.float64]
# One task [n], or tasks: {task: [n_i]}, a sequence of [n_i], or [tasks, n].
Tasks = Mapping[str, ArrayLike] | Sequence[ArrayLike] | ArrayLike
Statistic = Callable[[list[Array]], Any]

CONFIDENCE, RESAMPLES = 0.95, 2000
ROUNDING = 1e-12  # a spread of up to this share of the largest score is rounding error
_BLOCK = 2**23  # scores resampled at once


def as_tasks(scores: Tasks) -> list[Array]:
    """Return the scores of every task, each ``[..., n_i]``.

    Raises:
        UsageError: if there are none, a score is not finite, or a task is a number, not ``[n_i]``.
    """
    parts: Any = list(scores.values()) if isinstance(scores, Mapping) else scores
    several = isinstance(scores, Mapping) or (np.iterable(parts) and any(map(np.ndim, parts)))
    tasks = [np.asarray(part, np.float64) for part in (parts if several else [parts])]
    if not tasks or not all(x.ndim and x.size and np.isfinite(x).all() for x in tasks):
        raise UsageError(
            "scores must be finite, at least one of every task, as [1.0, 2.0] or [[1.0], [2.0]]"
        )
    return tasks


def is_rounding(spread: float, tasks: Sequence[Array]) -> bool:
    """Return whether a spread is that of equal scores: 0, or an error of rounding their mean."""
    return bool(spread <= ROUNDING * max(np.abs(task).max() for task in tasks))


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


def aggregate_iqm(scores: Tasks) -> Any:
    """Return the IQM of the pooled scores of all tasks; tasks ``[..., n_i]`` give ``[...]``.

    With ``N`` scores, a share ``floor(N / 4) / N`` of the weight is trimmed at each end. Each score
    of a task has weight ``1 / n_i``: with equally many seeds, this is ``iqm`` of all scores.
    """
    tasks = as_tasks(scores)
    pooled = np.concatenate(tasks, axis=-1)
    if len({task.shape[-1] for task in tasks}) == 1:
        return iqm(pooled)
    weights = np.concatenate([np.full(n, 1.0 / (len(tasks) * n)) for n in _sizes(tasks)])
    order = np.argsort(pooled, axis=-1)
    sorted_weights = weights[order]
    ends = np.cumsum(sorted_weights, axis=-1)
    trim = pooled.shape[-1] // 4 / pooled.shape[-1]
    kept = np.clip(ends, trim, 1 - trim) - np.clip(ends - sorted_weights, trim, 1 - trim)
    return np.sum(np.take_along_axis(pooled, order, axis=-1) * kept, axis=-1) / (1 - 2 * trim)


def aggregate_mean(scores: Tasks) -> Any:
    """Return the mean over tasks of their means; tasks ``[..., n_i]`` give ``[...]``."""
    return np.mean([task.mean(axis=-1) for task in as_tasks(scores)], axis=0)[()]


def aggregate_median(scores: Tasks) -> Any:
    """Return the median over tasks of their means, or the median score for a single task."""
    tasks = as_tasks(scores)
    if len(tasks) == 1:
        return np.median(tasks[0], axis=-1)
    return np.median([task.mean(axis=-1) for task in tasks], axis=0)[()]


def optimality_gap(scores: Tasks, gamma: float = 1.0) -> Any:
    """Return ``gamma - mean(min(score, gamma))``, averaged over tasks; 0 is best.

    ``gamma`` is the target score: 100 for normalised scores in percent.
    """
    return gamma - aggregate_mean([np.minimum(task, gamma) for task in as_tasks(scores)])


def bootstrap(
    scores: Tasks,
    statistic: Statistic = aggregate_iqm,
    resamples: int = RESAMPLES,
    seed: int = 0,
    width: int = 1,
) -> Array:
    """Return a statistic for each of ``resamples`` bootstrap samples, along the last axis.

    Args:
        scores: tasks, each ``[..., n_i]``. Seeds are resampled within each task; leading axes, such
            as the time axis of curves, are resampled together.
        statistic: maps the drawn tasks, each ``[..., rows, n_i]``, to ``[..., rows]``.
        resamples: the number of bootstrap samples.
        seed: the resampling seed; equal seeds give equal samples.
        width: how many numbers ``statistic`` creates per score, if this dominates the memory.

    Raises:
        UsageError: if a score is not finite, or there are no scores.
    """
    require_integer("resamples", resamples)
    tasks = as_tasks(scores)
    width *= max(task[..., 0].size for task in tasks)
    drawn = (
        statistic([task[..., index] for task, index in zip(tasks, indices, strict=True)])
        for indices in _indices(_sizes(tasks), resamples, seed, width)
    )
    return np.concatenate(list(drawn), axis=-1)


def interval(values: Array, confidence: float = CONFIDENCE) -> tuple[Any, Any]:
    """Return the percentile interval of bootstrap values ``[..., resamples]``: two ``[...]``."""
    check_confidence(confidence)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail], axis=-1)
    return low[()], high[()]


def check_confidence(confidence: float) -> None:
    """Raise UsageError unless a level is in (0, 1)."""
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")


def bootstrap_ci(
    per_task_scores: Tasks,
    statistic: Callable[..., Any] = iqm,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a statistic, stratified by task.

    Args:
        per_task_scores: ``{task: [n_i]}``, a sequence of ``[n_i]``, ``[tasks, n]``, or ``[n]`` for
            one task. Seeds are resampled within each task; the statistic is taken over all tasks.
        statistic: called as ``statistic(scores[resamples, n], axis=-1)``, e.g. ``numpy.mean``.
        confidence: the level, in (0, 1).
        resamples: the number of bootstrap samples.
        seed: the resampling seed; equal seeds give equal intervals.

    With one score per task the interval has zero width and says nothing about the spread.

    Raises:
        UsageError: for no scores, non-finite scores, or an invalid ``confidence``.
    """
    check_confidence(confidence)

    def pooled(tasks: list[Array]) -> Any:
        return statistic(np.concatenate(tasks, axis=-1), axis=-1)

    low, high = interval(bootstrap(per_task_scores, pooled, resamples, seed), confidence)
    return float(low), float(high)


def _sizes(tasks: Sequence[Array]) -> list[int]:
    return [task.shape[-1] for task in tasks]


def _indices(
    sizes: Sequence[int], resamples: int, seed: int, width: int
) -> Iterator[list[NDArray[np.int64]]]:
    """Draw indices ``[rows, n_i]`` for every task; with many scores, a few samples at a time."""
    rng = np.random.default_rng(seed)
    block = max(_BLOCK // (sum(sizes) * width), 1)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield [rng.integers(0, n, (rows, n)) for n in sizes]
