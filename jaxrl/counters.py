"""Step counters of two uint32 limbs ``[low, high]``: they can exceed 2^32 without x64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxrl.types import Array


def counter_zero() -> Array:
    """Return a counter at 0: uint32 ``[2]``."""
    return jnp.zeros((2,), jnp.uint32)


def counter_add(counter: Array, amount: int) -> Array:
    """``counter + amount`` for a static ``0 <= amount < 2**32``."""
    low = counter[..., 0] + jnp.uint32(amount)
    carry = (low < counter[..., 0]).astype(jnp.uint32)
    return jnp.stack([low, counter[..., 1] + carry], axis=-1)


def counter_value(counter: Array) -> int:
    """The counter as a Python integer (on the host); for several seeds, the first seed's."""
    low, high = np.asarray(counter).reshape(-1, 2)[0]
    return int(low) + (int(high) << 32)
