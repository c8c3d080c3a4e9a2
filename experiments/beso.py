"""Goal-conditioned imitation by score-based diffusion (BESO), of goals in hindsight.

(Reuss et al. 2023, "Goal-Conditioned Imitation Learning using Score-based Diffusion Policies".)

python experiments/beso.py
python experiments/beso.py --guidance 1.5 --goal-horizon 10
python experiments/beso.py --sweep guidance=0,1,2
"""

from __future__ import annotations

import dataclasses

from jaxrl import BC, Offline, UsageError, VectorEnv, cli, make, run
from jaxrl.cli.presets import beso
from jaxrl.data import Hindsight, with_goals
from jaxrl.hyper import size
from jaxrl.nn.edm import EDM
from jaxrl.nn.encoders import Flatten
from jaxrl.optim import AdamW

POLICY = EDM(encoder=Flatten(obs_keys=("state", "goal")), guided_by=("goal",))


@dataclasses.dataclass(frozen=True)
class Config(cli.OfflineOptions):
    """BESO. The environment observes a state and a goal, and the dataset states alone."""

    env: str = "maze/Goals-v0"
    goal_horizon: int | None = size(None, help="maximum steps to a goal; default: no maximum")
    agent: BC = BC(policy=POLICY, optimizer=AdamW(), learning_rate=1e-4, ema_decay=0.999)


def main() -> None:
    """Train, and keep a record in the run's folder; returns are rates of success."""
    config = cli.parse(Config, beso.PRESETS)
    cli.prepare(config.devices, config.distributed)

    env = VectorEnv(make(config.env, **config.env_settings), 1)
    observed = env.spec.observation
    if not isinstance(observed, dict) or observed.keys() != {"state", "goal"}:
        raise UsageError(f"env is {config.env}, which has no goals; choose one as maze/Goals-v0")
    plain = dataclasses.replace(env.spec, observation=observed["state"])
    dataset, reference = cli.load_dataset(config, plain)
    dataset = with_goals(dataset)
    agent = config.wrapped(config.agent, dataset)
    trainer = Offline(
        agent,
        env,
        batch_size=config.batch_size,
        num_updates=config.num_updates,
        sampler=Hindsight(config.sampler, config.goal_horizon),
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
