"""Fine-tuning of a flow policy by PPO on its chains, with learnt noise (ReinFlow).

python experiments/reinflow.py --env gymnax/Pendulum-v1 --num-seeds 8 --policy-from RUN
python experiments/reinflow.py --env mjx/Hopper-v5 --env-options execute=4 --policy-from CHUNKS
python experiments/reinflow.py --env gymnax/Pendulum-v1 --policy.sample-steps 1 --policy-from RUN

RUN is the folder of a run of behaviour cloning, with a flow policy of the same sizes. Without it
the policy is trained from scratch. CHUNKS is that of a clone that predicts four actions at once;
total steps then count chunks.
"""

from __future__ import annotations

import dataclasses

from jaxrl import NormalizeObs, OnPolicy, ReinFlow, ScaleReward, VectorEnv, cli, make, run
from jaxrl.cli.presets import reinflow


@dataclasses.dataclass(frozen=True)
class Config(cli.FineTuningOptions):
    """ReinFlow. Defaults are those of the environment's family."""

    agent: ReinFlow = ReinFlow()


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, reinflow.PRESETS)
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
