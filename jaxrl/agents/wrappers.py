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
class Wrapper:
    """What wrappers share: what they do not change is the inner agent's."""

    agent: Any

    @property
    def delay(self) -> int:
        """The inner agent's; of agents that learn from replay alone."""
        delay: int = self.agent.delay
        return delay

    def inner(self, state: PyTree) -> PyTree:
        """The inner agent's state."""
        return state

    def draw(self, state: PyTree, obs: PyTree, key: Key, steps: int) -> PyTree:
        """The inner agent's."""
        return self.agent.draw(self.inner(state), obs, key, steps)

    def draw_update(self, state: PyTree, key: Key, shape: tuple[int, ...]) -> PyTree:
        """The inner agent's; of agents that learn from replay alone."""
        return self.agent.draw_update(self.inner(state), key, shape)


@struct.dataclass
class NormalizeObs(Wrapper):
    """The inner agent sees observations of zero mean and unit variance, clipped at ``obs_clip``.

    The statistics are part of the state, so a saved policy cannot be parted from them. They take in
    a rollout after the update on it: the policy is updated under the statistics it acted with, and
    its probability ratios start at 1.
    """

    obs_clip: float = 10.0

    def init(self, key: Key, spec: Spec) -> NormalizeObsState:
        """Statistics of nothing yet, and the inner agent's state."""
        return NormalizeObsState(statistics.start(spec.observation), self.agent.init(key, spec))

    def inner(self, state: NormalizeObsState) -> PyTree:
        """The inner agent's state."""
        return state.agent

    def act(
        self, state: NormalizeObsState, obs: PyTree, key: PyTree, mode: Mode
    ) -> tuple[Array, Extras]:
        """The inner agent's action for the normalised ``obs[..., *O]``."""
        seen = statistics.normalise(state.statistics, obs, self.obs_clip)
        return self.agent.act(state.agent, seen, key, mode)

    def update(
        self, state: NormalizeObsState, batch: Transition, key: PyTree, *schedule: bool
    ) -> tuple[NormalizeObsState, Metrics]:
        """The inner agent's update on normalised observations."""
        obs, next_obs = (
            statistics.normalise(state.statistics, x, self.obs_clip)
            for x in (batch.obs, batch.next_obs)
        )
        batch = batch._replace(obs=obs, next_obs=next_obs)
        inner, metrics = self.agent.update(state.agent, batch, key, *schedule)
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
class ScaleReward(Wrapper):
    """The inner agent learns from rewards times ``reward_scale``; returns are reported raw."""

    reward_scale: float = 1.0

    def init(self, key: Key, spec: Spec) -> PyTree:
        """The inner agent's state."""
        return self.agent.init(key, spec)

    def act(self, state: PyTree, obs: PyTree, key: PyTree, mode: Mode) -> tuple[Array, Extras]:
        """The inner agent's action."""
        return self.agent.act(state, obs, key, mode)

    def update(
        self, state: PyTree, batch: Transition, key: PyTree, *schedule: bool
    ) -> tuple[PyTree, Metrics]:
        """The inner agent's update on scaled rewards."""
        return self.agent.update(state, self.scaled(batch), key, *schedule)

    def observe(self, state: PyTree, transitions: Transition) -> PyTree:
        """The inner agent's; it sees scaled rewards here too."""
        return self.agent.observe(state, self.scaled(transitions))

    def scaled(self, batch: Transition) -> Transition:
        """``batch`` with scaled rewards."""
        return batch._replace(reward=batch.reward * self.reward_scale)

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        require("reward_scale", self.reward_scale, 0, above=True)
        self.agent.check(transitions)
