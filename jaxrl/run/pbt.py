"""Population-based training: the worst members copy the best, with changed hyper-parameters.

Jaderberg et al. 2017, "Population Based Training of Neural Networks". A population consists of all
members of one seed, one per configuration. Several seeds are independent populations in one
program. After every interval, each member of the lowest quantile becomes a copy of a random member
of the highest quantile: ``take`` along the member axis of everything except the key. Its
hyper-parameters are then perturbed or resampled. The resulting schedule of values is recorded and
can be replayed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UsageError, nearest
from jaxrl.record.metrics_file import plain
from jaxrl.require import is_number, require, require_integer
from jaxrl.run.ranking import diverged_members, member_scores
from jaxrl.run.session import Session
from jaxrl.run.spaces import spaces_of
from jaxrl.types import Array, Key, TrainState

Lineage = list[dict[str, Any]]  # at each interval's end: iteration, step, parents, values, scores


class Decision(NamedTuple):
    """Which parent each member continues from, and with which values; members are ``[C, P]``.

    ``C`` is the number of members per population, ``P`` the number of populations. ``parents`` are
    indices into the members of the same population.
    """

    parents: Any
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PBT:
    """The settings of population-based training.

    Attributes:
        spaces: the allowed values of every swept hyper-parameter, as spaces or lists of numbers.
        interval: steps between exploits; default a twentieth of the run.
        quantile: the fraction of a population that is replaced, and the fraction that replaces it.
        factors: perturbation factors, equally likely; values from a list move to a neighbour.
        resample: the probability that a value is resampled instead of perturbed.
        seed: the seed of these random choices.

    Raises:
        UsageError: for a value that cannot work.
    """

    spaces: Mapping[str, Any]
    interval: int | None = None
    quantile: float = 0.25
    factors: tuple[float, float] = (1.2, 0.8)
    resample: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "spaces", spaces_of("spaces", self.spaces))
        require_integer("interval", self.interval, optional=True)
        require("quantile", self.quantile, 0, 0.5)
        require("resample", self.resample, 0, 1)
        if len(self.factors) != 2 or not all(is_number(x) and x > 0 for x in self.factors):
            raise UsageError(f"factors are {self.factors}; give two above 0, as 1.2 0.8")

    def check(self, configurations: Sequence[Mapping[str, float]]) -> None:
        """Raise UsageError unless there is a population, each name has a space that holds its
        values, and nothing else has one.
        """
        if len(configurations) < 2:
            raise UsageError(
                "pbt needs a population, and there is one configuration; give more, as 16 of them"
            )
        for name in self.spaces:
            if name not in configurations[0]:
                raise UsageError(
                    f"explore names {name}, which is not swept; {nearest(name, configurations[0])}"
                )
        for name in configurations[0]:
            if name not in self.spaces:
                raise UsageError(f"pbt has no range for {name}; give one, as {name}=log:1e-4,1e-2")
            for each in configurations:
                if each[name] not in self.spaces[name]:
                    raise UsageError(
                        f"pbt begins with {name}={each[name]:g}, which is outside of the space of "
                        f"{name}; give a wider one"
                    )

    def decide(self, key: Key, scores: Array, values: dict[str, Array]) -> Decision:
        """Return the decision for populations of scores ``[C, P]`` and values ``{name: [C, P]}``.

        Each of the ``ceil(quantile C)`` lowest members (at most half) gets a random parent among
        equally many of the highest, if the parent's score is better. Scores may be minus infinity,
        but not NaN.
        """
        keys = jax.random.split(key, scores.shape[1])
        over = jax.vmap(self._decide_one, in_axes=(0, 1, 1), out_axes=1)
        parents, values = over(keys, scores, values)
        return Decision(parents, values)

    def _decide_one(
        self, key: Key, scores: Array, values: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        size = scores.shape[0]
        replaced = min(math.ceil(self.quantile * size), size // 2)
        if not replaced:
            return jnp.arange(size), values
        order = jnp.argsort(scores)  # stable: among equal scores, the first rank lower
        lower, upper = order[:replaced], order[size - replaced :]
        key, choice = jax.random.split(key)
        chosen = upper[jax.random.randint(choice, (replaced,), 0, replaced)]
        chosen = jnp.where(scores[chosen] > scores[lower], chosen, lower)
        parents = jnp.arange(size).at[lower].set(chosen)
        copied = parents != jnp.arange(size)

        explored = {}
        for name, value in values.items():
            key, draw, flip, side = jax.random.split(key, 4)
            first = jax.random.bernoulli(side, shape=(size,))
            factor: Array = jnp.where(first, self.factors[0], self.factors[1])
            space, inherited = self.spaces[name], value[parents]
            fresh = jax.random.bernoulli(flip, self.resample, (size,))
            moved = jnp.where(
                fresh, space.resample(draw, (size,)), space.perturb(inherited, factor)
            )
            explored[name] = jnp.where(copied, moved, inherited)
        return parents, explored

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        spaces = {name: dataclasses.asdict(space) for name, space in self.spaces.items()}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"class": "PBT", **own, "factors": list(self.factors), "spaces": plain(spaces)}


def take(ts: TrainState, index: Array) -> TrainState:
    """Return the states ``[M, ...]`` of the members ``index[M]``; every member keeps its key.

    So copies of a member continue with their own random numbers.
    """
    taken: TrainState = jax.tree.map(lambda x: x[index], ts)
    return taken._replace(key=ts.key)


class PBTSession(Session):
    """A session whose members are populations; after each interval they exploit and explore.

    Args:
        args, options: as for ``Session``. The members are configurations x populations.
        pbt: the settings, or None to replay.
        interval: iterations from one exploit to the next.
        decisions: another run's decisions to repeat, by iteration.
    """

    def __init__(
        self,
        *args: Any,
        pbt: PBT | None,
        interval: int,
        decisions: Mapping[int, Decision] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.pbt, self.interval, self.decisions = pbt, interval, decisions
        self.shape = (len({m.config for m in self.members}), -1)  # [C, P]

    @cached_property
    def keys(self) -> Key:
        """The keys of all members ``[M]``: the seed's key in the first configuration, else folded.

        Members of a population must not share random numbers, or copies would remain equal.
        """
        seeds = jnp.array([member.seed for member in self.members])
        slots = jnp.array([member.config for member in self.members])
        keys = jax.vmap(lambda s, c: jax.random.fold_in(jax.random.key(s), c))(seeds, slots)
        return self.spread(keys)

    @property
    def lineage(self) -> Lineage:
        """The decisions so far, one per interval."""
        found: Lineage = self.records.extra.setdefault("lineage", [])
        return found

    def start(self) -> tuple[TrainState, int]:
        """Return the initial or restored state, and the number of iterations done."""
        ts, done = super().start()
        if self.lineage:
            self._set(self.lineage[-1]["values"])
        return ts, done

    def _set(self, values: Mapping[str, Any]) -> None:
        """Give the members these values ``{name: [C, P]}``."""
        flat = {name: np.reshape(x, -1) for name, x in values.items()}
        self.members = [
            member._replace(sweep={name: float(x[i]) for name, x in flat.items()})
            for i, member in enumerate(self.members)
        ]
        self.sweep = self.spread(self.values)

    def between(self, ts: TrainState, done: int) -> TrainState:
        """Exploit and explore at the end of an interval."""
        if done % self.interval or done == self.plan.total:
            return ts
        scores = self._scores()
        if self.decisions is None:
            decision = self._decide(done, scores)
        else:
            decision = self.decisions[done]
        parents = np.asarray(decision.parents)
        populations = parents.shape[1]
        index = (parents * populations + np.arange(populations)).reshape(-1)
        if (index != np.arange(index.size)).any():
            move = self._once(("take",), lambda: jax.jit(take))
            ts = self.programs[0].put(move(ts, jnp.asarray(index)))
        values = {name: _shortest(x) for name, x in decision.values.items()}
        self._set(values)
        self.lineage.append(
            plain(
                {
                    "iteration": done,
                    "step": self.position(done).step,
                    "parents": parents,
                    "values": values,
                    "scores": scores,
                }
            )
        )
        return ts

    def _scores(self) -> np.ndarray:
        """The scores of the members ``[C, P]`` over the last interval."""
        rows, count = self.records.rows, len(self.members)
        played = [row["episode_return"] for row in rows if row["kind"] == "eval"]
        returns = np.reshape(np.array(played, float), (-1, count))
        diverged = diverged_members(rows, count, self.config["max_skipped"])
        return member_scores(returns, diverged).reshape(self.shape)

    def _decide(self, done: int, scores: np.ndarray) -> Decision:
        assert self.pbt is not None
        decide = self._once(("decide",), lambda: jax.jit(self.pbt.decide))  # type: ignore[union-attr]
        key = jax.random.fold_in(jax.random.key(self.pbt.seed), done)
        values = {name: jnp.reshape(x, scores.shape) for name, x in self.values.items()}
        decided: Decision = jax.device_get(decide(key, jnp.asarray(scores, jnp.float32), values))
        return decided


@np.vectorize
def _shortest(x: Any) -> float:
    """Return the shortest decimal number that rounds to ``x`` in float32."""
    return float(str(np.float32(x)))


def decisions_of(lineage: Lineage) -> dict[int, Decision]:
    """Return the decisions of a recorded lineage by iteration, for a run of the same members."""
    return {
        each["iteration"]: Decision(
            np.array(each["parents"], np.int32),
            {name: np.array(x, np.float32) for name, x in each["values"].items()},
        )
        for each in lineage
    }


class Schedule(NamedTuple):
    """The values that led to one member: ``first``, then changes by iteration."""

    slot: int  # the ancestor's slot in the first interval
    first: dict[str, float]
    later: dict[int, dict[str, float]]

    def decisions(self, populations: int) -> dict[int, Decision]:
        """Return the decisions with which fresh seeds ``[1, P]`` repeat the schedule."""
        return {
            iteration: Decision(
                np.zeros((1, populations), np.int32),
                {name: np.full((1, populations), x) for name, x in values.items()},
            )
            for iteration, values in self.later.items()
        }


def schedule(
    lineage: Lineage, configurations: Sequence[Mapping[str, float]], slot: int, population: int
) -> Schedule:
    """Return the schedule of the member that ended in ``slot`` of ``population``.

    ``configurations`` are the population's initial ones.
    """
    later: dict[int, dict[str, float]] = {}
    for each in reversed(lineage):
        values = {name: x[slot][population] for name, x in each["values"].items()}
        later[each["iteration"]] = values
        slot = each["parents"][slot][population]
    return Schedule(slot, dict(configurations[slot]), dict(sorted(later.items())))
