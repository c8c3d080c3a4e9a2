"""From a dataset to the environment: IQL, Cal-QL, RLPD and WSRL, each as the phases of one run.

python experiments/offline_to_online.py --method iql
python experiments/offline_to_online.py --method wsrl --total-steps 20000 --online-steps 20000
python -m jaxrl.analysis runs/iql runs/cal_ql runs/rlpd runs/wsrl --out comparison.png

Both phases are one run. Its summary has the dip after the switch and the mean return online.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxrl import IQL, SAC, CalQL, Offline, OffPolicy, Phase, VectorEnv, cli, hyper, make, run
from jaxrl.cli.presets import offline_to_online
from jaxrl.data import Mixed, Pooled, UniformReplay
from jaxrl.hyper import choice, same_as, size

Method = Literal["iql", "cal_ql", "rlpd", "wsrl"]


@dataclasses.dataclass(frozen=True)
class Config(cli.OfflineOptions):
    """Offline, then online. Defaults are those of the dataset's family."""

    env: str = "gymnax/Pendulum-v1"
    method: Method = choice("iql", Method, help="offline-to-online method")
    online_steps: int = size(20_000, help="environment steps of each seed, after the dataset")
    online_updates: int = size(1, help="gradient steps per online environment step")
    learning_starts: int = size(1_000, help="transitions before the first online gradient step")
    buffer_size: int = size(1_000_000, help="transitions in the replay buffer")
    hidden_dims: tuple[int, ...] = size((256, 256), help="widths of all networks")
    gamma: float = same_as(SAC, "gamma")
    num_actions: int = size(10, help="cal_ql, wsrl: actions per distribution; fewer are faster")


def agents(config: Config) -> tuple[Any, Any]:
    """Return the agent of the offline phase (None without one), and that of the online phase."""
    sizes = {"hidden_dims": config.hidden_dims}
    parts = {"policy": sizes, "critic": sizes}
    options: dict[str, Any] = {"gamma": config.gamma}
    if config.method == "iql":
        agent = hyper.override(IQL(), parts | options | {"value": sizes})
        return agent, agent
    if config.method == "rlpd":
        sizes = sizes | {"initializer": "xavier"}
        critic = sizes | {"num_critics": 10, "layer_norm": True}
        options |= {"num_min_critics": 2, "actor_q": "mean", "target_entropy": -0.5}
        delay = {"policy_delay": config.online_updates}  # one step of the actor, after the critics
        parts = {"policy": sizes, "critic": critic}
        return None, hyper.override(SAC(), parts | options | delay)
    options |= {"actor_learning_rate": 1e-4, "alpha_learning_rate": 1e-4}
    options["num_actions"] = config.num_actions
    if config.method == "cal_ql":
        agent = hyper.override(CalQL(), parts | options)
        return agent, agent
    norms = {name: part | {"layer_norm": True} for name, part in parts.items()}
    agent = hyper.override(CalQL(), norms | options)
    plain = {"cql_alpha": 0.0, "num_actions": 1, "max_target_backup": False}
    return agent, hyper.override(agent, plain)


def phases(config: Config, env: VectorEnv, data: Any) -> list[Phase]:
    """Return the phases of the method.

    Online, IQL samples from the dataset and the replay buffer pooled as one; Cal-QL and RLPD take
    half of each batch from each. WSRL first fills the buffer with the pre-trained policy, and
    samples from the buffer alone. Both phases use ``n_step``, and ``sampling`` for the dataset.
    """
    before, after = (agent and config.wrapped(agent, data) for agent in agents(config))
    replay = UniformReplay(config.n_step)
    samplers = {"iql": Pooled(replay, config.sampler), "wsrl": None}
    sampler = samplers.get(config.method, Mixed(0.5, replay, config.sampler))
    online = OffPolicy(
        after,
        env,
        buffer_size=config.buffer_size,
        batch_size=config.batch_size,
        learning_starts=config.learning_starts,
        warmup_policy="uniform" if config.method == "rlpd" else "agent",
        num_updates=config.online_updates,
        n_step=1 if sampler else config.n_step,  # a sampler has its own
        sampler=sampler,
    )
    last = Phase(online, config.online_steps, "online")
    if before is None:
        return [last]
    offline = Offline(
        before, env, batch_size=config.batch_size, num_updates=config.num_updates,
        sampler=config.sampler,
    )  # fmt: skip
    return [Phase(offline, config.total_steps, "offline"), last]


def main() -> None:
    """Train, and keep a record in the run's folder."""
    config = cli.parse(Config, offline_to_online.PRESETS)
    if config.method == "rlpd":
        cli.refuse(["total_steps", "num_updates", "validation"], "rlpd has no offline phase")
    if config.method in ("iql", "rlpd"):
        cli.refuse(["num_actions"], f"{config.method} does not sample several actions")
    cli.prepare(config.devices, config.distributed)

    env = VectorEnv(make(config.env, **config.env_settings), 1)
    dataset, reference = cli.load_dataset(config, env.spec)
    made = phases(config, env, dataset)
    result = run(
        made,
        data=cli.with_extras(dataset, made[0].trainer.agent),
        reference=reference,
        **config.run_options(made[-1].trainer),
    )
    cli.report(result, config)


if __name__ == "__main__":
    cli.launch(main)
