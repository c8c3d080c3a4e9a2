"""Random permutations without sorting."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxrl.types import Array, Key

_ROUNDS = 6


def _hash(x: Array) -> Array:
    """A mixing bijection of uint32 (the finaliser of MurmurHash3, Appleby 2011, public domain)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _factor(n: int) -> int:
    """The largest divisor of ``n`` that is at most ``sqrt(n)``."""
    return next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)


def permutations(key: Key, n: int, count: int) -> Array:
    """``count`` random permutations of ``0 .. n-1``: ``int32[count, n]``.

    Uses a Feistel network on the two digits of the index in the mixed base (n / d, d). Each round
    rotates one digit by a hash of the other, which is a bijection for any hash. This is
    elementwise, so far cheaper than sorting random numbers, which XLA does on one core. Lengths
    whose divisors are too small or too unequal for this are sorted instead.
    """
    right_size = _factor(n)
    left_size = n // right_size
    # A row moves by one of few offsets if its digits are unequal: three rounds add to the left one.
    if right_size < 8 or right_size**3 < n:
        keys = jax.random.split(key, count)
        return jax.vmap(lambda k: jax.random.permutation(k, n))(keys).astype(jnp.int32)

    round_keys = jax.random.bits(key, (count, _ROUNDS), jnp.uint32)[:, :, None]
    index = jnp.arange(n, dtype=jnp.uint32)
    left, right = index // right_size, index % right_size
    for i in range(0, _ROUNDS, 2):
        left = (left + _hash(right ^ round_keys[:, i]) % left_size) % left_size
        right = (right + _hash(left ^ round_keys[:, i + 1]) % right_size) % right_size
    return (left * right_size + right).astype(jnp.int32)
