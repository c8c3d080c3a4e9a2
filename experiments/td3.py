"""TD3 on any environment with continuous actions.

python experiments/td3.py
python experiments/td3.py --env mjx/Hopper-v5 --num-seeds 5
python experiments/td3.py --env brax/ant --sweep policy_noise=0.0,0.2
"""

from __future__ import annotations

import dataclasses

from jaxrl import TD3, NormalizeObs, OffPolicy, ScaleReward, VectorEnv, cli, make, run
from jaxrl.cli.presets import td3


@dataclasses.dataclass(frozen=True)
class Config(cli.OffPolicyOptions):
    """Twin delayed DDPG. Defaults are those of the environment's family."""

    env: str = "mjx/HalfCheetah-v5"
    agent: TD3 = TD3()


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, td3.PRESETS)
    cli.prepare(config.devices, config.distributed)

    env = make(config.env, **config.env_settings)
    env = VectorEnv(env, config.num_envs, config.reset_mode, max_steps=config.max_steps)
    agent = config.agent
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
