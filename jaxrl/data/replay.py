"""Replay: a ring of transitions in the memory of the device.

A ring is a pytree of arrays ``[S, N, ...]``: ``S`` slots, one for each step of all ``N``
environments. It has no counters. How many steps were written is known to the training loop, and is
the same for all seeds that are trained together; as an argument it stays one number under ``vmap``,
so that writing stays one copy in place.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UsageError
from jaxrl.memory import free_over
from jaxrl.types import Array, Transition

Ring = Transition  # with leaves [S, N, ...]; its extras are the training loop's, and none at first
Precision = Literal["full", "half"]


@dataclasses.dataclass(frozen=True)
class Replay:
    """The ring's dimensions, and what is done with one.

    Attributes:
        slots: steps that it holds, of every environment; the oldest is overwritten first.
        n_step: rewards of so many steps are summed; >= 1.
        precision: "half" stores the floats of observations in the bits of bfloat16.
    """

    slots: int
    n_step: int = 1
    precision: Precision = "full"

    def empty(self, like: Transition) -> Ring:
        """A ring of zeros for transitions of the shapes of ``like[N, ...]``."""

        def zeros(x: Any) -> Array:
            return jnp.zeros((self.slots, *x.shape), x.dtype)

        stored = jax.eval_shape(self._stored, like)
        return jax.tree.map(zeros, stored)

    def nbytes(self, like: Transition) -> int:
        """The memory of one ring, in bytes."""
        stored = jax.tree.leaves(jax.eval_shape(self._stored, like))
        return sum(self.slots * int(np.prod(x.shape)) * x.dtype.itemsize for x in stored)

    def write(self, ring: Ring, transitions: Transition, written: Array | int) -> Ring:
        """Store ``transitions[T, N]`` behind the ``written`` steps before them.

        A write must not wrap around. Where ``T`` divides ``slots`` and ``written`` is a multiple of
        ``T``, it never does.
        """
        at = written % self.slots

        def put(rows: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(rows, new, at, axis=0)

        # A loop of one pass, of which XLA does not know how many it has: it would otherwise merge
        # the writing with the sampling, and copy the whole ring to serve both.
        new = self._stored(transitions)
        once = jnp.minimum(written + 1, 1)
        rows = ring._replace(extras={})
        rows = jax.lax.fori_loop(0, once, lambda _, rows: jax.tree.map(put, rows, new), rows)
        return rows._replace(extras=ring.extras)

    def sample(self, ring: Ring, bits: Array, written: Array | int, gamma: Array) -> Transition:
        """Transitions ``[...]``, drawn uniformly by random ``bits`` (uint32 ``[2, ...]``).

        With ``n_step = n`` a transition runs over the ``m <= n`` steps until its episode ends, by
        itself or by its time limit: its reward is ``sum_{k<m} gamma^k r_k``, its successor and its
        end are those of the last step, and ``extras["steps"]`` is ``m``. A bootstrap is discounted
        by ``gamma^m``. The newest ``n - 1`` steps are not drawn as firsts.
        """
        ring = ring._replace(extras={})
        envs = ring.reward.shape[1]
        held = jnp.minimum(written, self.slots)
        starts = jnp.maximum(held - (self.n_step - 1), 1).astype(jnp.uint32)
        age = (bits[0] % starts).astype(jnp.int32) + self.n_step  # steps before ``written``
        first = (written - age) % self.slots
        env = (bits[1] % jnp.uint32(envs)).astype(jnp.int32)
        if self.n_step == 1:
            return self._loaded(jax.tree.map(lambda rows: rows[first, env], ring))
        return self._several(ring, first, env, gamma)

    def _several(self, ring: Ring, first: Array, env: Array, gamma: Array) -> Transition:
        def forward(k: int, carry: tuple) -> tuple:
            going, last, total, steps, discount = carry
            slot = (first + k) % self.slots
            last = jnp.where(going, slot, last)
            total = total + jnp.where(going, discount * ring.reward[slot, env], 0.0)
            steps = steps + going
            going = going & ~(ring.terminated[slot, env] | ring.truncated[slot, env])
            return going, last, total, steps, discount * gamma

        zeros = jnp.zeros(first.shape)
        start = (zeros == 0, first, zeros, zeros.astype(jnp.int32), jnp.float32(1))
        _, last, total, steps, _ = jax.lax.fori_loop(0, self.n_step, forward, start)
        begun = jax.tree.map(lambda rows: rows[first, env], ring)
        ended = jax.tree.map(lambda rows: rows[last, env], ring)
        sums = begun._replace(
            reward=total,
            next_obs=ended.next_obs,
            terminated=ended.terminated,
            truncated=ended.truncated,
            extras={"steps": steps},
        )
        return self._loaded(sums)

    def _stored(self, transitions: Transition) -> Transition:
        """As the ring keeps them: without extras, and in its precision."""

        def rounded(x: Array) -> Array:
            if self.precision == "half" and x.dtype == jnp.uint16:
                raise UsageError(
                    "precision is 'half', and observations of uint16 would be taken for rounded "
                    "ones; give full"
                )
            if self.precision == "full" or x.dtype != jnp.float32:
                return x
            # As bits: XLA's CPU back-end would widen a ring of bfloat16, all of it, at each write.
            return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)

        obs, next_obs = jax.tree.map(rounded, (transitions.obs, transitions.next_obs))
        return transitions._replace(obs=obs, next_obs=next_obs, extras={})

    def _loaded(self, transitions: Transition) -> Transition:
        """As agents take them: floats in float32."""

        def widened(x: Array) -> Array:
            if self.precision == "full" or x.dtype != jnp.uint16:
                return x
            return jax.lax.bitcast_convert_type(x, jnp.bfloat16).astype(jnp.float32)

        obs, next_obs = jax.tree.map(widened, (transitions.obs, transitions.next_obs))
        return transitions._replace(obs=obs, next_obs=next_obs)


def check_memory(needed: int, capacity: int, devices: int = 1) -> None:
    """Refuse rings of ``needed`` bytes in all, spread over so many devices, that cannot fit.

    ``capacity`` is that of each ring, in transitions.

    Raises:
        UsageError: with the sizes, and a capacity that fits.
    """
    total = free_over(devices)
    if total is None:
        return
    # The rest is for networks, the programs' own needs, and a checkpoint on its way to the file.
    usable = int(0.8 * total)
    if needed > usable:
        raise UsageError(
            f"capacity is {capacity}, which needs {needed / 2**30:.2f} GiB for all members, and "
            f"{usable / 2**30:.2f} of {total / 2**30:.2f} free GiB may be taken; "
            f"{int(capacity * usable / needed)} fits, and precision 'half' takes less"
        )
