"""The replay buffer: transitions in the memory of the device.

Its rows are a ``Transition`` of arrays ``[S, N, ...]``: ``S`` slots, one for each step of all ``N``
environments. It has no counters. The training loop knows how many steps were written, and that
number is the same for all seeds that are trained together; as an argument it stays one number under
``vmap``, so that writing stays one copy in place.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UsageError
from jaxrl.memory import free_over, gib
from jaxrl.types import Array, Batch, Transition

Precision = Literal["full", "half"]
Rows = TypeVar("Rows", Transition, Batch)


@dataclasses.dataclass(frozen=True)
class ReplayBuffer:
    """The dimensions of a buffer, and the operations on its rows.

    Attributes:
        slots: steps that it holds, of every environment; the oldest are overwritten first.
        precision: "half" stores the floats of observations in the bits of bfloat16.
    """

    slots: int
    precision: Precision = "full"

    def empty(self, like: Transition) -> Transition:
        """Return rows of zeros for transitions of the shapes of ``like[N, ...]``."""

        def zeros(x: Any) -> Array:
            return jnp.zeros((self.slots, *x.shape), x.dtype)

        return jax.tree.map(zeros, jax.eval_shape(self._stored, like))

    def nbytes(self, like: Transition) -> int:
        """Return the memory of one buffer, in bytes."""
        stored = jax.tree.leaves(jax.eval_shape(self._stored, like))
        return sum(self.slots * int(np.prod(x.shape)) * x.dtype.itemsize for x in stored)

    def write(self, rows: Transition, transitions: Transition, written: Array | int) -> Transition:
        """Store ``transitions[T, N]`` behind the ``written`` steps before them.

        A write must not wrap around. Where ``T`` divides ``slots`` and ``written`` is a multiple of
        ``T``, it never does.
        """
        at = written % self.slots

        def put(rows: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(rows, new, at, axis=0)

        # A loop of one pass, whose length XLA does not know: it would otherwise merge the writing
        # with the sampling, and copy the whole buffer to serve both.
        new = self._stored(transitions)
        once = jnp.minimum(written + 1, 1)
        return jax.lax.fori_loop(0, once, lambda _, rows: jax.tree.map(put, rows, new), rows)

    def _stored(self, transitions: Transition) -> Transition:
        """Return transitions as the buffer keeps them: without extras, and in its precision."""

        def rounded(x: Array) -> Array:
            if self.precision == "half" and x.dtype == jnp.uint16:
                raise UsageError(
                    "precision is 'half', and observations of uint16 would be taken for rounded "
                    "ones; give full"
                )
            if self.precision == "full" or x.dtype != jnp.float32:
                return x
            # As bits: XLA's CPU back-end would widen a bfloat16 buffer, all of it, at each write.
            return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)

        obs, next_obs = jax.tree.map(rounded, (transitions.obs, transitions.next_obs))
        return transitions._replace(obs=obs, next_obs=next_obs, extras={}, carry=())

    def loaded(self, rows: Rows) -> Rows:
        """Return stored transitions, or a batch of them, as agents take them: floats in float32."""

        def widened(x: Array) -> Array:
            if self.precision == "full" or x.dtype != jnp.uint16:
                return x
            return jax.lax.bitcast_convert_type(x, jnp.bfloat16).astype(jnp.float32)

        obs, next_obs = jax.tree.map(widened, (rows.obs, rows.next_obs))
        return rows._replace(obs=obs, next_obs=next_obs)


class Replay(NamedTuple):
    """A buffer to sample from: its rows, and the steps of every environment written to it."""

    buffer: ReplayBuffer
    rows: Transition  # [S, N, ...]
    written: Array | int


def check_memory(needed: int, buffer_size: int, devices: int = 1) -> None:
    """Refuse buffers of ``needed`` bytes in all, spread over ``devices``, that cannot fit.

    ``buffer_size`` is that of each buffer, in transitions.

    Raises:
        UsageError: with the sizes, and a ``buffer_size`` that fits.
    """
    total = free_over(devices)
    if total is None:
        return
    # The rest is for networks, the programs' own needs, and a checkpoint on its way to the file.
    usable = int(0.8 * total)
    if needed > usable:
        raise UsageError(
            f"buffer_size is {buffer_size}, which needs {gib(needed)} for all members, "
            f"and {usable / 2**30:.2f} of {total / 2**30:.2f} free GiB may be taken; "
            f"{int(buffer_size * usable / needed)} fits, and precision 'half' takes less"
        )
