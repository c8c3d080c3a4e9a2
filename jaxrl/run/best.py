"""The best policies of a run so far: each member's agent at its best evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.record.metrics_file import Row, plain
from jaxrl.types import Array, PyTree, TrainState

KEPT = ("step", "episode_return")  # columns kept from an evaluation row


class Best:
    """The agents ``[M, ...]`` at their best evaluations so far, and information on the evaluations.

    Only the agent's state is kept: acting needs no environments or replay buffer. Among equal
    returns the first counts. Non-finite returns rank below all others.

    Attributes:
        agent: the states of the agents on the devices; ``()`` before the first evaluation.
        evaluations: one entry per member with ``iteration``, ``phase`` (the index), ``step`` and
            ``episode_return``; None where nothing is kept.
    """

    def __init__(self) -> None:
        self.agent: PyTree = ()
        self.evaluations: list[Row] | None = None

    def update(self, agent: PyTree, rows: Sequence[Row], iteration: int, phase: int) -> None:
        """Keep the members whose evaluation in ``rows[M]`` is their best so far."""
        found = [
            plain({"iteration": iteration, "phase": phase} | {name: row[name] for name in KEPT})
            for row in rows
        ]
        if self.evaluations is None:
            self.agent, self.evaluations = agent, found
            better = np.ones(len(found), bool)
        else:
            pairs = zip(found, self.evaluations, strict=True)
            better = np.array([_score(new) > _score(old) for new, old in pairs])
        if better.any():  # a copy, since the next chunk overwrites ``agent``
            self.agent = _chosen(better, agent, self.agent)
            own = zip(better, found, self.evaluations, strict=True)
            self.evaluations = [new if is_better else old for is_better, new, old in own]


def _score(evaluation: Row) -> float:
    found = evaluation["episode_return"]
    return -math.inf if found is None else float(found)


@jax.jit
def _chosen(better: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return the members ``[M, ...]`` of ``new`` where they are ``better[M]``, else of ``old``."""

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)


def with_best(ts: TrainState, best: PyTree) -> dict[str, Any]:
    """Return the tree stored in a checkpoint: the fields of the state, and ``best``."""
    return {**ts._asdict(), "best": best}


def without_best(tree: dict[str, Any]) -> tuple[TrainState, PyTree]:
    """Return the state and the best agents from a checkpoint's tree."""
    parts = dict(tree)
    best = parts.pop("best")
    return TrainState(**parts), best
