"""Samplers: how batches are drawn from the replay buffer, a dataset, or both.

    sampler.sample(store, data, key, shape, gamma) -> Batch[*shape]

``store`` is a ``Replay``, and ``data`` is a ``Dataset``; either may be ``()`` for samplers that do
not read it (``needs_replay``, ``needs_data``). Each shard draws its own rows. A sampler of windows
also says how many observations each has (``rows_per_draw``), to check that batches fit in memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.data.dataset import Dataset
from jaxrl.data.replay import Replay
from jaxrl.errors import UsageError
from jaxrl.require import plain, require, require_integer
from jaxrl.rng import row_key
from jaxrl.sharding import shard_count
from jaxrl.types import Array, Batch, Extras, Key, Transition

OF_FIRST_STEP = ("return_to_go", "first_row")  # extras of an n-step transition's first step


@dataclasses.dataclass(frozen=True)
class UniformReplay:
    """Uniform draws from the replay buffer, with n-step returns.

    With ``n_step = n`` a transition covers ``m <= n`` steps; it stops early if the episode ends, by
    termination or time limit. Its reward is ``sum_{k<m} gamma^k r_k``, ``next_obs`` comes from the
    last step, and ``discount`` is ``gamma^m``, or 0 if that step terminated. The newest ``n - 1``
    steps are not drawn as first steps.

    ``extras`` names what an agent reads in addition to the fields of a ``Batch``. ``next_action``
    is the action after the last step, where ``has_next_action``. ``return_to_go`` is the first
    step's, as defined by ``Dataset.with_return_to_go``, and -inf until its episode has ended.
    """

    n_step: int = 1
    extras: tuple[str, ...] = ()
    needs_replay: ClassVar[bool] = True
    needs_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_step", plain(self.n_step))

    def check(self) -> None:
        """Raise UsageError for an ``n_step`` below 1."""
        require_integer("n_step", self.n_step)

    def sample(
        self, store: Replay, data: Any, key: Key, shape: tuple[int, ...], gamma: Array | float
    ) -> Batch:
        """Return a batch ``[*shape]``."""
        slots, envs = store.rows.reward.shape
        bits = jax.random.bits(row_key(key), (2, *shape))
        held = jnp.minimum(store.written, slots)
        starts = jnp.maximum(held - (self.n_step - 1), 1).astype(jnp.uint32)
        age = (bits[0] % starts).astype(jnp.int32) + self.n_step  # steps before ``written``
        first = (store.written - age) % slots
        env = (bits[1] % jnp.uint32(envs)).astype(jnp.int32)

        def rows(k: Array | int) -> Callable[[Array], Array]:
            slot = first if isinstance(k, int) else (first + k) % slots
            return lambda x: x[slot, env]

        batch, last = _summed(store.rows, rows, self.n_step, gamma)
        extras = self._extras(store, first, (first + last) % slots, env, gamma)
        return store.buffer.loaded(batch)._replace(extras=extras)

    def _extras(
        self, store: Replay, first: Array, last: Array, env: Array, gamma: Array | float
    ) -> Extras:
        """Return the extras of transitions from slot ``first`` to slot ``last``."""
        rows, slots = store.rows, store.rows.reward.shape[0]
        newest = last == (store.written - 1) % slots
        ended = rows.terminated[last, env] | rows.truncated[last, env]
        known = {
            "next_action": lambda: rows.action[(last + 1) % slots, env],
            "has_next_action": lambda: ~(newest | ended),
            "return_to_go": lambda: returns_to_go(store, gamma)[first, env],
        }
        for name in self.extras:
            if name not in known:
                raise UsageError(
                    f"batches need {name!r}, which a replay buffer does not hold; it has "
                    f"{', '.join(known)}"
                )
        return {name: known[name]() for name in self.extras}


@dataclasses.dataclass(frozen=True)
class UniformDataset:
    """Uniform draws from the dataset, with n-step returns as in ``UniformReplay``.

    The dataset's extras come from the transition's last step, except those in ``OF_FIRST_STEP``.
    """

    n_step: int = 1
    needs_replay: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_step", plain(self.n_step))

    def check(self) -> None:
        """Raise UsageError for an ``n_step`` below 1."""
        require_integer("n_step", self.n_step)

    def sample(
        self, store: Any, data: Dataset, key: Key, shape: tuple[int, ...], gamma: Array | float
    ) -> Batch:
        """Return a batch ``[*shape]``."""
        return transitions(data, self.rows(data, key, shape), self.n_step, gamma)

    def rows(self, data: Dataset, key: Key, shape: tuple[int, ...]) -> Array:
        """Return the first rows of the transitions ``int32[*shape]``."""
        return uniform_rows(data, key, shape)


@dataclasses.dataclass(frozen=True)
class WeightedDataset(UniformDataset):
    """Draws from the dataset in proportion to the weights set by ``jaxrl.data.weighted``.

    (Hong et al. 2023, "Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory
    Weighting".)
    """

    def rows(self, data: Dataset, key: Key, shape: tuple[int, ...]) -> Array:
        """Return the first rows of the transitions ``int32[*shape]``.

        Raises:
            UsageError: for a dataset without weights.
        """
        if not jax.tree.leaves(data.cumulative):
            raise UsageError(
                "WeightedDataset needs a dataset with weights; give weighted(dataset, 'return')"
            )
        bits = jax.random.bits(row_key(key), shape)
        row = jnp.searchsorted(data.cumulative, bits, side="right").astype(jnp.int32)
        return jnp.minimum(row, data.size - 1)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Batches: the first ``share`` of the rows from the dataset, the rest from the replay buffer.

    (Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline Data": a share of 0.5.)
    Online rows also have the dataset's extras.
    """

    share: float = 0.5
    online: UniformReplay = UniformReplay()
    offline: Any = UniformDataset()
    needs_replay: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    @property
    def n_step(self) -> int:
        """The number of rewards summed in online rows."""
        return self.online.n_step

    def check(self) -> None:
        """Raise UsageError for a share outside [0, 1]."""
        require("share", self.share, 0, 1)
        self.online.check()
        self.offline.check()

    def sample(
        self, store: Replay, data: Dataset, key: Key, shape: tuple[int, ...], gamma: Array | float
    ) -> Batch:
        """Return a batch ``[*shape]``; the share is rounded to whole rows of each shard."""
        offline_key, online_key = jax.random.split(key)
        *leading, rows = shape
        count = math.floor(self.share * rows + 0.5)
        offline = self.offline.sample(store, data, offline_key, (*leading, count), gamma)
        sampler = dataclasses.replace(self.online, extras=tuple(offline.extras))
        online = sampler.sample(store, data, online_key, (*leading, rows - count), gamma)
        axis = len(leading)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis), offline, online)


