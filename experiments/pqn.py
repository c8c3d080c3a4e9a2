"""PQN on any environment with discrete actions.

python experiments/pqn.py
python experiments/pqn.py --env gymnax/Breakout-MinAtar --num-seeds 4
python experiments/pqn.py --sweep q_lambda=0.0,0.65,0.95 --no-layer-norm
"""

from __future__ import annotations

import dataclasses

from jaxrl import PQN, NormalizeObs, OnPolicy, ScaleReward, VectorEnv, cli, make, run
from jaxrl.cli.presets import pqn


@dataclasses.dataclass(frozen=True)
class Config(cli.OnPolicyOptions, cli.EpsilonOptions):
    """Parallelised Q(lambda). Defaults are those tuned for the environment's family."""

    env: str = "gymnax/CartPole-v1"
    agent: PQN = PQN()


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, pqn.PRESETS)
    cli.prepare(config.devices, config.distributed)

    env = make(config.env, **config.env_settings)
    env = VectorEnv(env, config.num_envs, config.reset_mode, max_steps=config.max_steps)
    agent = config.agent
    if not agent.epsilon_decay_steps:
        agent = agent.replace(epsilon_decay_steps=config.epsilon_fraction * config.iterations)
    if config.anneal and not agent.lr_decay_steps:
        agent = agent.replace(lr_decay_steps=float(config.iterations))
    if config.reward_scale != 1.0:
        agent = ScaleReward(agent, config.reward_scale)
    if config.normalize_obs:
        agent = NormalizeObs(agent)
    trainer = OnPolicy(agent, env, num_steps=config.num_steps)

    result = run(trainer, config.total_steps, **config.run_options(trainer))
    cli.report(result, config)


if __name__ == "__main__":
    cli.launch(main)
