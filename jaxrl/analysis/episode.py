"""One episode of a policy, step by step on the host, kept for pictures and for reading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.training.evaluate import DEFAULT_LIMIT, step_key
from jaxrl.types import Array, Environment, Key, PyTree

if TYPE_CHECKING:
    from jaxrl.run import Policy


class Episode(NamedTuple):
    """An episode of ``T`` steps, in numpy. It is cut off where the physics stops being finite."""

    states: list[PyTree]  # T + 1 states of the environment, the first and the last included
    obs: PyTree  # [T + 1, *O]
    action: np.ndarray  # [T, *A], in the environment's units
    reward: np.ndarray  # [T]
    end: str  # "terminated", "truncated" (time limit), "cut" (by max_steps), or "not finite"

    @property
    def length(self) -> int:
        """``T``, in steps."""
        return len(self.reward)

    @property
    def episode_return(self) -> float:
        """The undiscounted return."""
        return float(np.sum(self.reward, dtype=np.float64))

    def save(self, path: Path, more: Mapping[str, np.ndarray]) -> None:
        """Write an ``.npz`` of ``obs``, ``action``, ``reward``, ``end`` and the arrays of ``more``.

        Observations that are dictionaries have an array for each part: ``obs.state``.
        """
        parts = {"obs" + _name(path): x for path, x in jax.tree.leaves_with_path(self.obs)}
        own = {"action": self.action, "reward": self.reward, "end": np.array(self.end)}
        arrays: dict[str, Any] = parts | own | dict(more)
        np.savez_compressed(path, **arrays)


def rollout(env: Environment, policy: Policy, key: Key, max_steps: int | None = None) -> Episode:
    """The episode that ``evaluate`` runs from ``key[None]``, to its end or to ``max_steps``.

    The time limit is the policy's, that of its run. States go to the host one by one: those of a
    whole episode may be too large for the device.
    """
    limit = policy.spec.max_steps
    most = min(max_steps or limit or DEFAULT_LIMIT, limit or DEFAULT_LIMIT)

    @jax.jit
    def advance(t: Array, state: PyTree, obs: PyTree) -> tuple:
        act_key, env_key = jax.random.split(step_key(key, t))
        action = policy(obs, act_key)
        state, step = env.step(env_key, state, action)
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((step.obs, step.reward))]
        return action, state, step, jnp.stack(finite).all()

    state, obs = jax.jit(env.reset)(key)
    states, seen = [jax.device_get(state)], [jax.device_get(obs)]
    actions: list[np.ndarray] = []
    rewards: list[np.ndarray] = []
    end = "truncated" if most == limit else "cut"
    for t in range(most):
        action, state, step, finite = advance(jnp.int32(t), state, obs)
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
    """``.state`` of ``(DictKey("state"),)``."""
    return "".join(f".{getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))}" for k in path)
