"""Observations, actions and rewards of fewer bits than float32."""

from __future__ import annotations

import jax.numpy as jnp

from jaxrl.types import Array


def widened(x: Array) -> Array:
    """Return ``x`` in at least float32.

    Integers and floats of 16 bits overflow in sums, and 16 bits round 1 - 1e-6 to 1.
    """
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
