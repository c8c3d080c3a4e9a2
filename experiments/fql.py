"""Flow Q-learning on a dataset.

python experiments/fql.py
python experiments/fql.py --env mjx/Hopper-v4 --env-options margin=legacy --dataset PATH
python experiments/fql.py --num-seeds 8 --sweep alpha=0.01,0.03,0.1,0.3,1
"""

from __future__ import annotations

import dataclasses

from jaxrl import FQL, Offline, VectorEnv, cli, make, run
from jaxrl.cli.presets import fql


@dataclasses.dataclass(frozen=True)
class Config(cli.OfflineOptions):
    """Flow Q-learning. Defaults are those of the dataset's family."""

    env: str = "gymnax/Pendulum-v1"
    agent: FQL = FQL()


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, fql.PRESETS)
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
