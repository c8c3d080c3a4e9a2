"""PQN on any environment of discrete actions.

python experiments/pqn.py
python experiments/pqn.py --env gymnax/Breakout-MinAtar --num-seeds 4
python experiments/pqn.py --sweep q_lambda=0.0,0.65,0.95 --agent.no-layer-norm
"""

from __future__ import annotations

import dataclasses

from jaxrl import PQN, OnPolicy, cli
from jaxrl.agents.epsilon import number_of_actions, over_fraction
from jaxrl.cli.presets import pqn


@dataclasses.dataclass(frozen=True)
class Config(cli.OnPolicyOptions):
    """Parallelised Q(lambda). Defaults are those tuned for the environment's family."""

    env: str = "gymnax/CartPole-v1"
    """The environment, "<suite>/<task>"; a wrong name is answered with the nearest right ones."""
    epsilon_fraction: float = 0.2
    """Part of the run over which epsilon falls, unless --agent.epsilon-over gives the updates.

    A resumed run may be longer only with the --agent.epsilon-over that it had."""
    agent: PQN = dataclasses.field(default_factory=PQN)


def build(config: Config) -> OnPolicy:
    """Return the trainer that the options describe."""
    env = config.environments()
    number_of_actions(env.spec, "PQN", config.env)
    agent = over_fraction(config.agent, config.epsilon_fraction, config.iterations)
    return config.trainer(agent, env)


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, pqn.PRESETS, PQN)
    cli.prepare(config.devices)
    cli.train(build(config), config)


if __name__ == "__main__":
    cli.launch(main)
