"""Agents: one algorithm per file, and the wrappers that compose with them."""

from jaxrl.agents.ppo import PPO
from jaxrl.agents.wrappers import NormalizeObs, ScaleReward

__all__ = ["PPO", "NormalizeObs", "ScaleReward"]
