"""Behaviour cloning with a diffusion policy, of single actions or of chunks.

python experiments/diffusion_bc.py
python experiments/diffusion_bc.py --horizon 8 --execute 4 --obs-horizon 2
python experiments/diffusion_bc.py --env mjx/Hopper-v4 --env-options margin=legacy --dataset PATH
"""

from __future__ import annotations

import dataclasses

from jaxrl import BC, Chunks, Offline, VectorEnv, cli, make, run
from jaxrl.cli.presets import diffusion_bc
from jaxrl.data import Windows
from jaxrl.hyper import same_as, size
from jaxrl.nn.diffusion import Diffusion
from jaxrl.optim import AdamW


@dataclasses.dataclass(frozen=True)
class Config(cli.OfflineOptions):
    """Cloning with a diffusion policy. Defaults are those of the dataset's family."""

    env: str = "gymnax/Pendulum-v1"
    horizon: int = size(1, help="actions that are predicted at once")
    execute: int | None = same_as(Chunks, "execute")
    obs_horizon: int = same_as(Chunks, "obs_horizon")
    agent: BC = BC(Diffusion(), AdamW(weight_decay=1e-6), ema_decay=0.995)


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, diffusion_bc.PRESETS)
    cli.prepare(config.devices, config.distributed)

    env = VectorEnv(make(config.env, **config.env_settings), 1)
    dataset, reference = cli.load_dataset(config, env.spec)
    agent = Chunks(config.agent, config.horizon, config.execute, config.obs_horizon)
    agent = config.wrapped(agent, dataset)
    trainer = Offline(
        agent,
        env,
        batch_size=config.batch_size,
        num_updates=config.num_updates,
        sampler=Windows(config.horizon, config.obs_horizon, config.sampler),
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
