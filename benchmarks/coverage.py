"""Coverage of the intervals of jaxrl.analysis: how often a 95% interval holds the truth.

python benchmarks/coverage.py

Scores of ``--draws`` experiments are drawn from a normal distribution, a bimodal one (two normals,
four of their standard deviations from the middle) and a lognormal one. Each experiment gets
the intervals of ``bootstrap_ci`` (IQM, 2,000 resamples), ``difference_ci`` (the IQMs of two equal
groups) and ``mean_ci`` (Student's t), and beside it the percentile bootstrap of the mean.

The bootstrap draws the same indices in every experiment, as ``seed=0`` does for a user. An IQM is
linear in the sorted scores, so all experiments are one product of matrices; a test holds it equal
to ``bootstrap_ci``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from scipy import stats

from jaxrl.analysis.aggregate import RESAMPLES
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance

CENTRES, SPREAD, SIGMA = 2.0, 0.5, 0.8
BLOCK = 1000  # experiments at once


@dataclass(frozen=True)
class Config:
    """How often, and of how many seeds."""

    draws: int = 10_000
    """experiments of each kind"""
    seeds: tuple[int, ...] = (3, 4, 5, 8, 10, 16)
    """seeds of an experiment"""
    out: Path = Path("results/coverage.json")
    """where to write the shares"""


def scores(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return scores of a distribution."""
    noise = rng.normal(size=shape)
    if name == "normal":
        return noise
    if name == "lognormal":
        return np.exp(SIGMA * noise)
    return SPREAD * noise + CENTRES * rng.choice([-1.0, 1.0], shape)


def truth(name: str, statistic: str) -> float:
    """Return the IQM or the mean of a distribution."""
    if name != "lognormal":
        return 0.0
    mean = float(np.exp(SIGMA**2 / 2))
    if statistic == "mean":
        return mean
    edges = stats.norm.ppf([0.25, 0.75]) - SIGMA
    return float(2.0 * mean * np.diff(stats.norm.cdf(edges))[0])


def weights(n: int, trim: int, seed: int = 0, column: int = 0) -> np.ndarray:
    """Return ``[n, resamples]``: how much each sorted score counts in the mean of a resample.

    ``column`` is the place of the task among those that are resampled together.
    """
    rng = np.random.default_rng(seed)
    for _ in range(column + 1):
        index = rng.integers(0, n, (RESAMPLES, n))
    kept = np.sort(index, axis=1)[:, trim : n - trim]
    counts = (kept[:, :, None] == np.arange(n)).sum(axis=1)
    return counts.T / kept.shape[1]


def intervals(sorted_scores: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the percentile intervals ``[2, experiments]`` of scores sorted along axis 1."""
    return np.percentile(sorted_scores @ matrix, [2.5, 97.5], axis=1)


def cover(name: str, n: int, draws: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the share of experiments whose interval holds the truth, for each kind."""
    of_iqm, of_mean = weights(n, n // 4), weights(n, 0)
    other = weights(n, n // 4, column=1)
    hits = dict.fromkeys(("iqm", "iqm_difference", "mean_t", "mean_bootstrap"), 0)
    for start in range(0, draws, BLOCK):
        x, y = (
            np.sort(scores(name, (min(BLOCK, draws - start), n), rng), axis=1) for _ in range(2)
        )
        low, high = intervals(x, of_iqm)
        hits["iqm"] += np.sum((low <= truth(name, "iqm")) & (truth(name, "iqm") <= high))
        low, high = np.percentile(x @ of_iqm - y @ other, [2.5, 97.5], axis=1)
        hits["iqm_difference"] += np.sum((low <= 0.0) & (high >= 0.0))
        low, high = intervals(x, of_mean)
        mean = truth(name, "mean")
        hits["mean_bootstrap"] += np.sum((low <= mean) & (mean <= high))
        half = stats.t.ppf(0.975, n - 1) * stats.sem(x, axis=1)
        hits["mean_t"] += np.sum(np.abs(x.mean(axis=1) - mean) <= half)
    return {kind: round(int(hit) / draws, 4) for kind, hit in hits.items()}


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write the shares."""
    start, rng = time.time(), np.random.default_rng(0)
    shares = {
        str(n): {
            name: cover(name, n, config.draws, rng) for name in ("normal", "bimodal", "lognormal")
        }
        for n in config.seeds
    }
    for n, found in shares.items():
        for name, kinds in found.items():
            print(n, name, *(f"{kind} {100 * share:.1f}%" for kind, share in kinds.items()))
    result = {
        "confidence": 0.95,
        "draws": config.draws,
        "resamples": RESAMPLES,
        "coverage": shares,
        "seconds": round(time.time() - start, 1),
        **provenance(),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out, result)
    return result


if __name__ == "__main__":
    main(tyro.cli(Config))
