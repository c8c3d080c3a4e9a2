"""SAC on any environment of continuous actions.

python experiments/sac.py
python experiments/sac.py --env mjx/Hopper-v5 --num-seeds 5
python experiments/sac.py --env brax/ant --sweep target_entropy=-1.0,-0.5
"""

from __future__ import annotations

import dataclasses

from jaxrl import SAC, OffPolicy, cli
from jaxrl.cli.presets import sac


@dataclasses.dataclass(frozen=True)
class Config(cli.OffPolicyOptions):
    """Soft actor-critic. Defaults are those of the environment's family."""

    env: str = "mjx/HalfCheetah-v5"
    """The environment, "<suite>/<task>"; a wrong name is answered with the nearest right ones."""
    agent: SAC = dataclasses.field(default_factory=SAC)


def build(config: Config) -> OffPolicy:
    """Return the trainer that the options describe."""
    return config.trainer(config.agent, config.environments())


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, sac.PRESETS, SAC)
    cli.prepare(config.devices)
    cli.train(build(config), config)


if __name__ == "__main__":
    cli.launch(main)
