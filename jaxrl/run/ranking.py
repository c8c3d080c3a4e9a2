"""Scores of the members and configurations of a sweep, and the bias of the best score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxrl.analysis.statistics import bootstrap_ci, iqm

WINDOW = 2  # evaluations averaged for a member's score

Floats = NDArray[np.float64]


def member_scores(returns: Floats, diverged: NDArray[np.bool_]) -> Floats:
    """Return the scores ``[M]``, given evaluations ``[evaluations, M]`` and diverged flags ``[M]``.

    A score is the mean return of the last ``WINDOW`` evaluations, or of the only one. It is minus
    infinity for a member that diverged or has non-finite returns.
    """
    scores = np.mean(np.asarray(returns, float)[-WINDOW:], axis=0)
    return np.where(diverged | ~np.isfinite(scores), -np.inf, scores)


def diverged_members(
    rows: Sequence[Mapping[str, Any]], members: int, max_skipped: int
) -> NDArray[np.bool_]:
    """Return which members ``[M]`` have diverged by the end of these rows of a run.

    A member has diverged if ``max_skipped`` gradients in a row were skipped, up to any step of the
    last chunk, or if its last evaluation met non-finite numbers. A chunk ends at the next log line,
    evaluation or checkpoint; of its steps, rows hold the longest such streak.
    """
    train = [row for row in rows if row["kind"] == "train"][-members:]
    skipped = [row.get("skipped_in_a_row") or 0 for row in train] or [0] * members
    played = [row for row in rows if row["kind"] == "eval"][-members:]
    broken = [_not_finite(row) for row in played] or [False] * members
    return (np.array(skipped) >= max_skipped) | np.array(broken)


def _not_finite(row: Mapping[str, Any]) -> bool:
    value = row["episode_return"]
    return bool(row.get("nonfinite_episodes")) or value is None or not np.isfinite(value)


def configuration_score(per_seed: Floats) -> dict[str, Any]:
    """Return ``score`` (the IQM), its interval, and ``mean`` of the scores ``[S]`` of all seeds.

    A diverged seed counts as the lowest. If more seeds diverged than the quarter that the IQM
    trims, the score is minus infinity. The interval requires all seeds to be finite. The mean
    breaks ties between equal scores, e.g. if a task has a maximum return.
    """
    finite = np.isfinite(per_seed).all()
    low, high = bootstrap_ci(per_seed) if finite else (None, None)
    mean = float(np.mean(per_seed))
    return {"score": float(iqm(per_seed)), "ci_low": low, "ci_high": high, "mean": mean}


def rank_key(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ranking key of a configuration: its score, then its mean."""
    return entry["score"], entry["mean"]


def selection_bias(entry: Mapping[str, Any], candidates: int) -> float | None:
    """Return how much the best of ``candidates`` is overestimated if all are equally good.

    This is the standard error of the score (from its interval) times the expected maximum of
    ``candidates`` standard normals (Blom 1958); None if the interval is unknown. If the best is
    truly better than the others, the bias is smaller.
    """
    if entry["ci_low"] is None:
        return None
    error = (entry["ci_high"] - entry["ci_low"]) / (2 * NormalDist().inv_cdf(0.975))
    return float(error * expected_maximum(candidates))


def expected_maximum(count: int) -> float:
    """Return the expected maximum of ``count`` standard normals, by Blom's approximation."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0