@dataclasses.dataclass(frozen=True)
class Pooled:
    """Uniform draws from the dataset and the replay buffer, taken together as one.

    The share of the dataset falls as the replay buffer fills: ``D / (D + held)``. This is like a
    buffer that starts with the dataset, but the dataset is stored once for all seeds, and never
    overwritten. Online rows also have the dataset's extras.
    """

    online: UniformReplay = UniformReplay()
    offline: Any = UniformDataset()
    needs_replay: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    @property
    def n_step(self) -> int:
        """The number of rewards summed in online rows."""
        return self.online.n_step

    def check(self) -> None:
        """Raise UsageError if either sampler does."""
        self.online.check()
        self.offline.check()

    def sample(
        self, store: Replay, data: Dataset, key: Key, shape: tuple[int, ...], gamma: Array | float
    ) -> Batch:
        """Return a batch ``[*shape]``."""
        choice_key, offline_key, online_key = jax.random.split(key, 3)
        slots, envs = store.rows.reward.shape
        held = jnp.minimum(store.written, slots) * jnp.float32(envs * shard_count())
        offline = self.offline.sample(store, data, offline_key, shape, gamma)
        sampler = dataclasses.replace(self.online, extras=tuple(offline.extras))
        online = sampler.sample(store, data, online_key, shape, gamma)
        chosen = jax.random.uniform(row_key(choice_key), shape) < data.size / (data.size + held)

        def either(a: Array, b: Array) -> Array:
            return jnp.where(chosen.reshape(*shape, *[1] * (a.ndim - len(shape))), a, b)

        return jax.tree.map(either, offline, online)


