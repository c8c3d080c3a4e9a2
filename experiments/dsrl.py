"""DSRL: a frozen generative policy, steered by the noise that it starts from.

python experiments/flow_bc.py --run-dir runs/flow_bc
python experiments/dsrl.py --policy-from runs/flow_bc
python experiments/dsrl.py --policy-from runs/flow_bc --online-steps 20000

The critics learn from the dataset first, then online from the dataset and from what they collect.
"""

from __future__ import annotations

import dataclasses

from jaxrl import DSRL, Offline, OffPolicy, Phase, UsageError, VectorEnv, cli, make, run
from jaxrl.cli.presets import dsrl
from jaxrl.data import Mixed, UniformReplay
from jaxrl.hyper import size
from jaxrl.nn.flow import Flow


@dataclasses.dataclass(frozen=True)
class Config(cli.OfflineOptions):
    """Steering in the space of noises. Defaults are those of the dataset's family."""

    env: str = "gymnax/Pendulum-v1"
    agent: DSRL = DSRL(policy=Flow(time_embedding="sinusoidal"))
    policy_from: str | None = None
    """Steer the policy of the run in this folder; its family and sizes must be the same."""
    online_steps: int = size(0, 0, help="environment steps of each seed, after the dataset")
    learning_starts: int = size(1_000, help="transitions before the first gradient step online")
    buffer_size: int = size(1_000_000, help="transitions in the replay buffer")


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, dsrl.PRESETS)
    if not config.online_steps:
        cli.refuse(["learning_starts", "buffer_size"], "online_steps is 0")
    if config.policy_from is None:
        raise UsageError(
            "policy_from is None, and DSRL steers a trained policy; give the run folder of a "
            "clone, such as --policy-from runs/flow_bc"
        )
    cli.prepare(config.devices, config.distributed)

    env = VectorEnv(make(config.env, **config.env_settings), 1)
    dataset, reference = cli.load_dataset(config, env.spec)
    agent = config.wrapped(config.agent, dataset)
    offline = Offline(
        agent, env, batch_size=config.batch_size, num_updates=config.num_updates,
        sampler=config.sampler,
    )  # fmt: skip
    phases = [Phase(offline, config.total_steps, "offline")]
    if config.online_steps:
        online = OffPolicy(
            agent,
            env,
            buffer_size=config.buffer_size,
            batch_size=config.batch_size,
            learning_starts=config.learning_starts,
            warmup_policy="agent",
            sampler=Mixed(0.5, UniformReplay(config.n_step), config.sampler),
        )
        phases.append(Phase(online, config.online_steps, "online"))

    result = run(
        phases,
        data=cli.with_extras(dataset, agent),
        reference=reference,
        policy_from=config.policy_from,
        **config.run_options(offline),
    )
    cli.report(result, config)


if __name__ == "__main__":
    cli.launch(main)
