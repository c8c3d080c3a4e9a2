"""Epsilon-greedy choices among discrete actions, by the largest of their values."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import optim
from jaxrl.errors import UsageError
from jaxrl.hyper import require
from jaxrl.types import Array, Discrete, Key, Mode, Spec


class Chance(NamedTuple):
    """The randomness of an epsilon-greedy choice."""

    uniform: Array  # [...], in [0, 1): below epsilon, it explores
    action: Array  # int32[...], what it then does


def chance(key: Key, shape: tuple[int, ...], actions: int) -> Chance:
    """The randomness of ``shape`` epsilon-greedy choices among so many ``actions``."""
    uniform_key, action_key = jax.random.split(key)
    uniform = jax.random.uniform(uniform_key, shape)
    return Chance(uniform, jax.random.randint(action_key, shape, 0, actions))


def choose(q: Array, epsilon: Array, key: Key | Chance, mode: Mode) -> Array:
    """The best action by the values ``q[..., n]``, or unless ``greedy``, by epsilon, a random one.

    ``key`` may be randomness that ``chance`` drew. Returns int32 ``[...]``.
    """
    best = jnp.argmax(q, axis=-1).astype(jnp.int32)
    if mode == "greedy":
        return best
    drawn = key if isinstance(key, Chance) else chance(key, best.shape, q.shape[-1])
    return jnp.where(drawn.uniform < epsilon, drawn.action, best)


def falling(updates: Array, start: Array | float, end: Array | float, over: Array | float) -> Array:
    """Epsilon after so many ``updates``: it falls linearly, and stays where it starts for 0."""
    return end + (start - end) * optim.linear_decay(updates, over)


def over_fraction(agent: Any, fraction: float, updates: float) -> Any:
    """``agent``, whose epsilon falls over that fraction of so many updates unless it says itself.

    Raises:
        UsageError: for a fraction outside [0, 1].
    """
    require("epsilon_fraction", fraction, 0, 1)
    return agent if agent.epsilon_over else agent.replace(epsilon_over=fraction * updates)


def number_of_actions(spec: Spec, agent: str, env: str = "this environment") -> int:
    """How many actions there are for ``agent`` to choose from, in ``env``: names for the error.

    Raises:
        UsageError: if they are continuous.
    """
    if not isinstance(spec.action, Discrete):
        raise UsageError(
            f"{agent} needs discrete actions; {env} has continuous ones; "
            "gymnax/CartPole-v1 has discrete ones"
        )
    return spec.action.n
