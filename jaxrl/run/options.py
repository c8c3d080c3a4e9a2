"""What the scripts of many agents share: more options, and the trainers that they describe."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrl.agents import NormalizeObs, ScaleReward
from jaxrl.data.replay import Precision
from jaxrl.envs import VectorEnv, make
from jaxrl.envs.vector import Resets
from jaxrl.run import cli
from jaxrl.training import OffPolicy, OnPolicy
from jaxrl.training.rounds import Prefill


@dataclasses.dataclass(frozen=True)
class TrainingOptions(cli.Options):
    """Options of every script that trains in an environment."""

    resets: Resets | None = None
    """How ended episodes start again; default "fresh" for toy dynamics, "bank" for physics."""
    max_steps: int | None = None
    """Time limit of an episode; default the environment's own."""
    normalize_obs: bool = False
    """Learn from observations of zero mean and unit variance."""
    reward_scale: float = 1.0
    """Learn from rewards times this."""

    def environments(self) -> VectorEnv:
        """The vector environment."""
        env = make(self.env, **cli.assignments(self.env_options, "env-options"))
        return VectorEnv(env, self.num_envs, self.resets, max_steps=self.max_steps)

    def wrapped(self, agent: Any) -> Any:
        """``agent`` in the wrappers that are asked for."""
        if self.reward_scale != 1.0:
            agent = ScaleReward(agent, self.reward_scale)
        if self.normalize_obs:
            agent = NormalizeObs(agent)
        return agent


@dataclasses.dataclass(frozen=True)
class OnPolicyOptions(TrainingOptions):
    """Options of every script that trains by rollouts."""

    unroll: int = 128
    """Steps of every environment between two updates."""
    anneal: bool = True
    """Let the learning rate fall linearly to zero over the run, or over --agent.anneal-over.

    A resumed run may be longer only with the --agent.anneal-over that it had."""

    @property
    def iterations(self) -> int:
        """Rollouts, and so updates, of the whole run."""
        return -(-self.total_steps // max(self.unroll * self.num_envs, 1))

    def trainer(self, agent: Any, env: VectorEnv) -> OnPolicy:
        """The trainer of ``agent``, with its learning rate annealed and its wrappers around it."""
        if self.anneal and not agent.anneal_over:
            agent = agent.replace(anneal_over=float(self.iterations))
        return OnPolicy(self.wrapped(agent), env, unroll=self.unroll)


@dataclasses.dataclass(frozen=True)
class OffPolicyOptions(TrainingOptions):
    """Options of every script that trains from a replay ring."""

    num_envs: int = 1
    """Environments of each seed."""
    unroll: int = 1
    """Steps of every environment in a round."""
    updates: int = 1
    """Gradient steps in a round."""
    batch_size: int = 256
    """Transitions of a gradient step."""
    capacity: int = 1_000_000
    """Transitions in the ring, whose memory is taken at once, however short the run."""
    prefill: int = 5_000
    """Transitions before the first gradient step; rounded up to whole rounds."""
    prefill_policy: Prefill = "uniform"
    """Who makes them: uniform actions, or the untrained agent."""
    n_step: int = 1
    """Sum the rewards of so many steps."""
    precision: Precision = "full"
    """Half keeps the observations in the ring in 16 bits."""
    rounds: int | None = None
    """Rounds of an iteration; default chosen by the sizes."""

    @property
    def gradient_steps(self) -> int:
        """Those of the whole run."""
        steps = max(self.total_steps - self.prefill, 0)
        return self.updates * -(-steps // max(self.unroll * self.num_envs, 1))

    def trainer(self, agent: Any, env: VectorEnv) -> OffPolicy:
        """The trainer of ``agent`` with its wrappers around it."""
        return OffPolicy(
            self.wrapped(agent),
            env,
            capacity=self.capacity,
            batch_size=self.batch_size,
            prefill=self.prefill,
            prefill_policy=self.prefill_policy,
            unroll=self.unroll,
            updates=self.updates,
            rounds=self.rounds,
            n_step=self.n_step,
            precision=self.precision,
        )
