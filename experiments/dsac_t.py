"""DSAC-T on any environment of continuous actions.

python experiments/dsac_t.py
python experiments/dsac_t.py --env mjx/Hopper-v5 --num-seeds 5
python experiments/dsac_t.py --env brax/ant --agent.no-twin  # without the second refinement
"""

from __future__ import annotations

import dataclasses

from jaxrl import DSACT, OffPolicy, cli
from jaxrl.cli.presets import dsac_t


@dataclasses.dataclass(frozen=True)
class Config(cli.OffPolicyOptions):
    """DSAC with three refinements. Defaults are those of the environment's family."""

    env: str = "mjx/HalfCheetah-v5"
    """The environment, "<suite>/<task>"; a wrong name is answered with the nearest right ones."""
    agent: DSACT = dataclasses.field(default_factory=DSACT)


def build(config: Config) -> OffPolicy:
    """Return the trainer that the options describe."""
    return config.trainer(config.agent, config.environments())


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, dsac_t.PRESETS, DSACT)
    cli.prepare(config.devices)
    cli.train(build(config), config)


if __name__ == "__main__":
    cli.launch(main)
