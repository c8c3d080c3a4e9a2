"""DQN on any environment of discrete actions.

python experiments/dqn.py
python experiments/dqn.py --env gymnax/Breakout-MinAtar --num-seeds 4
python experiments/dqn.py --agent.dueling --n-step 3 --sweep learning_rate=1e-4,3e-4
"""

from __future__ import annotations

import dataclasses

from jaxrl import DQN, OffPolicy, cli
from jaxrl.agents.epsilon import number_of_actions, over_fraction
from jaxrl.cli.presets import dqn


@dataclasses.dataclass(frozen=True)
class Config(cli.OffPolicyOptions):
    """Deep Q-learning. Defaults are those tuned for the environment's family."""

    env: str = "gymnax/CartPole-v1"
    """The environment, "<suite>/<task>"; a wrong name is answered with the nearest right ones."""
    epsilon_fraction: float = 0.2
    """Part of the run over which epsilon falls, unless --agent.epsilon-over gives the updates.

    A resumed run may be longer only with the --agent.epsilon-over that it had."""
    anneal: bool = False
    """Let the learning rate fall linearly to zero over the run, or over --agent.anneal-over.

    A resumed run may be longer only with the --agent.anneal-over that it had."""
    agent: DQN = dataclasses.field(default_factory=DQN)


def build(config: Config) -> OffPolicy:
    """Return the trainer that the options describe."""
    env = config.environments()
    number_of_actions(env.spec, "DQN", config.env)
    agent = over_fraction(config.agent, config.epsilon_fraction, config.gradient_steps)
    if config.anneal and not agent.anneal_over:
        agent = agent.replace(anneal_over=float(config.gradient_steps))
    return config.trainer(agent, env)


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, dqn.PRESETS, DQN)
    cli.prepare(config.devices)
    cli.train(build(config), config)


if __name__ == "__main__":
    cli.launch(main)
