"""Successive halving: all configurations train a little, the best ones go on, and so forth.

Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", with continuation: survivors keep their states and train on.
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
    """``keep`` configurations train until ``share`` of the run's whole length is done."""

    keep: int
    share: float


@dataclasses.dataclass(frozen=True)
class Halving:
    """Keep the best ``1 / eta`` of the configurations at each rung; the last one is a whole run.

    Rung ``k = 0 .. K`` keeps ``floor(n eta^-k)`` configurations and trains them until
    ``eta^(k - K)`` of the run is done, with ``K = floor(log_eta n)``, or ``rungs - 1`` if that is
    less: with fewer rungs, the first is longer and more configurations finish.

    Raises:
        UsageError: for ``eta`` of at most 1, or less than two rungs.
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
    """Return the steps of all rungs, as a share of those of training all configurations whole."""
    before = [0.0, *(rung.share for rung in ladder)]
    steps = sum(rung.keep * (rung.share - done) for rung, done in zip(ladder, before, strict=False))
    return steps / ladder[0].keep


def highest(scores: Scores, count: int) -> list[int]:
    """Return the indices of the ``count`` highest scores in ascending order of the index.

    NaN is the lowest score. Scores may be tuples: what comes later decides between equals. Of
    scores that are equal altogether, the first are taken.
    """
    keys = np.reshape(np.asarray(scores, float), (len(scores), -1))
    keys = np.where(np.isnan(keys), -np.inf, keys)
    order = np.lexsort(-keys.T[::-1])  # stable; the last key decides first
    return sorted(order[:count].tolist())


def train_rungs(
    ladder: Sequence[Rung], train: Callable[[int, list[int]], tuple[Scores, Any]]
) -> list[tuple[list[int], Scores, Any]]:
    """Train rung after rung, each with the best of the one before.

    ``train(k, candidates) -> (scores, outcome)`` trains the candidates to the end of rung ``k``.
    Returns for each rung its candidates, their scores, and the outcome.
    """
    alive, found = list(range(ladder[0].keep)), []
    for k in range(len(ladder)):
        scores, outcome = train(k, alive)
        found.append((alive, scores, outcome))
        if k + 1 < len(ladder):
            alive = [alive[i] for i in highest(scores, ladder[k + 1].keep)]
    return found
