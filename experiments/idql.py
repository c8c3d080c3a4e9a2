"""IDQL on a dataset.

python experiments/idql.py
python experiments/idql.py --env mjx/Hopper-v4 --env-options margin=legacy --dataset PATH
python experiments/idql.py --sweep expectile=0.5,0.7,0.9
"""

from __future__ import annotations

import dataclasses

from jaxrl import IDQL, Offline, VectorEnv, cli, make, run
from jaxrl.cli.presets import idql


@dataclasses.dataclass(frozen=True)
class Config(cli.OfflineOptions):
    """IQL with samples of a diffusion policy. Defaults are those of the dataset's family."""

    env: str = "gymnax/Pendulum-v1"
    agent: IDQL = IDQL()


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, idql.PRESETS)
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
