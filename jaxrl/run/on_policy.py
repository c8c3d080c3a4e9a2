"""What the scripts of on-policy agents share: more options, and the trainer that they describe."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrl.agents import NormalizeObs, ScaleReward
from jaxrl.envs import VectorEnv, make
from jaxrl.envs.vector import Resets
from jaxrl.run import cli
from jaxrl.training import OnPolicy


@dataclasses.dataclass(frozen=True)
class OnPolicyOptions(cli.Options):
    """Options of every script that trains by rollouts."""

    unroll: int = 128
    """Steps of every environment between two updates."""
    resets: Resets | None = None
    """How ended episodes start again; default "fresh" for toy dynamics, "bank" for physics."""
    max_steps: int | None = None
    """Time limit of an episode; default the environment's own."""
    normalize_obs: bool = False
    """Learn from observations of zero mean and unit variance."""
    reward_scale: float = 1.0
    """Learn from rewards times this."""
    anneal: bool = True
    """Let the learning rate fall linearly to zero over the run, or over --agent.anneal-over."""

    @property
    def iterations(self) -> int:
        """Rollouts, and so updates, of the whole run."""
        return -(-self.total_steps // max(self.unroll * self.num_envs, 1))

    def environments(self) -> VectorEnv:
        """The vector environment."""
        env = make(self.env, **cli.assignments(self.env_options, "env-options"))
        return VectorEnv(env, self.num_envs, self.resets, max_steps=self.max_steps)

    def trainer(self, agent: Any, env: VectorEnv) -> OnPolicy:
        """The trainer of ``agent``, with its learning rate annealed and its wrappers around it."""
        if self.anneal and not agent.anneal_over:
            agent = agent.replace(anneal_over=float(self.iterations))
        if self.reward_scale != 1.0:
            agent = ScaleReward(agent, self.reward_scale)
        if self.normalize_obs:
            agent = NormalizeObs(agent)
        return OnPolicy(agent, env, unroll=self.unroll)
