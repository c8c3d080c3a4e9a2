"""How many seeds separate two groups: the power of the two-sided t-test of their means.

Consider two groups of ``n`` and ``m`` seeds with the standardised difference ``d``: the difference
of the means divided by the standard deviation of one seed. The test statistic then has the
non-central t distribution with ``n + m - 2`` degrees of freedom and non-centrality ``d sqrt(n m /
(n + m))``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxrl.analysis.aggregate import Tasks, is_rounding
from jaxrl.analysis.statistics import matched_tasks
from jaxrl.errors import UsageError
from jaxrl.require import require, require_integer

ALPHA, POWER = 0.05, 0.8
SPREAD_LIMIT = 0.8  # the one-sided level of the upper limit of a measured spread
MOST_SEEDS = 10_000


class Separation(NamedTuple):
    """The effect size of two groups and the seeds needed to separate them; None if unknown."""

    d: float | None  # the standardised difference, with its sign
    seeds: int | None  # per group and task; also None if more than MOST_SEEDS
    seeds_high: int | None  # the same with the spread at its upper limit


def power_of(n: int, d: float, alpha: float = ALPHA, m: int | None = None) -> float:
    """Return the probability that the two-sided t test of two groups finds a difference.

    Args:
        n: the seeds of one group.
        d: the standardised difference.
        alpha: the level of the test.
        m: the seeds of the other group; default ``n``.

    Raises:
        UsageError: for groups of fewer than 2 seeds, or a level outside (0, 1).
    """
    from scipy.stats import nct, t

    m = n if m is None else m
    for name, value in (("n", n), ("m", m)):
        require_integer(name, value, 2)
    _check_level("alpha", alpha)
    freedom, shift = n + m - 2, abs(d) * np.sqrt(n * m / (n + m))
    if shift > 1e3:  # nct's series ends here
        return 1.0
    critical = t.ppf(1.0 - alpha / 2.0, freedom)
    # The other tail is less than Phi(-shift); nct may return NaN for it.
    other = nct.cdf(-critical, freedom, shift) if shift < 6.0 else 0.0
    return float(nct.sf(critical, freedom, shift) + other)


def seeds_needed(d: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """Return the minimum seeds per group for finding a difference with the given power.

    None if more than ``MOST_SEEDS`` are needed. About ``15.7 / d^2 + 1`` for a power of 0.8.

    Raises:
        UsageError: if ``d`` is not a number, or a level is outside (0, 1).
    """
    _check_level("power", power)
    if np.isnan(d):
        raise UsageError("d is nan; give the standardised difference, such as 0.8")
    if power_of(MOST_SEEDS, d, alpha) < power:
        return None
    low, high = 1, MOST_SEEDS  # the power at ``high`` is enough; it grows with the seeds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(middle, d, alpha) >= power else (middle, high)
    return high


def detectable_difference(
    n: int, power: float = POWER, alpha: float = ALPHA, m: int | None = None
) -> float:
    """Return the smallest standardised difference detectable with ``n`` and ``m`` seeds.

    Raises:
        UsageError: as in ``power_of``.
    """
    from scipy.optimize import brentq

    _check_level("power", power)
    if power_of(n, 0.0, alpha, m) >= power:
        return 0.0
    high = 1.0
    while power_of(n, high, alpha, m) < power:
        high *= 2.0
    return float(brentq(lambda d: power_of(n, d, alpha, m) - power, 0.0, high))


def separation(x: Tasks, y: Tasks, power: float = POWER, alpha: float = ALPHA) -> Separation:
    """Return the standardised difference of two groups, and the seeds that would separate them.

    The difference is between the means, averaged over the tasks, which must share a scale. Its
    spread is that of one seed on every task, ``sqrt(mean_k(s_k^2) / K)`` with ``s_k`` pooled from
    both groups. Few seeds estimate the spread poorly, so the seeds are also computed for its upper
    80% limit (chi-square). The difference is itself an estimate: the result is the number of seeds
    that would separate two groups that truly differ by this much. Without a spread, as of constant
    scores, all are None.

    Raises:
        UsageError: for scores that are missing or not finite, or other tasks in ``y`` than ``x``.
    """
    from scipy.stats import chi2

    a, b = matched_tasks(x, y)
    difference = np.mean([u.mean() - v.mean() for u, v in zip(a, b, strict=True)])
    freedoms = np.array([len(u) + len(v) - 2 for u, v in zip(a, b, strict=True)])
    if freedoms.min() < 1:
        return Separation(None, None, None)
    squares = np.array([_square(u) + _square(v) for u, v in zip(a, b, strict=True)])
    spread = float(np.sqrt(np.mean(squares / freedoms) / len(a)))
    if is_rounding(spread, [*a, *b]):
        return Separation(None, None, None)
    d, freedom = float(difference / spread), int(freedoms.sum())
    limit = d * np.sqrt(chi2.ppf(1.0 - SPREAD_LIMIT, freedom) / freedom)
    return Separation(d, *(seeds_needed(each, power, alpha) for each in (d, limit)))


def _square(scores: np.ndarray) -> float:
    return float(np.sum((scores - scores.mean()) ** 2))


def _check_level(name: str, value: float) -> None:
    require(name, value, 0.0, above=True)
    if value >= 1.0:
        raise UsageError(f"{name} is {value:g}; it must be less than 1, such as 0.8")
