"""Rollouts: a policy in a vector environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import metrics as m
from jaxrl import rng
from jaxrl.agents import protocol
from jaxrl.envs.vector import VectorEnv, VectorState, select
from jaxrl.types import Array, Extras, Key, PyTree, Transition

# maps carry, observations and a key to actions, carry and extras
Act = Callable[[PyTree, PyTree, Key], tuple[Array, PyTree, Extras]]


def rollout(
    agent: Any,
    state: PyTree,
    env: VectorEnv,
    env_state: VectorState,
    carry: PyTree,
    key: Key,
    steps: int,
) -> tuple[VectorState, PyTree, Transition, m.Metrics]:
    """Take ``steps`` steps in every environment with the exploration policy.

    Returns the environment state, the agent's memory, the transitions ``[T, N]`` and the metrics of
    finished episodes.
    """
    step_key, pool_key = rng.split_if(env.reset_mode == "pool", key)
    act, pool = exploring(agent, state), env.reset_pool(pool_key)
    return play(act, agent, env, env_state, carry, step_key, steps, pool)


def exploring(agent: Any, state: PyTree) -> Act:
    """Return the exploration policy of an agent with this state."""

    def act(carry: PyTree, obs: PyTree, key: Key) -> tuple[Array, PyTree, Extras]:
        return agent.act(state, carry, obs, key, "explore")

    return act


def play(
    act: Act,
    agent: Any,
    env: VectorEnv,
    env_state: VectorState,
    carry: PyTree,
    key: Key,
    steps: int,
    pool: PyTree,
) -> tuple[VectorState, PyTree, Transition, m.Metrics]:
    """``rollout`` with any ``act``. The agent's memory restarts where an episode ended."""
    keys = jax.random.split(key, (steps, 2))  # one split: every split takes time to compile
    remembers = bool(jax.tree.leaves(carry))

    def step(keys: Key, running: tuple, _: None) -> tuple[tuple, tuple]:
        (act_key, env_key), (env_state, carry) = keys, running
        if remembers:
            act_key, carry_key = jax.random.split(act_key)
        action, carry, extras = act(carry, env_state.obs, act_key)
        after, out = env.step(env_key, env_state, action, pool)
        if remembers:
            fresh = protocol.init_carry(agent, carry_key, env.local_envs)
            carry = select(out.terminated | out.truncated, fresh, carry)
        transition = Transition(
            env_state.obs, action, out.reward, out.obs, out.terminated, out.truncated, extras
        )
        episodes = out.info["episode_return"], out.info["episode_length"]
        return (after, carry), (transition, episodes)

    # Unrolling speeds up toy dynamics; for physics it would only lengthen compilation.
    unroll = 4 if env.env.cheap else 1
    start = (env_state, carry)
    (env_state, after), (transitions, episodes) = rng.scan(
        step, start, keys, unroll=unroll, defer=True
    )
    ended = transitions.terminated | transitions.truncated
    transitions = transitions._replace(carry=carry)
    return env_state, after, transitions, episode_metrics(ended, *episodes)


def episode_metrics(ended: Array, returns: Array, lengths: Array) -> m.Metrics:
    """The number, returns and lengths of episodes that ended in a rollout ``[T, N]``."""
    return {
        "episode_return": m.mean_of(returns, where=ended),
        "episode_length": m.mean_of(lengths, where=ended),
        "episodes": m.count_of(ended),
    }


def report_nonfinite(env_state: VectorState) -> tuple[VectorState, m.Metrics]:
    """Return the count of non-finite steps since the last report as a metric, and reset it."""
    count = m.Sum(jnp.sum(env_state.nonfinite).astype(jnp.float32))
    zeros = jnp.zeros_like(env_state.nonfinite)
    return env_state._replace(nonfinite=zeros), {"nonfinite_steps": count}
