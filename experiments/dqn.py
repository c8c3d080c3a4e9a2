"""DQN on any environment with discrete actions.

python experiments/dqn.py
python experiments/dqn.py --env gymnax/Breakout-MinAtar --num-seeds 4
python experiments/dqn.py --dueling --n-step 3 --sweep learning_rate=1e-4,3e-4
"""

from __future__ import annotations

import dataclasses

from jaxrl import DQN, NormalizeObs, OffPolicy, ScaleReward, VectorEnv, cli, make, run
from jaxrl.cli.presets import dqn


@dataclasses.dataclass(frozen=True)
class Config(cli.OffPolicyOptions, cli.EpsilonOptions, cli.AnnealOptions):
    """Deep Q-learning. Defaults are those tuned for the environment's family."""

    env: str = "gymnax/CartPole-v1"
    anneal: bool = False
    agent: DQN = DQN()


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, dqn.PRESETS)
    cli.prepare(config.devices, config.distributed)

    env = make(config.env, **config.env_settings)
    env = VectorEnv(env, config.num_envs, config.reset_mode, max_steps=config.max_steps)
    agent = config.agent
    if not agent.epsilon_decay_steps:
        agent = agent.replace(epsilon_decay_steps=config.epsilon_fraction * config.gradient_steps)
    if config.anneal and not agent.lr_decay_steps:
        agent = agent.replace(lr_decay_steps=float(config.gradient_steps))
    if config.reward_scale != 1.0:
        agent = ScaleReward(agent, config.reward_scale)
    if config.normalize_obs:
        agent = NormalizeObs(agent)
    trainer = OffPolicy(
        agent,
        env,
        buffer_size=config.buffer_size,
        batch_size=config.batch_size,
        learning_starts=config.learning_starts,
        warmup_policy=config.warmup_policy,
        num_steps=config.num_steps,
        num_updates=config.num_updates,
        cycles=config.cycles,
        n_step=config.n_step,
        precision=config.precision,
    )

    result = run(trainer, config.total_steps, **config.run_options(trainer))
    cli.report(result, config)


if __name__ == "__main__":
    cli.launch(main)
