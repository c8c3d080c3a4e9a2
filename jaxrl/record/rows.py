"""The rows of a run's record: one per member, for training or for evaluation.

A run trains a *population*: the set of runs trained together (configurations x seeds). Each is a
*member*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl import metrics as m
from jaxrl._output import sweep_label
from jaxrl.record.metrics_file import Row
from jaxrl.training.evaluate import Evaluation

# The metrics that come first in a row, after kind, seed and steps.
FIRST = ("episode_return", "episode_length", "episodes")


class Member(NamedTuple):
    """One run of the population: a configuration of the sweep and a seed."""

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
        """The member as text: ``seed 0``, or ``seed 0 with gamma=0.9``."""
        values = sweep_label(self.sweep)
        return f"seed {self.seed}" + (f" with {values}" if values else "")


class Position(NamedTuple):
    """The progress of every member of a run. ``step`` counts in the units of the run's phases."""

    step: int
    env_steps: int
    gradient_steps: int


def train_rows(
    members: Sequence[Member], metrics: m.Metrics, position: Position, phase: str | None = None
) -> list[Row]:
    """Return one row per member from metrics ``[M]`` of a chunk that ends at ``position``."""
    with np.errstate(invalid="ignore"):
        values: dict[str, Any] = m.values(metrics)
    if "episode_return" not in values:  # no environment ran
        values["episode_return"] = np.full(len(members), np.nan)
    first = [name for name in FIRST if name in values]
    names = [*first, *sorted(values.keys() - set(first))]
    return [
        _start("train", member, position, phase) | {name: float(values[name][i]) for name in names}
        for i, member in enumerate(members)
    ]


def _start(kind: str, member: Member, position: Position, phase: str | None) -> Row:
    """Return the first entries of every row."""
    named = {} if phase is None else {"phase": phase}
    return {"kind": kind, **member.label, **named, **position._asdict()}


def evaluation_rows(
    members: Sequence[Member], result: Evaluation, position: Position, phase: str | None = None
) -> list[Row]:
    """Return one row per member from evaluation episodes ``[M, episodes]``."""
    return [
        _start("eval", member, position, phase)
        | {
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