def returns_to_go(store: Replay, gamma: Array | float) -> Array:
    """Return the discounted sums of rewards to the end of each episode: ``[S, N]``.

    They are -inf in unfinished episodes.
    """
    rows, slots = store.rows, store.rows.reward.shape[0]
    oldest = store.written % slots  # by age, unused slots come before the first step

    def by_age(x: Array) -> Array:
        return jnp.roll(x, -oldest, axis=0)

    reward, ended = by_age(rows.reward), by_age(rows.terminated | rows.truncated)

    def joined(later: Any, earlier: Any) -> Any:
        # For ranges of steps: the sum of rewards, the factor of what follows, any end inside.
        total, factor, end = earlier
        return total + factor * later[0], factor * later[1], end | later[2]

    factor = jnp.where(ended, 0.0, gamma)
    total, _, known = jax.lax.associative_scan(joined, (reward, factor, ended), reverse=True)
    return jnp.roll(jnp.where(known, total, -jnp.inf), oldest, axis=0)


def uniform_rows(data: Dataset, key: Key, shape: tuple[int, ...]) -> Array:
    """Return uniform rows of the dataset ``int32[*shape]``."""
    bits = jax.random.bits(row_key(key), shape)
    return (bits % jnp.uint32(data.size)).astype(jnp.int32)


def rows_at(x: Array, row: Array) -> Array:
    """Return rows of ``x[D, ...]``; all indices are in range."""
    return jnp.asarray(x).at[row].get(mode="promise_in_bounds")


def transitions(data: Dataset, first: Array, n_step: int, gamma: Array | float) -> Batch:
    """Return the dataset's transitions that start at rows ``first``, of up to ``n_step`` steps."""

    def rows(k: Array | int) -> Callable[[Array], Array]:
        # Nothing is summed after the last row, since an episode ends there.
        row = first if isinstance(k, int) else jnp.minimum(first + k, data.size - 1)
        return lambda x: rows_at(x, row)

    batch, last = _summed(data, rows, n_step, gamma)
    at = {name: rows(0 if name in OF_FIRST_STEP else last) for name in data.extras}
    extras = {name: jax.tree.map(at[name], x) for name, x in data.extras.items()}
    return batch._replace(extras=extras)


def _summed(
    rows: Transition | Dataset,
    at: Callable[[Array | int], Callable[[Array], Array]],
    n_step: int,
    gamma: Array | float,
) -> tuple[Batch, Array | int]:
    """Return transitions of up to ``n_step`` steps, and the number of steps from first to last.

    ``at(k)`` reads, from an array of rows, the rows ``k`` steps after the first.
    """
    first = at(0)
    obs, action = jax.tree.map(first, (rows.obs, rows.action))
    if n_step == 1:
        next_obs = jax.tree.map(first, rows.next_obs)
        discount = jnp.where(first(rows.terminated), 0.0, gamma)
        return Batch(obs, action, first(rows.reward), discount, next_obs, {}), 0

    shape = first(rows.reward).shape
    steps = (n_step, *[1] * len(shape))
    every = at(jnp.arange(n_step).reshape(steps))  # all steps at once: [n, *shape]
    going = ~(every(rows.terminated) | every(rows.truncated))
    active = jnp.cumprod(jnp.concatenate([jnp.ones((1, *shape), bool), going[:-1]]), axis=0)
    powers = jnp.cumprod(jnp.full(n_step, gamma))
    before = jnp.concatenate([jnp.ones(1), powers[:-1]]).reshape(steps)  # gamma^k
    total = jnp.sum(before * active * every(rows.reward), axis=0)
    last = jnp.sum(active, axis=0) - 1
    ended = at(last)
    discount = jnp.where(ended(rows.terminated), 0.0, powers[last])
    return Batch(obs, action, total, discount, jax.tree.map(ended, rows.next_obs), {}), last
