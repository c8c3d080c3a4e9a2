"""Agents made of agents: they change what the inner agent sees, and know no algorithm."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import struct

from jaxrl.hyper import require
from jaxrl.metrics import Metrics
from jaxrl.nn import statistics
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition


class NormalizeObsState(NamedTuple):
    """The statistics and the state of the inner agent."""

    statistics: statistics.RunningStatistics
    agent: PyTree


@struct.dataclass
class NormalizeObs:
    """The inner agent sees observations of zero mean and unit variance, clipped at ``obs_clip``.

    The statistics are part of the state, so a saved policy cannot be parted from them. They take in
    a rollout after the update on it: the policy is updated under the statistics it acted with, and
    its probability ratios start at 1.
    """

    agent: Any
    obs_clip: float = 10.0

    def init(self, key: Key, spec: Spec) -> NormalizeObsState:
        """Statistics of nothing yet, and the inner agent's state."""
        return NormalizeObsState(statistics.start(spec.observation), self.agent.init(key, spec))

    def draw(self, state: NormalizeObsState, obs: PyTree, key: Key, steps: int) -> PyTree:
        """The inner agent's."""
        return self.agent.draw(state.agent, obs, key, steps)

    def act(
        self, state: NormalizeObsState, obs: PyTree, key: PyTree, mode: Mode
    ) -> tuple[Array, Extras]:
        """The inner agent's action for the normalised ``obs[..., *O]``."""
        seen = statistics.normalise(state.statistics, obs, self.obs_clip)
        return self.agent.act(state.agent, seen, key, mode)

    def update(
        self, state: NormalizeObsState, batch: Transition, key: Key
    ) -> tuple[NormalizeObsState, Metrics]:
        """The inner agent's update on normalised observations."""
        obs, next_obs = (
            statistics.normalise(state.statistics, x, self.obs_clip)
            for x in (batch.obs, batch.next_obs)
        )
        batch = batch._replace(obs=obs, next_obs=next_obs)
        inner, metrics = self.agent.update(state.agent, batch, key)
        return state._replace(agent=inner), metrics

    def observe(self, state: NormalizeObsState, transitions: Transition) -> NormalizeObsState:
        """Take ``transitions.obs[T, N, *O]`` into the statistics."""
        merged = statistics.merge(state.statistics, transitions.obs)
        return NormalizeObsState(merged, self.agent.observe(state.agent, transitions))

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        require("obs_clip", self.obs_clip, 0, above=True)
        self.agent.check(transitions)


@struct.dataclass
class ScaleReward:
    """The inner agent learns from rewards times ``reward_scale``; returns are reported raw."""

    agent: Any
    reward_scale: float = 1.0

    def init(self, key: Key, spec: Spec) -> PyTree:
        """The inner agent's state."""
        return self.agent.init(key, spec)

    def draw(self, state: PyTree, obs: PyTree, key: Key, steps: int) -> PyTree:
        """The inner agent's."""
        return self.agent.draw(state, obs, key, steps)

    def act(self, state: PyTree, obs: PyTree, key: PyTree, mode: Mode) -> tuple[Array, Extras]:
        """The inner agent's action."""
        return self.agent.act(state, obs, key, mode)

    def update(self, state: PyTree, batch: Transition, key: Key) -> tuple[PyTree, Metrics]:
        """The inner agent's update on scaled rewards."""
        return self.agent.update(
            state, batch._replace(reward=batch.reward * self.reward_scale), key
        )

    def observe(self, state: PyTree, transitions: Transition) -> PyTree:
        """The inner agent's; it sees scaled rewards here too."""
        scaled = transitions._replace(reward=transitions.reward * self.reward_scale)
        return self.agent.observe(state, scaled)

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        require("reward_scale", self.reward_scale, 0, above=True)
        self.agent.check(transitions)
