"""Statistics of a run's seeds and of two groups of runs: intervals, tests and corrections.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
Scores are for one task, ``[n]``, or for several: ``{task: [n_i]}``, a sequence of ``[n_i]``, or
``[tasks, n]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrl.analysis.aggregate import (
    CONFIDENCE,
    RESAMPLES,
    Array,
    Statistic,
    Tasks,
    aggregate_iqm,
    as_tasks,
    bootstrap,
    bootstrap_ci,
    check_confidence,
    interval,
    iqm,
    is_rounding,
)
from jaxrl.errors import UsageError
from jaxrl.require import require_integer

__all__ = [
    "bootstrap_ci",
    "difference_ci",
    "final_return",
    "holm",
    "improvement_ci",
    "iqm",
    "mean_ci",
    "performance_profile",
    "permutation_test",
    "probability_of_improvement",
    "profile_ci",
]


def final_return(per_seed: Sequence[float | None] | ArrayLike) -> dict[str, Any]:
    """Return ``{"per_seed": [n], "mean", "iqm", "ci95": [low, high]}``, ready for JSON.

    ``ci95`` is the bootstrap interval of the IQM; for one seed both ends are the return. A
    non-finite return becomes None, and so do all statistics: omitting failures would be biased.
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


def mean_ci(scores: Tasks, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the Student's t interval of the mean over tasks of their means.

    The variance is ``sum_k s_k^2 / n_k / K^2``, with Satterthwaite's degrees of freedom. For one
    task this is the textbook interval of a mean, exact for normal scores. With few seeds, the
    percentile bootstrap interval of a mean is much too short. Both ends are NaN if a task has one
    score.

    Raises:
        UsageError: for no scores, non-finite scores, or an invalid ``confidence``.
    """
    from scipy.stats import t

    check_confidence(confidence)
    tasks = as_tasks(scores)
    if min(map(len, tasks)) < 2:
        return float("nan"), float("nan")
    mean = float(np.mean([task.mean() for task in tasks]))
    parts = np.array([task.var(ddof=1) / len(task) for task in tasks]) / len(tasks) ** 2
    variance = parts.sum()
    if is_rounding(np.sqrt(variance), tasks):
        return mean, mean
    freedom = variance**2 / sum(
        part**2 / (len(task) - 1) for part, task in zip(parts, tasks, strict=True)
    )
    half = float(t.ppf(0.5 + confidence / 2, freedom) * np.sqrt(variance))
    return mean - half, mean + half


def performance_profile(scores: Tasks, taus: ArrayLike) -> Array:
    """Return the fraction of scores above each of ``taus[k]``, averaged over tasks: ``[k]``.

    A single number counts as ``[1]``.

    Raises:
        UsageError: for no scores, or scores that are not finite.
    """
    return _profile([task.reshape(1, -1) for task in as_tasks(scores)], taus)[:, 0]


def profile_ci(
    scores: Tasks,
    taus: ArrayLike,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Return the pointwise bootstrap band of ``performance_profile``: low and high, each ``[k]``.

    Raises:
        UsageError: as ``bootstrap_ci``.
    """
    levels = np.asarray(taus, np.float64)
    values = bootstrap(scores, lambda tasks: _profile(tasks, levels), resamples, seed, levels.size)
    return interval(values, confidence)


def _profile(tasks: Sequence[Array], taus: ArrayLike) -> Array:
    """Return the profiles of tasks ``[rows, n_i]``: ``[k, rows]``."""
    levels = np.atleast_1d(np.asarray(taus, np.float64))[:, None, None]
    return np.mean([np.mean(task > levels, axis=-1) for task in tasks], axis=0)


def probability_of_improvement(x: Tasks, y: Tasks) -> float:
    """Return the probability, in [0, 1], that a score from ``x`` beats one from ``y``.

    Ties count as half. For several tasks this is the mean over tasks, which needs no common scale.

    Raises:
        UsageError: for scores that are missing or not finite, or other tasks in ``y`` than ``x``.
    """
    return float(_improvement(*matched_tasks(x, y)))


def _improvement(x: Sequence[Array], y: Sequence[Array]) -> Any:
    """Return the mean over tasks for ``[..., n_i]`` and ``[..., m_i]``: ``[...]``."""
    shares = []
    for a, b in zip(x, y, strict=True):
        left, right = a[..., :, None], b[..., None, :]
        shares.append(np.mean((left > right) + 0.5 * (left == right), axis=(-2, -1)))
    return np.mean(shares, axis=0)


def improvement_ci(
    x: Tasks,
    y: Tasks,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the interval of the probability of improvement; both groups are resampled.

    Raises:
        UsageError: as ``probability_of_improvement`` and ``bootstrap_ci``.
    """
    return _two(x, y, _improvement, confidence, resamples, seed)


def difference_ci(
    x: Tasks,
    y: Tasks,
    statistic: Statistic = aggregate_iqm,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap interval of ``statistic(x) - statistic(y)``; both are resampled.

    Whether two intervals overlap is not a test of a difference; whether this interval contains 0
    is.

    Args:
        x: scores of one group; all tasks must share a scale.
        y: scores of the other group on the same tasks; the number of seeds may differ.
        statistic: maps tasks, each ``[..., n_i]``, to ``[...]``, e.g. ``aggregate_mean``.
        confidence: the level, in (0, 1).
        resamples: the number of bootstrap samples of each group.
        seed: the seed of resampling.

    Raises:
        UsageError: as ``probability_of_improvement`` and ``bootstrap_ci``.
    """

    def difference(a: list[Array], b: list[Array]) -> Any:
        return statistic(a) - statistic(b)

    return _two(x, y, difference, confidence, resamples, seed)


def _two(x: Tasks, y: Tasks, f: Any, confidence: float, resamples: int, seed: int) -> Any:
    """Return the interval of a function of two groups of tasks."""
    check_confidence(confidence)
    a, b = matched_tasks(x, y)

    def of_all(drawn: list[Array]) -> Any:
        return f(drawn[: len(a)], drawn[len(a) :])

    width = max(max(map(len, a)), max(map(len, b)))  # pairs are compared
    low, high = interval(bootstrap([*a, *b], of_all, resamples, seed, width), confidence)
    return float(low), float(high)


def permutation_test(x: Tasks, y: Tasks, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p-value of a Mann-Whitney test for a difference, stratified by task.

    The statistic is the probability of improvement. Scores are randomly permuted between the groups
    within each task, so p is valid for any distribution and number of seeds. It is at least ``1 /
    (resamples + 1)``; for two groups of 3 or 4 seeds on one task, it is at least 0.1 or 0.03.

    Raises:
        UsageError: as ``probability_of_improvement``.
    """
    from scipy.stats import rankdata

    require_integer("resamples", resamples)
    a, b = matched_tasks(x, y)
    rng = np.random.default_rng(seed)
    found, drawn = 0.0, np.zeros(resamples)
    for left, right in zip(a, b, strict=True):
        n, m = len(left), len(right)
        ranks = rankdata(np.concatenate([left, right]))  # ties share their mean rank
        expected = n * (n + m + 1) / 2
        found += (ranks[:n].sum() - expected) / (n * m)
        shuffled = rng.permuted(np.broadcast_to(ranks, (resamples, n + m)), axis=1)
        drawn += (shuffled[:, :n].sum(axis=1) - expected) / (n * m)
    extreme = np.sum(np.abs(drawn) >= abs(found) - 1e-9)  # tolerance for sums in a different order
    return float((1 + extreme) / (1 + resamples))


def holm(p: ArrayLike) -> Array:
    """Return the p-values ``[k]`` of several tests, adjusted by Holm's step-down correction.

    If values of at most 0.05 count as significant, at most one family of tests in twenty has a
    false positive, whichever hypotheses are true. Source: Holm 1979, "A Simple Sequentially
    Rejective Multiple Test Procedure".

    Raises:
        UsageError: unless all are in [0, 1].
    """
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or not ((values >= 0.0) & (values <= 1.0)).all():
        raise UsageError("p must be numbers in [0, 1], such as [0.01, 0.2]")
    order = np.argsort(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def matched_tasks(x: Tasks, y: Tasks) -> tuple[list[Array], list[Array]]:
    """Return the scores of two groups on the same tasks."""
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        if x.keys() != y.keys():
            odd = ", ".join(sorted(x.keys() ^ y.keys()))
            raise UsageError(f"only one of two groups has scores of {odd}; give those of both")
        y = {name: y[name] for name in x}
    a, b = as_tasks(x), as_tasks(y)
    if len(a) != len(b):
        raise UsageError(
            f"two groups have {len(a)} and {len(b)} tasks; give the scores of the same tasks"
        )
    return a, b
