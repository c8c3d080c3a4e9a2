"""Successive halving: all configurations train briefly, the best continue, and so on.

Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", with continuation: survivors keep their states and continue training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import UsageError
from jaxrl.require import require, require_integer

Scores = Sequence[float] | Sequence[tuple[float, ...]] | np.ndarray


class Rung(NamedTuple):
    """``keep`` configurations train until ``share`` of the full run length is done."""

    keep: int
    share: float


@dataclasses.dataclass(frozen=True)
class Halving:
    """Keep the best ``1 / eta`` of the configurations at each rung; the last rung is a full run.

    Rung ``k = 0 .. K`` keeps ``floor(n eta^-k)`` configurations and trains them until ``eta^(k -
    K)`` of the run is done. ``K`` is ``floor(log_eta n)``, or ``rungs - 1`` if that is less. With
    fewer rungs, the first is longer and more configurations finish.

    Raises:
        UsageError: for ``eta`` of at most 1, or fewer than two rungs.
    """

    eta: float = 2.0
    rungs: int | None = None

    def __post_init__(self) -> None:
        require("halving", self.eta, 1, above=True)
        require_integer("rungs", self.rungs, 2, optional=True)

    def ladder(self, count: int) -> list[Rung]:
        """Return the rungs for ``count`` configurations.

        Raises:
            UsageError: for fewer than ``eta`` configurations.
        """
        last = math.floor(math.log(count) / math.log(self.eta) + 1e-9)
        if last < 1:
            raise UsageError(
                f"halving by {self.eta:g} needs at least {math.ceil(self.eta)} configurations, "
                f"and there are {count}; sweep more values"
            )
        if self.rungs is not None:
            last = min(last, self.rungs - 1)
        kept = [math.floor(count * self.eta**-k + 1e-9) for k in range(last + 1)]
        return [Rung(keep, self.eta ** (k - last)) for k, keep in enumerate(kept)]


def cost(ladder: Sequence[Rung]) -> float:
    """Return the steps of all rungs as a share of training all configurations fully."""
    before = [0.0, *(rung.share for rung in ladder)]
    steps = sum(rung.keep * (rung.share - done) for rung, done in zip(ladder, before, strict=False))
    return steps / ladder[0].keep


def highest(scores: Scores, count: int) -> list[int]:
    """Return the indices of the ``count`` highest scores, in ascending order.

    NaN is the lowest score. Scores may be tuples, whose later elements break ties. Among fully
    equal scores, the first are taken.
    """
    keys = np.reshape(np.asarray(scores, float), (len(scores), -1))
    keys = np.where(np.isnan(keys), -np.inf, keys)
    order = np.lexsort(-keys.T[::-1])  # stable; the last key decides first
    return sorted(order[:count].tolist())


def train_rungs(
    ladder: Sequence[Rung], train: Callable[[int, list[int]], tuple[Scores, Any]]
) -> list[tuple[list[int], Scores, Any]]:
    """Train the rungs in order, each with the best candidates of the previous one.

    ``train(k, candidates) -> (scores, outcome)`` trains the candidates to the end of rung ``k``.
    For each rung, returns its candidates, their scores and the outcome.
    """
    alive, found = list(range(ladder[0].keep)), []
    for k in range(len(ladder)):
        scores, outcome = train(k, alive)
        found.append((alive, scores, outcome))
        if k + 1 < len(ladder):
            alive = [alive[i] for i in highest(scores, ladder[k + 1].keep)]
    return found
