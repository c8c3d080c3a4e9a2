"""PPO on any environment.

python experiments/ppo.py
python experiments/ppo.py --env gymnax/CartPole-v1 --num-seeds 32
python experiments/ppo.py --env brax/reacher --agent.learning-rate 1e-3 --sweep gamma=0.95,0.99
"""

from __future__ import annotations

import dataclasses

from jaxrl import PPO, NormalizeObs, OnPolicy, ScaleReward, VectorEnv, make, presets
from jaxrl.envs.vector import Resets
from jaxrl.run import cli


@dataclasses.dataclass(frozen=True)
class Config(cli.Options):
    """Proximal policy optimisation. Defaults are those tuned for the environment's family."""

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
    agent: PPO = dataclasses.field(default_factory=PPO)


def build(config: Config) -> OnPolicy:
    """The trainer that the options describe."""
    env = make(config.env, **cli.assignments(config.env_options, "env-options"))
    venv = VectorEnv(env, config.num_envs, config.resets, max_steps=config.max_steps)
    agent = config.agent
    if config.anneal and not agent.anneal_over:
        iterations = -(-config.total_steps // max(config.unroll * config.num_envs, 1))
        agent = agent.replace(anneal_over=float(iterations))
    if config.reward_scale != 1.0:
        agent = ScaleReward(agent, config.reward_scale)
    if config.normalize_obs:
        agent = NormalizeObs(agent)
    return OnPolicy(agent, venv, unroll=config.unroll)


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, presets.PPO, PPO)
    cli.prepare(config.devices)
    cli.train(build(config), config)


if __name__ == "__main__":
    cli.launch(main)
