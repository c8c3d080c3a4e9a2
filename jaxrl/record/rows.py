"""The rows of a run's record: one per member, for training or for evaluation.

A run trains a *population*: the runs trained together (configurations x seeds). A *member* is one
of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrl import metrics as m
from jaxrl.record.metrics_file import Row
from jaxrl.training.evaluate import Evaluation

# The metrics that come first in a row, after kind, seed and step.
FIRST = ("episode_return", "episode_length", "episodes")


class Member(NamedTuple):
    """One run of the population: a configuration of the sweep, and a seed."""

    config: int
    sweep: Mapping[str, float]
    seed: int

    @property
    def label(self) -> Row:
        """The entries that identify the member in its rows."""
        swept = {"config": self.config, "sweep": dict(self.sweep)} if self.sweep else {}
        return {"seed": self.seed, **swept}

    @property
    def name(self) -> str:
        """The member in words: ``seed 0``, or ``seed 0 with gamma=0.9``."""
        values = " ".join(f"{name}={value:g}" for name, value in self.sweep.items())
        return f"seed {self.seed}" + (f" with {values}" if values else "")


def train_rows(members: Sequence[Member], metrics: m.Metrics, step: int) -> list[Row]:
    """Return one row per member from metrics ``[M]`` that end at environment step ``step``."""
    with np.errstate(invalid="ignore"):
        values = m.values(metrics)
    names = [*FIRST, *sorted(values.keys() - set(FIRST))]
    return [
        {"kind": "train", **member.label, "step": step}
        | {name: float(values[name][i]) for name in names}
        for i, member in enumerate(members)
    ]


def evaluation_rows(members: Sequence[Member], result: Evaluation, step: int) -> list[Row]:
    """Return one row per member from evaluation episodes ``[M, episodes]``."""
    return [
        {
            "kind": "eval",
            **member.label,
            "step": step,
            "episode_return": float(np.mean(result.returns[i], dtype=np.float64)),
            "episode_length": float(np.mean(result.lengths[i])),
            "nonfinite_episodes": int(np.sum(~result.finite[i])),
            "returns": result.returns[i].tolist(),
        }
        for i, member in enumerate(members)
    ]


def latest_return(rows: Sequence[Row], members: int) -> float | None:
    """Return the newest mean return over members, from training if known, else from evaluation."""
    for kind in ("train", "eval"):
        newest = [row for row in rows[-2 * members :] if row["kind"] == kind]
        returns = [row["episode_return"] for row in newest]
        known = [value for value in returns if value is not None and np.isfinite(value)]
        if known:
            return float(np.mean(known))
    return None
