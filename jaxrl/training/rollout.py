"""Rollouts: a policy in a vector environment, with all randomness drawn before the loop."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl import metrics as m
from jaxrl.envs.vector import Draws, VectorEnv, VectorState
from jaxrl.sharding import shard_key
from jaxrl.types import Agent, Array, Extras, Key, PyTree, Transition

Act = Callable[[PyTree, PyTree], tuple[Array, Extras]]  # observations and noise to actions


def play(
    act: Act, env: VectorEnv, env_state: VectorState, noise: PyTree, draws: Draws
) -> tuple[VectorState, Transition, m.Metrics]:
    """As many steps of every environment as there are rows of ``noise[T, ...]`` and ``draws``.

    Returns the environments' state, the transitions ``[T, N]`` and the metrics of the episodes that
    ended.
    """

    def step(env_state: VectorState, xs: tuple) -> tuple[VectorState, tuple]:
        noise_t, drawn = xs
        action, extras = act(env_state.obs, noise_t)
        after, out = env.step(env_state, action, drawn._replace(bank=draws.bank))
        transition = Transition(
            env_state.obs, action, out.reward, out.obs, out.terminated, out.truncated, extras
        )
        names = ("episode_return", "episode_length", "nonfinite")
        return after, (transition, [out.info[name] for name in names])

    # Toy dynamics gain from longer loop bodies; unrolled physics would only compile longer.
    unroll = 4 if env.env.cheap else 1
    xs = (noise, draws._replace(bank=()))
    env_state, (transitions, episodes) = jax.lax.scan(step, env_state, xs, unroll=unroll)
    ended = transitions.terminated | transitions.truncated
    return env_state, transitions, episode_metrics(ended, *episodes)


def rollout(
    agent: Agent, state: PyTree, env: VectorEnv, env_state: VectorState, key: Key, steps: int
) -> tuple[VectorState, Transition, m.Metrics]:
    """``steps`` steps of every environment under the exploring policy; returns as ``play`` does."""
    act_key, env_key = jax.random.split(key)
    noise = agent.draw(state, env_state.obs, shard_key(act_key), steps)

    def act(obs: PyTree, noise_t: PyTree) -> tuple[Array, Extras]:
        return agent.act(state, obs, noise_t, "explore")

    return play(act, env, env_state, noise, env.draw(env_key, steps))


def episode_metrics(ended: Array, returns: Array, lengths: Array, nonfinite: Array) -> m.Metrics:
    """Of a rollout ``[T, N]``: the episodes that ended in it, and how many."""
    return {
        "episode_return": m.mean_of(returns, where=ended),
        "episode_length": m.mean_of(lengths, where=ended),
        "episodes": m.count_of(ended),
        "nonfinite_steps": m.Sum(jnp.sum(nonfinite.astype(jnp.float32))),
    }
