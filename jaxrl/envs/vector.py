"""The vector environment: handles all time limits, automatic resets and episode statistics."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.chunks import ChunkActions
from jaxrl.envs.contract import check_contract
from jaxrl.errors import UsageError
from jaxrl.require import INT32_MAX, plain, require_choice, require_integer
from jaxrl.rng import row_key
from jaxrl.sharding import shard_count
from jaxrl.types import Array, Box, Environment, Key, PyTree, Spec, Step

ResetMode = Literal["fresh", "pool", "first"]


class VectorState(NamedTuple):
    """``N`` running episodes. ``obs`` is the next one to act on, already reset after an episode
    end.
    """

    inner: PyTree  # states of the environments [N, ...]
    obs: PyTree  # [N, *O]
    steps: Array  # int32[N], steps taken in the running episode
    episode_return: Array  # float32[N], its undiscounted return so far
    nonfinite: Array  # int32[N], non-finite steps not yet reported in metrics
    first: PyTree  # reset_mode="first": the states and observations to return to; else ()


def select(where: Array, a: PyTree, b: PyTree) -> PyTree:
    """Return rows of ``a`` where ``where[N]`` is true, else of ``b``, for trees of ``[N, ...]``."""

    def pick(x: Array, y: Array) -> Array:
        return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x, y)

    return jax.tree.map(pick, a, b)


def rescale(space: Any, action: Array) -> Array:
    """Return an agent's action in [-1, 1] in the units of the space; indices pass unchanged.

    An element with two finite bounds is clipped to [-1, 1] and scaled so that -1 and 1 map to its
    bounds. Any other element is already in the space's units and only clipped to the bound it has.

    Raises:
        ValueError: for an action whose last axes differ from the space's and would be broadcast.
    """
    if not isinstance(space, Box):
        return action
    if action.shape[max(action.ndim - len(space.shape), 0) :] != space.shape:
        raise ValueError(f"action has shape {action.shape}; its last axes must be {space.shape}")
    bounded = space.bounded
    low, high = (np.where(bounded, bound, 0) for bound in (space.low, space.high))
    scaled = (jnp.clip(action, -1.0, 1.0) + 1.0) * (0.5 * (high - low)) + low
    if np.all(bounded):
        return scaled
    return jnp.where(bounded, scaled, jnp.clip(action, space.low, space.high))


def _all_finite(tree: PyTree, num_envs: int) -> Array:
    """Whether all elements of each row are finite: ``bool[N]``."""
    flags = [
        jnp.all(jnp.isfinite(leaf.reshape(num_envs, -1)), axis=1)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack(flags), axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class VectorEnv:
    """``num_envs`` copies of an environment, stepped together and reset when their episodes end.

    ``reset_mode``:

    - ``"fresh"``: every reset draws its own new start (default if resets are cheap);
    - ``"pool"``: ``pool_size`` fresh states are drawn per rollout, and every reset picks one of
      them at random (default for physics, where resets are expensive);
    - ``"first"``: every environment returns to its own first state, as in Brax; only for
      reproducing results obtained that way.

    An episode that reaches ``max_steps`` (default: the environment's own) is truncated, unless it
    terminates at that step. A non-finite observation or reward ends the episode as terminated, is
    stored as zeros and is flagged in ``info["nonfinite"]``.

    Raises:
        UsageError: for sizes that cannot work, and for an environment whose shapes or dtypes
            violate ``jaxrl.types.Environment``.
    """

    env: Environment
    num_envs: int
    reset_mode: ResetMode | None = None
    pool_size: int = 32
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_envs", "pool_size", "max_steps"):
            value = plain(getattr(self, name))
            optional = name == "max_steps"
            require_integer(name, value, 1, INT32_MAX, optional=optional)
            object.__setattr__(self, name, value)
        if self.reset_mode is not None:
            require_choice("reset_mode", self.reset_mode, ResetMode)
        # The library's environments are tested, and physics takes seconds to trace.
        if not type(self.env).__module__.startswith("jaxrl.envs."):
            check_contract(self.env)
        require_integer("max_steps", self.spec.max_steps, 1, INT32_MAX, optional=True)
        most = self.env.spec.max_steps if isinstance(self.env, ChunkActions) else None
        if most is not None and self.max_steps is not None and self.max_steps > most:
            raise UsageError(
                f"max_steps is {self.max_steps}, and the environment ends its episodes after "
                f"{most} chunks; give at most that"
            )
        if self.reset_mode is None:
            cheap = self.env.cheap or getattr(self.env, "cheap_resets", False)
            object.__setattr__(self, "reset_mode", "fresh" if cheap else "pool")

    @property
    def spec(self) -> Spec:
        """The environment's spec, with the time limit in force."""
        spec = self.env.spec
        return dataclasses.replace(spec, max_steps=self.max_steps or plain(spec.max_steps))

    @property
    def local_envs(self) -> int:
        """The number of environments of this shard."""
        return self.num_envs // shard_count()

    def reset(self, key: Key) -> VectorState:
        """Start every episode. Each shard draws its own."""
        n = self.local_envs
        inner, obs = jax.vmap(self.env.reset)(jax.random.split(row_key(key), n))
        first = (inner, obs) if self.reset_mode == "first" else ()
        steps, nonfinite = (jnp.zeros(n, jnp.int32) for _ in range(2))  # one could not be donated
        return VectorState(inner, obs, steps, jnp.zeros(n), nonfinite, first)

    def reset_pool(self, key: Key) -> PyTree:
        """Draw the states and observations ``[K, ...]`` for resets in a rollout.

        ``()`` unless ``reset_mode`` is "pool". ``pool_size`` is divided over the shards.
        """
        if self.reset_mode != "pool":
            return ()
        size = -(-self.pool_size // shard_count())
        return jax.vmap(self.env.reset)(jax.random.split(row_key(key), size))

    def step(
        self, key: Key, state: VectorState, action: Array, pool: PyTree = ()
    ) -> tuple[VectorState, Step]:
        """Advance every environment by one step of ``action[N, *A]`` in [-1, 1] or an index.

        ``Step.obs`` is the true next observation; ``info`` holds ``ended``, ``nonfinite``
        (bool[N]), and the return and length of the episode up to and including this step
        (``episode_return``, ``episode_length``: [N]). ``pool`` is what ``reset_pool`` drew.
        """
        n = state.steps.shape[0]
        step_keys, reset_keys = jax.random.split(row_key(key), (2, n))
        act = rescale(self.env.spec.action, action)
        inner, step = jax.vmap(self.env.step)(step_keys, state.inner, act)

        finite = _all_finite((step.obs, step.reward), n)
        obs = select(finite, step.obs, jax.tree.map(jnp.zeros_like, step.obs))
        reward = jnp.where(finite, step.reward, 0.0)
        steps = state.steps + 1
        terminated = step.terminated | ~finite
        limit = self.spec.max_steps
        late = step.truncated if limit is None else step.truncated | (steps >= limit)
        truncated = late & ~terminated
        ended = terminated | truncated
        episode_return = state.episode_return + reward

        info = {
            **step.info,
            "ended": ended,
            "nonfinite": ~finite,
            "episode_return": episode_return,
            "episode_length": steps,
        }
        starts = self._starts(reset_keys, state, pool)
        next_inner, next_obs = select(ended, starts, (inner, obs))
        next_state = VectorState(
            inner=next_inner,
            obs=next_obs,
            steps=jnp.where(ended, 0, steps),
            episode_return=jnp.where(ended, 0.0, episode_return),
            nonfinite=state.nonfinite + ~finite,
            first=state.first,
        )
        return next_state, Step(obs, reward, terminated, truncated, info)

    def _starts(self, keys: Key, state: VectorState, pool: PyTree) -> PyTree:
        """The states and observations from which episodes ending now restart: ``[N, ...]``."""
        if self.reset_mode == "first":
            return state.first
        if self.reset_mode == "fresh":
            return jax.vmap(self.env.reset)(keys)
        size = jax.tree.leaves(pool)[0].shape[0]
        chosen = jax.random.randint(keys[0], keys.shape, 0, size)
        return jax.tree.map(lambda rows: rows[chosen], pool)
