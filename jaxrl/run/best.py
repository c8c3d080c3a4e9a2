"""The best policies of a run so far: every member's agent at its best evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.record.metrics_file import Row, plain
from jaxrl.types import Array, PyTree, TrainState

KEPT = ("step", "episode_return")  # of an evaluation's row


class Best:
    """The agents ``[M, ...]`` of the best evaluations so far, and which evaluations these were.

    Only the agent's state is kept: environments and replay buffer are not needed to act. Of equal
    returns the first counts, and those that are not finite are below all others.

    Attributes:
        agent: the states of the agents on the devices; ``()`` before the first evaluation.
        evaluations: an entry for each member: ``iteration``, ``phase`` (the index), ``step`` and
            ``episode_return``; None where nothing is kept.
    """

    def __init__(self) -> None:
        self.agent: PyTree = ()
        self.evaluations: list[Row] | None = None

    def update(self, agent: PyTree, rows: Sequence[Row], iteration: int, phase: int) -> None:
        """Take the members whose evaluation, one of ``rows[M]``, is better than all before."""
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
        if better.any():  # a copy, since the next chunk is written over ``agent``
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
    """Return the tree that a checkpoint holds: the parts of the state, and ``best``."""
    return {**ts._asdict(), "best": best}


def without_best(tree: dict[str, Any]) -> tuple[TrainState, PyTree]:
    """Return the state and the agents of the best evaluations in a checkpoint's tree."""
    parts = dict(tree)
    best = parts.pop("best")
    return TrainState(**parts), best
