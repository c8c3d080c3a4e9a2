"""PPO on any environment.

python experiments/ppo.py
python experiments/ppo.py --env gymnax/CartPole-v1 --num-seeds 32
python experiments/ppo.py --env gymnax/Pendulum-v1 --policy-from runs/bc
python experiments/ppo.py --env brax/reacher --learning-rate 1e-3 --sweep gamma=0.95,0.99
"""

from __future__ import annotations

import dataclasses

from jaxrl import PPO, NormalizeObs, OnPolicy, ScaleReward, VectorEnv, cli, make, run
from jaxrl.cli.presets import ppo


@dataclasses.dataclass(frozen=True)
class Config(cli.FineTuningOptions):
    """Proximal policy optimisation. Defaults are those tuned for the environment's family."""

    agent: PPO = PPO()


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, ppo.PRESETS)
    cli.prepare(config.devices, config.distributed)

    env = make(config.env, **config.env_settings)
    env = VectorEnv(env, config.num_envs, config.reset_mode, max_steps=config.max_steps)
    agent = config.agent
    if config.anneal and not agent.lr_decay_steps:
        agent = agent.replace(lr_decay_steps=float(config.iterations))
    if config.reward_scale != 1.0:
        agent = ScaleReward(agent, config.reward_scale)
    if config.normalize_obs:
        agent = NormalizeObs(agent, frozen=config.policy_from is not None)
    trainer = OnPolicy(agent, env, num_steps=config.num_steps)

    result = run(trainer, config.total_steps, **config.run_options(trainer))
    cli.report(result, config)


if __name__ == "__main__":
    cli.launch(main)
