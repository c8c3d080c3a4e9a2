"""PPO on any environment.

python experiments/ppo.py
python experiments/ppo.py --env gymnax/CartPole-v1 --num-seeds 32
python experiments/ppo.py --env brax/reacher --agent.learning-rate 1e-3 --sweep gamma=0.95,0.99
"""

from __future__ import annotations

import dataclasses

from jaxrl import PPO, OnPolicy, cli
from jaxrl.cli.presets import ppo


@dataclasses.dataclass(frozen=True)
class Config(cli.OnPolicyOptions):
    """Proximal policy optimisation. Defaults are those tuned for the environment's family."""

    agent: PPO = dataclasses.field(default_factory=PPO)


def build(config: Config) -> OnPolicy:
    """Return the trainer that the options describe."""
    return config.trainer(config.agent, config.environments())


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, ppo.PRESETS, PPO)
    cli.prepare(config.devices)
    cli.train(build(config), config)


if __name__ == "__main__":
    cli.launch(main)
