"""PA-RL: any policy imitates actions that the critics have improved; on a dataset, then online.

python experiments/pa_rl.py
python experiments/pa_rl.py --policy-from runs/diffusion_bc --online-steps 20000
python experiments/pa_rl.py --critic-learning iql
"""

from __future__ import annotations

import dataclasses

from jaxrl import PARL, Offline, OffPolicy, Phase, VectorEnv, cli, make, run
from jaxrl.cli.presets import pa_rl
from jaxrl.data import Mixed, UniformReplay
from jaxrl.hyper import size


@dataclasses.dataclass(frozen=True)
class Config(cli.OfflineOptions):
    """Policy-agnostic RL. Defaults are those of the dataset's family."""

    env: str = "gymnax/Pendulum-v1"
    agent: PARL = PARL()
    policy_from: str | None = None
    """Start from the policy of the run in this folder; its family and sizes must be the same."""
    online_steps: int = size(0, 0, help="environment steps of each seed, after the dataset")
    learning_starts: int = size(1_000, help="transitions before the first gradient step online")
    buffer_size: int = size(1_000_000, help="transitions in the replay buffer")


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, pa_rl.PRESETS)
    if not config.online_steps:
        cli.refuse(["learning_starts", "buffer_size"], "online_steps is 0")
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
