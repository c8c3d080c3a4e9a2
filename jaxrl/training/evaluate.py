"""Evaluation: whole episodes of a fixed policy, inside ``jit``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.agents import protocol
from jaxrl.envs.vector import rescale, select
from jaxrl.types import Array, Environment, Key, Mode, PyTree

DEFAULT_LIMIT = 1000  # steps, for environments without a time limit
EVALUATION_SEED = 2**31 - 1  # gives all seeds, runs and checkpoints the same starts
_STEPS = 2**31 - 1  # more than any reset's number of key splits


class Evaluation(NamedTuple):
    """Undiscounted returns and lengths of ``E`` episodes, and whether the physics stayed finite."""

    returns: Array  # float32[E]
    lengths: Array  # int32[E]
    finite: Array  # bool[E]


def step_key(key: Key, t: Array) -> Key:
    """The key for step ``t`` of the episode that began with ``env.reset(key)``.

    ``fold_in(key, t)`` would not work: it equals ``split(key, n)[t]``, which the reset may have
    used.
    """
    return jax.random.fold_in(jax.random.fold_in(key, _STEPS), t)


class _Episodes(NamedTuple):
    inner: PyTree
    carry: PyTree
    obs: PyTree
    alive: Array
    result: Evaluation


def evaluate(
    agent: Any,
    state: PyTree,
    env: Environment,
    keys: Key,
    mode: Mode = "greedy",
    max_steps: int | None = None,
) -> Evaluation:
    """Run one episode from each of ``keys[E]`` until it ends or reaches ``max_steps``.

    Equal keys give equal starts, so evaluations are paired over seeds and checkpoints. The loop
    stops as soon as every episode has ended. An episode whose observation or reward turns
    non-finite ends there, without that reward.
    """
    limit = max_steps or env.spec.max_steps or DEFAULT_LIMIT
    episodes = keys.shape[0]
    inner, obs = jax.vmap(env.reset)(keys)
    carry_key = jax.vmap(step_key, (0, None))(keys, jnp.int32(limit))[0]  # not used by any step
    carry = protocol.init_carry(agent, carry_key, episodes)
    zeros = jnp.zeros(episodes)
    alive = jnp.ones(episodes, bool)
    start = _Episodes(inner, carry, obs, alive, Evaluation(zeros, zeros.astype(jnp.int32), alive))

    def going(carry: tuple[Array, _Episodes]) -> Array:
        t, running = carry
        return (t < limit) & jnp.any(running.alive)

    def advance(carry: tuple[Array, _Episodes]) -> tuple[Array, _Episodes]:
        t, running = carry
        step_keys = jax.vmap(step_key, (0, None))(keys, t)
        return t + 1, _advance(agent, state, env, running, step_keys, mode)

    _, done = jax.lax.while_loop(going, advance, (jnp.int32(0), start))
    return done.result


def _advance(
    agent: Any, state: PyTree, env: Environment, running: _Episodes, keys: Key, mode: Mode
) -> _Episodes:
    """One step of every episode that is still alive."""
    split = jax.vmap(jax.random.split)(keys)
    act_key, env_keys = split[0, 0], split[:, 1]
    action, carry, _ = agent.act(state, running.carry, running.obs, act_key, mode)
    action = rescale(env.spec.action, action)
    inner, step = jax.vmap(env.step)(env_keys, running.inner, action)

    leaves = jax.tree.leaves((step.obs, step.reward))
    rows = (jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1) for x in leaves)
    finite = jnp.stack(list(rows)).all(axis=0)
    result = running.result
    counted = running.alive & finite
    result = Evaluation(
        returns=result.returns + jnp.where(counted, step.reward, 0.0),
        lengths=result.lengths + running.alive,
        finite=result.finite & (finite | ~running.alive),
    )
    alive = counted & ~(step.terminated | step.truncated)
    inner, obs = select(alive, (inner, step.obs), (running.inner, running.obs))
    return _Episodes(inner, carry, obs, alive, result)
