"""One episode of a policy, stepped from the host and stored for rendering and inspection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.record.policy import Policy
from jaxrl.training.evaluate import DEFAULT_LIMIT, step_key
from jaxrl.types import Array, Environment, Key, PyTree


class Episode(NamedTuple):
    """An episode of ``T`` steps, in numpy. It ends early if the physics becomes non-finite."""

    states: list[PyTree]  # T + 1 states of the environment, including the first and the last
    obs: PyTree  # [T + 1, *O]
    action: np.ndarray  # [T, *A], in the environment's units
    reward: np.ndarray  # [T]
    end: str  # "terminated", "truncated" (time limit), "cut" (by max_steps), or "not finite"

    @property
    def length(self) -> int:
        """The number of steps ``T``."""
        return len(self.reward)

    @property
    def episode_return(self) -> float:
        """The undiscounted return."""
        return float(np.sum(self.reward, dtype=np.float64))

    def save(self, path: Path, more: Mapping[str, np.ndarray]) -> None:
        """Write an ``.npz`` with ``obs``, ``action``, ``reward``, ``end`` and the arrays in
        ``more``.

        A dictionary observation is written as one array per part: ``obs.state``.
        """
        parts = {"obs" + _name(path): x for path, x in jax.tree.leaves_with_path(self.obs)}
        own = {"action": self.action, "reward": self.reward, "end": np.array(self.end)}
        arrays: dict[str, Any] = parts | own | dict(more)
        np.savez_compressed(path, **arrays)


def rollout(env: Environment, policy: Policy, key: Key, max_steps: int | None = None) -> Episode:
    """Play the episode that ``evaluate`` runs from ``key[None]``, to its end or ``max_steps``.

    The time limit is that of the policy's run. States are copied to the host one by one, since a
    whole episode's states may not fit on the device.
    """
    limit = policy.spec.max_steps
    whole = limit or DEFAULT_LIMIT
    most = min(max_steps or whole, whole)

    @jax.jit
    def advance(t: Array, state: PyTree, carry: PyTree, obs: PyTree) -> tuple:
        act_key, env_key = jax.random.split(step_key(key, t))
        rows, carry = policy.step(carry, jax.tree.map(lambda x: x[None], obs), act_key)
        action = rows[0]
        state, step = env.step(env_key, state, action)
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((step.obs, step.reward))]
        return action, state, carry, step, jnp.stack(finite).all()

    state, obs = jax.jit(env.reset)(key)
    carry = policy.start(1, step_key(key, jnp.int32(whole)))  # the same key as in evaluate
    states, seen = [jax.device_get(state)], [jax.device_get(obs)]
    actions: list[np.ndarray] = []
    rewards: list[np.ndarray] = []
    end = "truncated" if most == limit else "cut"
    for t in range(most):
        action, state, carry, step, finite = advance(jnp.int32(t), state, carry, obs)
        if not finite:
            end = "not finite"
            break
        obs = step.obs
        host = jax.device_get((state, obs, action, step.reward))
        for kept, new in zip((states, seen, actions, rewards), host, strict=True):
            kept.append(new)
        if step.terminated or step.truncated:
            end = "terminated" if step.terminated else "truncated"
            break
    space = env.spec.action
    return Episode(
        states,
        jax.tree.map(lambda *rows: np.stack(rows), *seen),
        np.asarray(actions, space.dtype).reshape(-1, *space.shape),
        np.asarray(rewards, np.float32),
        end,
    )


def _name(path: tuple[Any, ...]) -> str:
    """Format a tree path such as ``(DictKey("state"),)`` as ``.state``."""
    return "".join(f".{getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))}" for k in path)
