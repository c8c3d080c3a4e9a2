"""Recording datasets: any policy in any environment, whole episodes, in one compiled program."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import struct

from jaxrl.agents import protocol
from jaxrl.data.dataset import Dataset
from jaxrl.data.replay import Replay
from jaxrl.data.units import clip
from jaxrl.envs.vector import VectorEnv, VectorState
from jaxrl.errors import RunError, UsageError
from jaxrl.record.policy import Policy
from jaxrl.require import require_choice, require_integer
from jaxrl.rng import row_key
from jaxrl.training.evaluate import DEFAULT_LIMIT
from jaxrl.training.rollout import play
from jaxrl.types import Array, Box, Environment, Key, Mode, PyTree, Spec, Transition

NUM_ENVS = 64  # environments stepped together, unless the caller says otherwise
_ROWS = 1 << 16  # per call of the program, before returning to the host


@struct.dataclass
class UniformAgent:
    """A stateless agent that draws uniform actions."""

    spec: Spec = struct.field(pytree_node=False)

    def act(
        self, state: PyTree, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, dict]:
        """Return actions for ``obs[N, *O]``: uniform in [-1, 1] or over the indices."""
        space, n = self.spec.action, jax.tree.leaves(obs)[0].shape[0]
        if isinstance(space, Box):
            action = jax.random.uniform(row_key(key), (n, *space.shape), minval=-1.0, maxval=1.0)
        else:
            action = jax.random.randint(row_key(key), (n,), 0, space.n)
        return action, carry, {}


def record(
    policy: Any,
    env: Environment | VectorEnv,
    key: Key,
    *,
    episodes: int | None = None,
    steps: int | None = None,
    mode: Mode | None = None,
    num_envs: int | None = None,
) -> Dataset:
    """Play a policy and return whole episodes, with actions in the agent's units.

    Environments are played in parallel. The first episodes of all environments come first, then
    their second episodes, and so on. This order does not depend on episode lengths, so short
    episodes are not preferred. Calls with the same ``VectorEnv`` share one compiled program.

    Args:
        policy: a loaded ``Policy``, a pair ``(agent, state)`` of a bound agent, or ``"uniform"``
            for uniform actions.
        env: an environment, or a ``VectorEnv`` with its own number of copies, time limit and
            resets. Without a time limit, episodes are cut after 1,000 steps.
        key: a typed key.
        episodes: the number of episodes.
        steps: instead, the number of transitions to reach; the episode that reaches it is the last.
        mode: "greedy", "sample" or "explore"; default that of the ``Policy``, else "sample".
        num_envs: copies of an ``Environment``; default at most 64.

    Raises:
        UsageError: for incompatible arguments, or the policy of another environment.
        RunError: if the environment's physics does not stay finite.
    """
    if (episodes is None) == (steps is None):
        raise UsageError("give either episodes or steps, such as episodes=100")
    require_integer("episodes", episodes, 1, optional=True)
    require_integer("steps", steps, 1, optional=True)
    venv = _vector_env(env, episodes, num_envs)
    agent, state, chosen = _player(policy, venv.spec, mode)
    limit = venv.spec.max_steps or DEFAULT_LIMIT
    length = max(min(limit, _ROWS // venv.num_envs), 1)
    run = partial(_steps, env=venv, mode=chosen, steps=length)

    start_key, carry_key, key = jax.random.split(key, 3)
    env_state = _start(start_key, env=venv)
    carry = protocol.init_carry(agent, carry_key, venv.num_envs)
    parts: list[Transition] = []
    while True:
        key, step_key = jax.random.split(key)
        env_state, carry, part = run(agent, state, env_state, carry, step_key)
        parts.append(jax.device_get(part))
        if int(np.sum(env_state.nonfinite)):
            raise RunError(
                f"{venv.env.name} produced non-finite numbers while recording; record with "
                "another key or policy"
            )
        ended = [np.asarray(part.terminated | part.truncated) for part in parts]
        chosen_rows = _choose(ended, episodes, steps)
        if chosen_rows is not None:
            return _gathered(parts, chosen_rows, venv.spec)


def _vector_env(
    env: Environment | VectorEnv, episodes: int | None, num_envs: int | None
) -> VectorEnv:
    """Return the environments to play, with a time limit."""
    if isinstance(env, VectorEnv):
        if num_envs is not None:
            raise UsageError(
                f"num_envs is {num_envs}, and the VectorEnv has {env.num_envs} environments; "
                "leave num_envs out"
            )
        limited = env.spec.max_steps is not None
        return env if limited else dataclasses.replace(env, max_steps=DEFAULT_LIMIT)
    count = min(NUM_ENVS, episodes or NUM_ENVS) if num_envs is None else num_envs
    limit = None if env.spec.max_steps else DEFAULT_LIMIT
    return VectorEnv(env, count, max_steps=limit)


def _player(policy: Any, spec: Spec, mode: Mode | None) -> tuple[Any, PyTree, Mode]:
    """Return the agent, state and mode of a policy given to ``record``."""
    if mode is not None:
        require_choice("mode", mode, Mode)
    if isinstance(policy, str) and policy == "uniform":
        return UniformAgent(spec), (), mode or "sample"
    if isinstance(policy, Policy):
        found = policy.spec.observation, policy.spec.action
        if found != (spec.observation, spec.action):
            raise UsageError(
                "the policy is of an environment with other observations or actions; give the "
                "environment that it was trained in"
            )
        return policy.agent, policy.state, mode or policy.mode
    if isinstance(policy, tuple) and len(policy) == 2 and hasattr(policy[0], "act"):
        agent, state = policy
        return agent.bind(spec), state, mode or "sample"
    raise UsageError(
        f"policy is a {type(policy).__name__}; give a Policy of load_policy, a pair "
        "(agent, state), or 'uniform'"
    )


@partial(jax.jit, static_argnames="env")
def _start(key: Key, *, env: VectorEnv) -> VectorState:
    return env.reset(key)


@partial(jax.jit, static_argnames=("env", "mode", "steps"))
def _steps(
    agent: Any,
    state: PyTree,
    env_state: VectorState,
    carry: PyTree,
    key: Key,
    *,
    env: VectorEnv,
    mode: Mode,
    steps: int,
) -> tuple[VectorState, PyTree, Transition]:
    """Take ``steps`` steps in every environment: transitions ``[T, N]``."""

    def act(carry: PyTree, obs: PyTree, key: Key) -> tuple[Array, PyTree, dict]:
        action, carry, _ = agent.act(state, carry, obs, key, mode)
        return action, carry, {}

    pool_key, key = jax.random.split(key)
    pool = env.reset_pool(pool_key)
    env_state, carry, rows, _ = play(act, agent, env, env_state, carry, key, steps, pool)
    return env_state, carry, rows._replace(carry=())


def _choose(
    ended: list[np.ndarray], episodes: int | None, steps: int | None
) -> list[tuple[int, int, int]] | None:
    """Return the episodes to keep as ``(env, first step, step after the last)``, in order.

    ``ended`` are flags ``[T, N]`` of consecutive steps. None if more steps are needed.
    """
    flags = np.concatenate(ended)
    ends = [np.flatnonzero(column) + 1 for column in flags.T]
    found: list[tuple[int, int, int]] = []
    total = 0
    for number in range(len(flags)):
        for env, after in enumerate(ends):
            if number >= len(after):
                return None  # the next episode in order is still running
            first = int(after[number - 1]) if number else 0
            found.append((env, first, int(after[number])))
            total += found[-1][2] - first
            if len(found) == episodes or (steps is not None and total >= steps):
                return found
    return None


def _gathered(parts: list[Transition], chosen: list[tuple[int, int, int]], spec: Spec) -> Dataset:
    """Return the chosen rows of consecutive parts ``[T, N, ...]``, releasing the parts."""
    times, envs = sum(len(p.reward) for p in parts), parts[0].reward.shape[1]
    to = np.full((times, envs), -1, np.int64)  # the dataset row of each step
    size = 0
    for env, first, after in chosen:
        to[first:after, env] = np.arange(size, size + after - first)
        size += after - first
    fields = jax.tree.map(lambda x: np.empty((size, *x.shape[2:]), x.dtype), parts[0])
    for rows in np.split(to, np.cumsum([len(p.reward) for p in parts])[:-1]):
        part, kept = parts.pop(0), rows >= 0
        for whole, piece in zip(jax.tree.leaves(fields), jax.tree.leaves(part), strict=True):
            whole[rows[kept]] = piece[kept]
    return _dataset(fields, spec)


def _dataset(rows: Transition, spec: Spec) -> Dataset:
    action = clip(np.asarray(rows.action), spec.action)
    return Dataset.of(rows.obs, action, rows.reward, rows.next_obs, rows.terminated, rows.truncated)


def from_replay(store: Replay, spec: Spec) -> Dataset:
    """Return a replay buffer's transitions, one environment after another, in temporal order.

    An environment's first episode may lack its beginning if the buffer has overwritten it; its last
    episode is truncated if it was still running.

    Args:
        store: the buffer with its rows ``[S, N, ...]`` and the number of steps written.
        spec: the specification of its environment.

    Raises:
        UsageError: if nothing has been written.
    """
    rows = store.buffer.loaded(jax.tree.map(np.asarray, store.rows))
    slots, written = store.buffer.slots, int(store.written)
    if written < 1:
        raise UsageError("the replay buffer is empty; train before it is made a dataset")
    order = np.arange(max(written - slots, 0), written) % slots
    ordered = jax.tree.map(lambda x: np.asarray(x)[order], rows)
    ordered = ordered._replace(
        truncated=np.concatenate([ordered.truncated[:-1], ~ordered.terminated[-1:]])
    )
    flat = jax.tree.map(lambda x: np.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), ordered)
    return _dataset(flat, spec)
