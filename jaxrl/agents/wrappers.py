"""Agents made of agents: they change what the inner agent sees, and know no algorithm."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.agents import protocol
from jaxrl.hyper import bound, number
from jaxrl.metrics import Metrics
from jaxrl.nn import running_statistics
from jaxrl.nn.running_statistics import RunningStatistics
from jaxrl.types import Array, Batch, Box, Extras, Key, Mode, PyTree, Spec, Transition


class NormalizeObsState(NamedTuple):
    """The statistics and the state of the inner agent."""

    statistics: RunningStatistics
    agent: PyTree


@hyper.dataclass
class NormalizeObs:
    """The inner agent sees observations of zero mean and unit variance, clipped at ``obs_clip``.

    The statistics are part of the state, so a saved policy always includes them. They take in a
    rollout after the update on it: the policy is updated under the statistics it acted with, and
    its probability ratios start at 1.
    """

    agent: Any
    obs_clip: float = number(10.0, above=0, help="normalised observations are clipped to +- this")
    spec: Spec | None = bound(None)

    def bind(self, spec: Spec) -> NormalizeObs:
        """Return the wrapper of the inner agent, bound to normalised observations."""

        def normalised(box: Box) -> Box:
            return Box(-jnp.inf, jnp.inf, box.shape)

        seen = dataclasses.replace(spec, observation=jax.tree.map(normalised, spec.observation))
        return dataclasses.replace(self, agent=self.agent.bind(seen), spec=seen)

    def init(self, key: Key) -> NormalizeObsState:
        """Return statistics that have seen nothing yet, and the inner agent's state."""
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
        """Take ``transitions.obs[T, N, *O]`` into the statistics."""
        statistics = running_statistics.merge(state.statistics, transitions.obs)
        inner = protocol.observe(self.agent, state.agent, transitions)
        return NormalizeObsState(statistics, inner)

    def seen(self, state: NormalizeObsState, obs: PyTree) -> PyTree:
        """Return ``obs[..., *O]`` as the inner agent sees it."""
        return running_statistics.normalise(state.statistics, obs, self.obs_clip)


@hyper.dataclass
class ScaleReward:
    """The inner agent learns from rewards times ``reward_scale``; returns are reported raw."""

    agent: Any
    reward_scale: float = number(1.0, above=0, help="factor of the rewards that are learnt from")

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
        """The inner agent's update on scaled rewards."""
        return self.agent.update(state, self.scaled(data), key, *args)

    def observe(self, state: PyTree, transitions: Transition) -> PyTree:
        """Return the inner agent's state after experience with scaled rewards."""
        return protocol.observe(self.agent, state, self.scaled(transitions))

    def scaled(self, data: Any) -> Any:
        """Return ``data`` with scaled rewards."""
        return data._replace(reward=data.reward * self.reward_scale)
