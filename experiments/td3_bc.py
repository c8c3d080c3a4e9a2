"""TD3+BC on a dataset.

python experiments/td3_bc.py
python experiments/td3_bc.py --env mjx/Hopper-v4 --env-options margin=legacy --dataset PATH
python experiments/td3_bc.py --num-seeds 8 --sweep bc_alpha=2.5,10,40,160,640
"""

from __future__ import annotations

import dataclasses

from jaxrl import TD3BC, Offline, VectorEnv, cli, make, run
from jaxrl.cli.presets import td3_bc


@dataclasses.dataclass(frozen=True)
class Config(cli.OfflineOptions):
    """TD3 with behaviour cloning. Defaults are those of the dataset's family."""

    env: str = "gymnax/Pendulum-v1"
    agent: TD3BC = TD3BC()


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, td3_bc.PRESETS)
    cli.prepare(config.devices, config.distributed)

    env = VectorEnv(make(config.env, **config.env_settings), 1)
    dataset, reference = cli.load_dataset(config, env.spec)
    agent = config.wrapped(config.agent, dataset)
    trainer = Offline(
        agent,
        env,
        batch_size=config.batch_size,
        num_updates=config.num_updates,
        sampler=config.sampler,
    )

    result = run(
        trainer,
        config.total_steps,
        data=cli.with_extras(dataset, agent),
        reference=reference,
        **config.run_options(trainer),
    )
    cli.report(result, config)


if __name__ == "__main__":
    cli.launch(main)
