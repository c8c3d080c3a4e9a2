"""The vector environment: the only home of time limits, automatic resets and episode statistics."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl.errors import UsageError
from jaxrl.sharding import shard_count, shard_key
from jaxrl.types import Array, Box, Environment, Key, PyTree, Spec, Step

Resets = Literal["fresh", "bank", "first"]


class VectorState(NamedTuple):
    """``N`` running episodes. ``obs`` is what to act on next: already reset where one ended."""

    inner: PyTree  # states of the environments [N, ...]
    obs: PyTree  # [N, *O]
    steps: Array  # int32[N], steps taken in the running episode
    episode_return: Array  # float32[N], its undiscounted return so far
    first: PyTree  # resets="first": the states and observations to return to; else ()


class Draws(NamedTuple):
    """The randomness of ``T`` steps at once: one large draw is far cheaper than ``T`` small ones.

    ``keys`` and ``resets`` are indexed by time; ``bank`` serves all ``T`` steps.
    """

    keys: Key  # [T, N]
    resets: PyTree  # fresh: (states, obs) [T, N, ...]; bank: int32[T, N] into the bank; first: ()
    bank: PyTree  # bank: (states, obs) [K, ...]; else ()

    def at(self, t: int) -> Draws:
        """The draws of step ``t``."""
        return Draws(self.keys[t], jax.tree.map(lambda x: x[t], self.resets), self.bank)


def select(where: Array, a: PyTree, b: PyTree) -> PyTree:
    """Row-wise ``a`` where ``where[N]`` is true, else ``b``, for trees of ``[N, ...]``."""

    def pick(x: Array, y: Array) -> Array:
        return jnp.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x, y)

    return jax.tree.map(pick, a, b)


def rescale(space: Any, action: Array) -> Array:
    """An agent's action in [-1, 1] in the units of the space; indices pass unchanged.

    Values outside [-1, 1] are clipped first. Elements without finite bounds pass unchanged.

    Raises:
        ValueError: for an action whose last axes are not the space's, which would be broadcast.
    """
    if not isinstance(space, Box):
        return action
    if action.shape[max(action.ndim - len(space.shape), 0) :] != space.shape:
        raise ValueError(f"action has shape {action.shape}; its last axes must be {space.shape}")
    if space.bounded:
        return space.low + (jnp.clip(action, -1.0, 1.0) + 1.0) * (0.5 * (space.high - space.low))
    return jnp.clip(action, space.low, space.high)


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
    """``num_envs`` copies of an environment, stepped together and reset as their episodes end.

    ``resets``:

    - ``"fresh"``: every ended episode starts from a new draw of its own (default where resets
      are cheap);
    - ``"bank"``: ``bank_size`` fresh states are drawn per rollout and every ended episode takes one
      of them at random (default for physics, whose resets are dear);
    - ``"first"``: every environment returns to its own first state, as Brax does; only for
      reproducing numbers made that way.

    An episode that reaches ``max_steps`` (default: the environment's own) is truncated, unless it
    terminates on that very step. A non-finite observation or reward ends the episode as terminated,
    is stored as zeros and is flagged in ``info["nonfinite"]``.
    """

    env: Environment
    num_envs: int
    resets: Resets | None = None
    bank_size: int = 32
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise UsageError(f"num_envs is {self.num_envs}; it must be at least 1")
        if self.bank_size < 1:
            raise UsageError(f"bank_size is {self.bank_size}; it must be at least 1")
        if self.resets not in (None, "fresh", "bank", "first"):
            raise UsageError(f"resets is {self.resets!r}; choose one of fresh, bank, first")
        if self.max_steps is not None and self.max_steps < 1:
            raise UsageError(f"max_steps is {self.max_steps}; it must be at least 1")
        if (self.spec.max_steps or 1) >= 2**31:  # steps are counted in int32
            raise UsageError(f"max_steps is {self.spec.max_steps}; it must be at most 2147483647")

    @property
    def spec(self) -> Spec:
        """The environment's, with the time limit that holds here."""
        spec = self.env.spec
        return dataclasses.replace(spec, max_steps=self.max_steps or spec.max_steps)

    @property
    def policy(self) -> Resets:
        """The reset policy in force."""
        cheap = self.env.cheap or getattr(self.env, "cheap_resets", False)
        return self.resets or ("fresh" if cheap else "bank")

    @property
    def local_envs(self) -> int:
        """The number of environments of this shard."""
        return self.num_envs // shard_count()

    def reset(self, key: Key) -> VectorState:
        """Start every episode. Each shard draws its own."""
        n = self.local_envs
        inner, obs = jax.vmap(self.env.reset)(jax.random.split(shard_key(key), n))
        first = (inner, obs) if self.policy == "first" else ()
        return VectorState(inner, obs, jnp.zeros(n, jnp.int32), jnp.zeros(n), first)

    def draw(self, key: Key, steps: int) -> Draws:
        """All the randomness of the next ``steps`` steps. Each shard draws its own."""
        shape = (steps, self.local_envs)
        step_key, reset_key, bank_key = jax.random.split(shard_key(key), 3)
        keys = jax.random.split(step_key, shape)
        if self.policy == "first":
            return Draws(keys, (), ())
        if self.policy == "fresh":
            fresh = jax.vmap(jax.vmap(self.env.reset))(jax.random.split(reset_key, shape))
            return Draws(keys, fresh, ())
        size = -(-self.bank_size // shard_count())
        bank = jax.vmap(self.env.reset)(jax.random.split(bank_key, size))
        return Draws(keys, jax.random.randint(reset_key, shape, 0, size), bank)

    def step(self, state: VectorState, action: Array, draws: Draws) -> tuple[VectorState, Step]:
        """Advance every environment by one step of ``action[N, *A]`` in [-1, 1] or an index.

        ``draws`` are those of one step: ``venv.draw(key, T).at(t)``. ``Step.obs`` is the true
        successor; ``info`` holds ``ended``, ``nonfinite`` (bool[N]), and the return and length of
        the episode up to and including this step (``episode_return``, ``episode_length``: [N]).
        """
        act = rescale(self.env.spec.action, action)
        inner, step = jax.vmap(self.env.step)(draws.keys, state.inner, act)

        n = step.reward.shape[0]
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
        next_inner, next_obs = select(ended, self._starts(state, draws), (inner, obs))
        next_state = VectorState(
            inner=next_inner,
            obs=next_obs,
            steps=jnp.where(ended, 0, steps),
            episode_return=jnp.where(ended, 0.0, episode_return),
            first=state.first,
        )
        return next_state, Step(obs, reward, terminated, truncated, info)

    def _starts(self, state: VectorState, draws: Draws) -> PyTree:
        """The states and observations where episodes that end now start again: ``[N, ...]``."""
        if self.policy == "first":
            return state.first
        if self.policy == "fresh":
            return draws.resets
        return jax.tree.map(lambda rows: rows[draws.resets], draws.bank)
