"""Action chunks: an environment whose step plays several actions."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import rng
from jaxrl.chunked import chunked, pushed, repeated
from jaxrl.envs.checks import check_action
from jaxrl.envs.contract import check_contract
from jaxrl.errors import UsageError
from jaxrl.require import plain, require, require_integer
from jaxrl.types import Array, Environment, Key, PyTree, Spec, Step

OPTIONS = ("execute", "horizon", "obs_horizon", "gamma")


class ChunkState(NamedTuple):
    """The state of the inner environment, its step count, and the last observations."""

    inner: PyTree
    steps: Array  # int32
    history: PyTree  # [n, *O], or [*O] for a single observation


class _Played(NamedTuple):
    """The state of a partly played chunk."""

    state: ChunkState
    last: Step  # the last step taken
    reward: Array  # the discounted sum
    discount: Array  # for the next reward
    played: Array  # int32, number of actions


@dataclasses.dataclass(frozen=True)
class ChunkActions:
    """An environment whose step plays the first ``execute`` of ``horizon`` actions.

    The action is a flat vector ``[horizon * A]``; the reward is ``sum_k gamma^k r_k``. If the
    episode ends within a chunk, the remaining actions are not played. The observation holds the
    last ``obs_horizon`` observations of the inner environment's steps; at the start of an episode
    it repeats the first one. So a policy trained with ``jaxrl.Chunks`` of the same sizes acts in
    the same way.

    The inner environment's time limit always applies, counted in its own steps. If it is reached
    within a chunk, the episode is truncated there; ``spec.max_steps`` is ``ceil(max_steps /
    execute)``, and ``VectorEnv`` refuses a larger one. Everything outside this environment counts
    chunks: ``VectorEnv(..., max_steps=...)``, episode lengths, environment steps, and the agent's
    discount. ``info["played"]`` is the number of actions played. Returns sum the chunks' rewards;
    with ``gamma=1`` they equal the sum of the original rewards.

    Attributes:
        env: the inner environment.
        execute: actions played per step.
        horizon: actions in a step's action vector; default ``execute``.
        obs_horizon: number of observations in a history.
        gamma: discount of rewards within a chunk.

    Raises:
        UsageError: for sizes that cannot work, or discrete actions.
    """

    env: Environment
    execute: int
    horizon: int | None = None
    obs_horizon: int = 1
    gamma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("execute", "horizon", "obs_horizon"):
            value = plain(getattr(self, name))
            require_integer(name, value, optional=name == "horizon")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "gamma", plain(self.gamma))
        require("gamma", self.gamma, 0, 1)
        if self.execute > self.length:
            raise UsageError(
                f"execute is {self.execute}, and horizon {self.horizon}; give at most "
                f"{self.horizon}"
            )
        if not type(self.env).__module__.startswith("jaxrl.envs."):
            check_contract(self.env)
        chunked(self.env.spec, self.length, self.obs_horizon)
        own = {name: getattr(self, name) for name in OPTIONS}
        object.__setattr__(self, "options", {**getattr(self.env, "options", {}), **own})

    def __getattr__(self, name: str) -> Any:
        """Expose the inner environment's drawing methods, used by ``jaxrl.analysis.frames``."""
        if name in ("picture", "pose"):
            draw = getattr(self.env, name)
            return lambda state: draw(state.inner)
        if name in ("mj_model", "camera"):
            return getattr(self.env, name)
        if name == "dt":
            return self.execute * getattr(self.env, name)
        raise AttributeError(f"{type(self).__name__} has no {name!r}")

    @property
    def length(self) -> int:
        """The number of actions in a step's action vector."""
        return self.execute if self.horizon is None else self.horizon

    @property
    def name(self) -> str:
        """The name of the inner environment; ``options`` say that it is chunked."""
        return self.env.name

    @property
    def cheap(self) -> bool:
        """Whether the inner environment is cheap."""
        return self.env.cheap

    @property
    def cheap_resets(self) -> bool:
        """Whether the inner environment has cheap resets."""
        return bool(getattr(self.env, "cheap_resets", False))

    @property
    def threaded(self) -> bool:
        """Whether a batch of the inner environment uses all cores by itself."""
        return bool(getattr(self.env, "threaded", False))

    @property
    def spec(self) -> Spec:
        """Flat actions, observation histories, and the time limit in chunks."""
        spec = chunked(self.env.spec, self.length, self.obs_horizon)
        limit = spec.max_steps
        chunks = None if limit is None else -(-limit // self.execute)
        return dataclasses.replace(spec, max_steps=chunks)

    def reset(self, key: Key) -> tuple[ChunkState, PyTree]:
        """Draw a first state. Returns it, and its history of observations."""
        inner, obs = self.env.reset(key)
        history = repeated(obs, self.obs_horizon)
        return ChunkState(inner, jnp.int32(0), history), history

    def step(self, key: Key, state: ChunkState, action: Array) -> tuple[ChunkState, Step]:
        """Play ``action[horizon * A]`` until the chunk or the episode ends.

        Raises as ``check_action`` does.
        """
        spec = self.spec
        action, _ = check_action(spec.action, action)
        actions = action.reshape(self.length, -1)[: self.execute]
        keys = jax.random.split(key, self.execute)

        def play(key: Key, before: _Played, action: Array) -> tuple[_Played, None]:
            after = self._play(key, before, action)
            ended = before.last.terminated | before.last.truncated
            return jax.tree.map(partial(jnp.where, ended), before, after), None

        first = self._first(keys[0], state, actions[0])
        unroll = 4 if self.cheap else 1
        end, _ = rng.scan(play, first, keys[1:], actions[1:], unroll=unroll)
        info = {**end.last.info, "played": end.played}
        return end.state, end.last._replace(obs=end.state.history, reward=end.reward, info=info)

    def _first(self, key: Key, state: ChunkState, action: Array) -> _Played:
        """Return the chunk's state after its first action."""
        state, step = self._once(key, state, action)
        return _Played(state, step, step.reward, jnp.float32(self.gamma), jnp.int32(1))

    def _play(self, key: Key, before: _Played, action: Array) -> _Played:
        """Return the chunk's state after one more action."""
        state, step = self._once(key, before.state, action)
        reward = before.reward + before.discount * step.reward
        return _Played(state, step, reward, self.gamma * before.discount, before.played + 1)

    def _once(self, key: Key, state: ChunkState, action: Array) -> tuple[ChunkState, Step]:
        """Take one step in the inner environment, which truncates at its time limit."""
        inner, step = self.env.step(key, state.inner, action)
        steps, limit = state.steps + 1, self.env.spec.max_steps
        late = step.truncated if limit is None else step.truncated | (steps >= limit)
        history = pushed(state.history, step.obs, self.obs_horizon)
        step = step._replace(truncated=late & ~step.terminated, obs=())
        return ChunkState(inner, steps, history), step
