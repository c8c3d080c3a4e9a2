"""Checks of an environment's input: actions in ``step``, options in ``make``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UsageError, nearest
from jaxrl.require import shown
from jaxrl.types import Array, Box, Discrete


def check_action(space: Box | Discrete, action: Any) -> tuple[Array, Array]:
    """The action in the space's dtype, and ``legal``, a boolean scalar.

    A traced index cannot raise, so ``legal`` tells whether it is in ``0 .. n-1``; the returned
    index always is. The environment then returns ``refuse(legal, reward)``. For a ``Box`` only
    shape and dtype are checked; the vector environment clips to the bounds.

    Raises:
        ValueError: wrong shape (also while tracing), or a concrete index out of range.
        TypeError: a float for an index, or not a number (also while tracing).
    """
    concrete = not isinstance(action, jax.core.Tracer)
    if concrete:
        action = np.asarray(action)
    if action.shape != space.shape:
        raise ValueError(f"action has shape {action.shape}; expected {space.shape}")
    if isinstance(space, Box):
        if not (jnp.issubdtype(action.dtype, np.floating) or _integer(action)):
            raise TypeError(f"action has dtype {action.dtype}; expected {np.dtype(space.dtype)}")
        return jnp.asarray(action, space.dtype), jnp.asarray(True)

    if not _integer(action):
        raise TypeError(f"action has dtype {action.dtype}; expected an integer 0 .. {space.n - 1}")
    legal = (action >= 0) & (action < space.n)
    if concrete and not legal:
        raise ValueError(f"action is {action}; expected an integer 0 .. {space.n - 1}")
    return jnp.asarray(jnp.clip(action, 0, space.n - 1), space.dtype), jnp.asarray(legal)


def refuse(legal: Array, reward: Any) -> Array:
    """``reward`` as float32[], or NaN for an illegal action.

    ``VectorEnv`` ends an episode at a non-finite reward and counts it.
    """
    return jnp.where(legal, jnp.asarray(reward, jnp.float32), jnp.nan)


def check_options(name: str, options: Iterable[str], valid: Collection[str]) -> None:
    """Refuse options that ``name`` does not have.

    Raises:
        UsageError: names the option and the closest valid ones.
    """
    for option in options:
        if option not in valid:
            hint = nearest(option, valid) if valid else "it has none"
            raise UsageError(f"{name} has no option {option!r}; {hint}")


def check_positive(name: str, option: str, value: Any) -> int:
    """``value`` as an integer of at least 1, else ``UsageError``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UsageError(f"{name}: {option} is {shown(value)}; it must be an integer of at least 1")
    return int(value)


def check_like(name: str, option: str, value: Any, default: Any) -> None:
    """Raise UsageError unless ``value`` is a bool, number or tuple of numbers like ``default``.

    NaN is refused. Ranges may be infinite, single numbers only if the default is; a range's ends
    are in order if the default's are.
    """

    def number(x: Any) -> bool:
        return isinstance(x, Real) and not isinstance(x, bool) and not math.isnan(x)

    if isinstance(default, bool):
        fits = isinstance(value, bool)
    elif isinstance(default, tuple):
        fits = isinstance(value, (tuple, list)) and len(value) == len(default)
        fits = fits and all(map(number, value))
        if fits and len(value) == 2 and default[0] < default[1]:
            fits = value[0] < value[1]
    else:
        fits = number(value) and (math.isfinite(value) or math.isinf(default))
    if not fits:
        raise UsageError(f"{name}: {option} is {shown(value)}; it must be like {default!r}")


def check_nvidia(name: str, option: str, value: str, instead: str) -> None:
    """Refuse an option value that only runs on NVIDIA GPUs.

    Raises:
        UsageError: JAX's default device is not an NVIDIA GPU, or Warp is not installed.
    """
    version = jax.local_devices()[0].client.platform_version
    if not version.startswith("cuda"):
        raise UsageError(
            f"{name}: {option} {value!r} needs an NVIDIA GPU, and JAX's backend is "
            f"{jax.default_backend()}; choose {option} {instead}"
        )
    if importlib.util.find_spec("warp") is None:
        raise UsageError(f"{name}: {option} {value!r} needs the package; pip install warp-lang")


def _integer(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, np.integer)
