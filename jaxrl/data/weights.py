"""Trajectory weights for datasets of mixed quality.

(Hong et al. 2023, "Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory
Weighting".)
"""

from __future__ import annotations

from typing import Literal

import jax
import numpy as np

from jaxrl.data.dataset import Dataset
from jaxrl.require import require, require_choice

By = Literal["return", "advantage"]
_RANGE = 2**32  # of the random bits that select rows


def trajectory_weights(data: Dataset, by: By, temperature: float) -> np.ndarray:
    """Return the weights of the episodes ``float64[episodes]``, which sum to 1.

    They are proportional to ``exp(x / temperature)``. ``x`` is the episode's return ("return", RW),
    or the residual of a linear regression of returns on first observations ("advantage", AW),
    scaled to [0, 1] over the dataset. Small temperatures concentrate on the best episodes.

    Raises:
        UsageError: for an unknown ``by``, or a temperature that is not positive.
    """
    require_choice("by", by, By)
    require("temperature", temperature, 0, above=True)
    score = data.returns()
    if by == "advantage":
        rows = data.first_rows()
        first = [np.asarray(x)[rows].reshape(len(rows), -1) for x in jax.tree.leaves(data.obs)]
        inputs = np.concatenate([*first, np.ones((len(rows), 1))], axis=1, dtype=np.float64)
        score = score - inputs @ np.linalg.lstsq(inputs, score, rcond=None)[0]
    spread = np.ptp(score)
    # Treat scores that differ only by rounding as equal.
    scaled = (score - score.min()) / spread if spread > 1e-9 * np.abs(score).max() else 0.0 * score
    weights = np.exp((scaled - 1.0) / temperature)
    return weights / weights.sum()


def weighted(data: Dataset, by: By, temperature: float = 0.1) -> Dataset:
    """Return the dataset with weights for ``WeightedDataset``.

    Each transition has the weight of its episode (``trajectory_weights``), so long episodes are
    drawn more often. The paper uses a temperature of 0.1 for IQL and TD3+BC, and 0.2 for CQL.

    Raises:
        UsageError: as in ``trajectory_weights``.
    """
    rows = np.repeat(trajectory_weights(data, by, temperature), data.lengths())
    total = np.cumsum(rows)
    # The last row gets all bits that remain after rounding.
    cumulative = np.minimum(np.round(total / total[-1] * _RANGE), _RANGE - 1).astype(np.uint32)
    cumulative[-1] = _RANGE - 1
    return data._replace(cumulative=cumulative)
