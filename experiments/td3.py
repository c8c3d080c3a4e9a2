"""TD3 on any environment of continuous actions.

python experiments/td3.py
python experiments/td3.py --env mjx/Hopper-v5 --num-seeds 5
python experiments/td3.py --env brax/ant --sweep policy_noise=0.0,0.2
"""

from __future__ import annotations

import dataclasses

from jaxrl import TD3, OffPolicy, cli
from jaxrl.cli.presets import td3


@dataclasses.dataclass(frozen=True)
class Config(cli.OffPolicyOptions):
    """Twin delayed DDPG. Defaults are those of the environment's family."""

    env: str = "mjx/HalfCheetah-v5"
    """The environment, "<suite>/<task>"; a wrong name is answered with the nearest right ones."""
    agent: TD3 = dataclasses.field(default_factory=TD3)


def build(config: Config) -> OffPolicy:
    """Return the trainer that the options describe."""
    return config.trainer(config.agent, config.environments())


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, td3.PRESETS, TD3)
    cli.prepare(config.devices)
    cli.train(build(config), config)


if __name__ == "__main__":
    cli.launch(main)
