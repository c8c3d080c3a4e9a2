"""Wrappers of agents: they change what the inner agent sees, independently of its algorithm."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.agents import protocol
from jaxrl.agents.protocol import LearntPolicy
from jaxrl.errors import UsageError
from jaxrl.hyper import bound, flag, number
from jaxrl.metrics import Metrics
from jaxrl.nn import running_statistics
from jaxrl.nn.running_statistics import RunningStatistics
from jaxrl.precision import widened
from jaxrl.sharding import reducing_over
from jaxrl.types import Array, Batch, Box, Extras, Key, Mode, PyTree, Spec, Transition


class NormalizeObsState(NamedTuple):
    """The statistics and the state of the inner agent."""

    statistics: RunningStatistics
    agent: PyTree


@hyper.dataclass
class NormalizeObs:
    """The inner agent sees observations with zero mean and unit variance, clipped at ``obs_clip``.

    The statistics are part of the state, so a saved policy always includes them. They include a
    rollout only after the update on it: the policy is updated under the statistics it acted with,
    and its probability ratios start at 1. Trainers with a dataset compute them from it once, before
    the first update. With ``frozen`` they do not change online: they come from a dataset or from
    ``run(..., policy_from=RUN)``, and without either observations are only clipped.
    """

    agent: Any
    obs_clip: float = number(10.0, above=0, help="normalised observations are clipped to +- this")
    frozen: bool = flag(False, help="keep the statistics fixed in online training")
    spec: Spec | None = bound(None)

    def bind(self, spec: Spec) -> NormalizeObs:
        """Return the wrapper of the inner agent, bound to normalised observations.

        Raises:
            UsageError: for an agent that needs raw observations, as ``FQE`` does.
        """
        inner = protocol.innermost(self.agent)
        if getattr(inner, "sees_raw", False):
            name = type(inner).__name__
            raise UsageError(
                f"NormalizeObs around {name} would normalise what the evaluated agent sees; leave "
                "it out"
            )

        def normalised(box: Box) -> Box:
            return Box(-jnp.inf, jnp.inf, box.shape)

        seen = dataclasses.replace(spec, observation=jax.tree.map(normalised, spec.observation))
        return dataclasses.replace(self, agent=self.agent.bind(seen), spec=seen)

    def init(self, key: Key) -> NormalizeObsState:
        """Return empty statistics and the inner agent's state."""
        assert self.spec is not None, "bind the agent before init"
        statistics = running_statistics.start(self.spec.observation)
        return NormalizeObsState(statistics, self.agent.init(key))

    def act(
        self, state: NormalizeObsState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return the inner agent's action for the normalised ``obs[..., *O]``."""
        return self.agent.act(state.agent, carry, self.seen(state, obs), key, mode)

    def update(
        self, state: NormalizeObsState, data: Transition | Batch, key: Key, *args: Any
    ) -> tuple[NormalizeObsState, Metrics]:
        """The inner agent's update on normalised observations."""
        obs, next_obs = (self.seen(state, x) for x in (data.obs, data.next_obs))
        data = data._replace(obs=obs, next_obs=next_obs)
        inner, metrics = self.agent.update(state.agent, data, key, *args)
        return state._replace(agent=inner), metrics

    def observe(self, state: NormalizeObsState, transitions: Transition) -> NormalizeObsState:
        """Add ``transitions.obs[T, N, *O]`` to the statistics, unless they are frozen."""
        statistics = state.statistics
        if not self.frozen:
            statistics = running_statistics.merge(statistics, transitions.obs)
        inner = protocol.observe(self.agent, state.agent, transitions)
        return NormalizeObsState(statistics, inner)

    def observe_dataset(self, state: NormalizeObsState, data: Any) -> NormalizeObsState:
        """Compute the statistics of ``data.obs[D, *O]`` if they are still empty."""
        with reducing_over(None):  # every shard holds the whole dataset
            seen = running_statistics.merge(state.statistics, data.obs)
        fresh = state.statistics.size == 0
        statistics = jax.tree.map(partial(jnp.where, fresh), seen, state.statistics)
        return NormalizeObsState(
            statistics, protocol.observe_dataset(self.agent, state.agent, data)
        )

    def validation_loss(self, state: NormalizeObsState, batch: Batch, key: Key) -> Array:
        """Return the inner agent's loss on normalised observations."""
        obs, next_obs = (self.seen(state, x) for x in (batch.obs, batch.next_obs))
        batch = batch._replace(obs=obs, next_obs=next_obs)
        return protocol.validation_loss(self.agent, state.agent, batch, key)

    def learnt_policy(self, state: NormalizeObsState) -> LearntPolicy:
        """Return what the inner agent's policy has learnt, with the statistics."""
        inner = protocol.learnt_policy(self.agent, state.agent)
        return inner._replace(statistics=state.statistics)

    def with_policy(self, state: NormalizeObsState, policy: LearntPolicy) -> NormalizeObsState:
        """Return a fresh state with another policy and its statistics."""
        inner = protocol.with_policy(self.agent, state.agent, policy)
        return NormalizeObsState(jax.tree.map(jnp.copy, policy.statistics), inner)

    def seen(self, state: NormalizeObsState, obs: PyTree) -> PyTree:
        """Return ``obs[..., *O]`` as the inner agent sees it."""
        return running_statistics.normalise(state.statistics, obs, self.obs_clip)


@hyper.dataclass
class ScaleReward:
    """The inner agent learns from ``reward_scale * reward + reward_shift``, clipped if asked.

    Rewards are transformed step by step, before n-step returns sum them. Returns are reported raw.
    """

    agent: Any
    reward_scale: float = number(1.0, above=0, help="multiply rewards by this, for learning only")
    reward_shift: float = number(0.0, help="added to the scaled rewards")
    reward_clip: float | None = number(
        None, above=0, help="clip the scaled and shifted rewards to +- this; None: no clipping"
    )

    def bind(self, spec: Spec) -> ScaleReward:
        """Return the wrapper of the inner agent, bound to ``spec``."""
        return dataclasses.replace(self, agent=self.agent.bind(spec))

    def init(self, key: Key) -> PyTree:
        """Return the inner agent's state."""
        return self.agent.init(key)

    def act(
        self, state: PyTree, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return the inner agent's action."""
        return self.agent.act(state, carry, obs, key, mode)

    def update(
        self, state: PyTree, data: Transition | Batch, key: Key, *args: Any
    ) -> tuple[PyTree, Metrics]:
        """The inner agent's update. Rewards of batches were transformed when they were sampled."""
        return self.agent.update(state, self.seen(data), key, *args)

    def observe(self, state: PyTree, transitions: Transition) -> PyTree:
        """Return the inner agent's state after experience with transformed rewards."""
        return protocol.observe(self.agent, state, self.seen(transitions))

    def observe_dataset(self, state: PyTree, data: Any) -> PyTree:
        """Return the inner agent's state after observing the dataset with transformed rewards."""
        data = data._replace(reward=self.learnt_reward(data.reward))
        return protocol.observe_dataset(self.agent, state, data)

    def validation_loss(self, state: PyTree, batch: Batch, key: Key) -> Array:
        """Return the inner agent's loss; rewards of batches are already transformed."""
        return protocol.validation_loss(self.agent, state, batch, key)

    def seen(self, data: Any) -> Any:
        """Return data as the inner agent sees it: transitions with transformed rewards."""
        if isinstance(data, Batch):
            return data
        return data._replace(reward=self.learnt_reward(data.reward))

    def learnt_reward(self, reward: Array) -> Array:
        """Return transformed rewards, of the same shape."""
        reward = self.reward_scale * widened(reward) + self.reward_shift
        clip = self.reward_clip
        return reward if clip is None else jnp.clip(reward, -clip, clip)
