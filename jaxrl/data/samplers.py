"""Samplers: how batches are drawn from the replay buffer, a dataset, or both.

    sampler.sample(store, data, key, shape, gamma) -> Batch[*shape]

``store`` is a ``Replay``, ``data`` a ``Dataset``; either may be ``()`` for samplers that do not
read it (``needs_replay``, ``needs_data``). Each shard draws rows of its own.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxrl.data.dataset import Dataset
from jaxrl.data.replay import Replay
from jaxrl.require import plain, require, require_integer
from jaxrl.rng import row_key
from jaxrl.types import Array, Batch, Key, Transition


@dataclasses.dataclass(frozen=True)
class UniformReplay:
    """Uniform draws from the replay buffer, with n-step returns.

    With ``n_step = n`` a transition runs over the ``m <= n`` steps until its episode ends, by
    itself or by its time limit: its reward is ``sum_{k<m} gamma^k r_k``, ``next_obs`` is that of
    the last step, and ``discount`` is ``gamma^m``, or 0 where that step terminated. The newest
    ``n - 1`` steps are not drawn as first ones.
    """

    n_step: int = 1
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
        if self.n_step > 1:
            return self._summed(store, first, env, gamma)
        rows = store.buffer.loaded(jax.tree.map(lambda x: x[first, env], store.rows))
        return to_batch(rows, gamma)

    def _summed(self, store: Replay, first: Array, env: Array, gamma: Array | float) -> Batch:
        rows, slots = store.rows, store.rows.reward.shape[0]

        def forward(k: int, carry: tuple) -> tuple:
            active, last, total, discount = carry
            slot = (first + k) % slots
            last = jnp.where(active, slot, last)
            total = total + jnp.where(active, discount * rows.reward[slot, env], 0.0)
            discount = jnp.where(active, discount * gamma, discount)
            active = active & ~(rows.terminated[slot, env] | rows.truncated[slot, env])
            return active, last, total, discount

        zeros = jnp.zeros(first.shape)
        start = (zeros == 0, first, zeros, zeros + 1.0)
        _, last, total, discount = jax.lax.fori_loop(0, self.n_step, forward, start)
        begun = store.buffer.loaded(jax.tree.map(lambda x: x[first, env], rows))
        ended = store.buffer.loaded(jax.tree.map(lambda x: x[last, env], rows))
        discount = jnp.where(ended.terminated, 0.0, discount)
        return Batch(begun.obs, begun.action, total, discount, ended.next_obs, {})


@dataclasses.dataclass(frozen=True)
class UniformDataset:
    """Uniform draws from the dataset."""

    needs_replay: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    def check(self) -> None:
        """Accept: there is nothing to set."""

    def sample(
        self, store: Any, data: Dataset, key: Key, shape: tuple[int, ...], gamma: Array | float
    ) -> Batch:
        """Return a batch ``[*shape]``."""
        bits = jax.random.bits(row_key(key), shape)
        index = (bits % jnp.uint32(data.size)).astype(jnp.int32)
        rows = jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data)
        return to_batch(rows, gamma)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Batches whose first ``share`` of rows is from the dataset, the rest from the replay buffer.

    (Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline Data": a share of 0.5.)
    """

    share: float = 0.5
    online: UniformReplay = UniformReplay()
    offline: UniformDataset = UniformDataset()
    needs_replay: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    @property
    def n_step(self) -> int:
        """Rewards that are summed online."""
        return self.online.n_step

    def check(self) -> None:
        """Raise UsageError for a share outside [0, 1]."""
        require("share", self.share, 0, 1)
        self.online.check()
        self.offline.check()

    def sample(
        self, store: Replay, data: Dataset, key: Key, shape: tuple[int, ...], gamma: Array | float
    ) -> Batch:
        """Return a batch ``[*shape]``; the share is rounded to whole rows."""
        offline_key, online_key = jax.random.split(key)
        *leading, rows = shape
        count = math.floor(self.share * rows + 0.5)
        offline = self.offline.sample(store, data, offline_key, (*leading, count), gamma)
        online = self.online.sample(store, data, online_key, (*leading, rows - count), gamma)
        axis = len(leading)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis), offline, online)


def to_batch(rows: Transition | Dataset, gamma: Array | float) -> Batch:
    """Return transitions of single steps as a batch."""
    discount = jnp.where(rows.terminated, 0.0, gamma)
    return Batch(rows.obs, rows.action, rows.reward, discount, rows.next_obs, {})
