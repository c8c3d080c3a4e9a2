"""The replay buffer: transitions in device memory.

Its rows are a ``Transition`` of arrays ``[S, N, ...]``: ``S`` slots, one for each step of all ``N``
environments. It has no counters. The training loop knows how many steps were written, and that
number is the same for all seeds that train together. As an argument it remains a single number
under ``vmap``, so that writing remains one in-place copy.
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
        slots: number of stored steps per environment; the oldest are overwritten first.
        precision: "half" stores the floats of observations in the bits of bfloat16.
    """

    slots: int
    precision: Precision = "full"

    def empty(self, like: Transition) -> Transition:
        """Return rows of zeros for transitions with the shapes of ``like[N, ...]``."""

        def zeros(x: Any) -> Array:
            return jnp.zeros((self.slots, *x.shape), x.dtype)

        return jax.tree.map(zeros, jax.eval_shape(self._stored, like))

    def nbytes(self, like: Transition) -> int:
        """Return the memory of one buffer, in bytes."""
        stored = jax.tree.leaves(jax.eval_shape(self._stored, like))
        return sum(self.slots * int(np.prod(x.shape)) * x.dtype.itemsize for x in stored)

    def write(self, rows: Transition, transitions: Transition, written: Array | int) -> Transition:
        """Store ``transitions[T, N]`` after the ``written`` steps before them.

        A write must not wrap around. It never does if ``T`` divides ``slots`` and ``written`` is a
        multiple of ``T``.
        """
        at = written % self.slots

        def put(rows: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(rows, new, at, axis=0)

        # A loop of one pass, with a length that XLA does not know: otherwise XLA would merge
        # writing with sampling, and copy the whole buffer to serve both.
        new = self._stored(transitions)
        once = jnp.minimum(written + 1, 1)
        return jax.lax.fori_loop(0, once, lambda _, rows: jax.tree.map(put, rows, new), rows)

    def _stored(self, transitions: Transition) -> Transition:
        """Return transitions as the buffer stores them: without extras, and in its precision."""

        def rounded(x: Array) -> Array:
            if self.precision == "half" and x.dtype == jnp.uint16:
                raise UsageError(
                    "precision is 'half', and observations of uint16 would be taken for rounded "
                    "ones; give full"
                )
            if self.precision == "full" or x.dtype != jnp.float32:
                return x
            # As bits: XLA's CPU back-end would widen the whole bfloat16 buffer at each write.
            return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)

        obs, next_obs = jax.tree.map(rounded, (transitions.obs, transitions.next_obs))
        return transitions._replace(obs=obs, next_obs=next_obs, extras={}, carry=())

    def loaded(self, rows: Rows) -> Rows:
        """Return stored transitions, or a batch of them, with floats in float32 for agents."""

        def widened(x: Array) -> Array:
            if self.precision == "full" or x.dtype != jnp.uint16:
                return x
            return jax.lax.bitcast_convert_type(x, jnp.bfloat16).astype(jnp.float32)

        obs, next_obs = jax.tree.map(widened, (rows.obs, rows.next_obs))
        return rows._replace(obs=obs, next_obs=next_obs)


class Replay(NamedTuple):
    """A buffer to sample from: its rows, and the number of steps written per environment."""

    buffer: ReplayBuffer
    rows: Transition  # [S, N, ...]
    written: Array | int


def check_memory(needed: int, buffer_size: int, devices: int = 1) -> None:
    """Refuse buffers of ``needed`` total bytes, spread over ``devices``, that cannot fit.

    ``buffer_size`` is the size of each buffer, in transitions.

    Raises:
        UsageError: with the sizes, and a ``buffer_size`` that fits.
    """
    total = free_over(devices)
    if total is None:
        return
    # The rest is for networks, the programs themselves, and a checkpoint being written.
    usable = int(0.8 * total)
    if needed > usable:
        raise UsageError(
            f"buffer_size is {buffer_size}, which needs {gib(needed)} for all members, "
            f"and {usable / 2**30:.2f} of {total / 2**30:.2f} free GiB may be taken; "
            f"{int(buffer_size * usable / needed)} fits, and precision 'half' takes less"
        )
