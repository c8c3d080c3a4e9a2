"""Fine-tuning of clones: DPPO, ReinFlow, PPO, DSRL, edits and PA-RL, from the same data.

python benchmarks/fine_tuning.py
python benchmarks/fine_tuning.py --methods dppo reinflow --num-seeds 8
python benchmarks/fine_tuning.py --dataset maze/Stitch-v0/stitch --out runs/stitch.json
python benchmarks/fine_tuning.py --dataset runs/data/mjx/Hopper-v5/medium.hdf5

Clones of the dataset with a diffusion, a flow and a Gaussian policy are trained first, one for
each seed; each method then goes on from its clone. On-policy methods take ``steps`` environment
steps. The others, which make a gradient step for each, take ``online_steps``, after
``offline_steps`` on the dataset. The gain is the last return less the clone's, as a share of the
way from the random policy to the expert, with its interval over seeds; ``offline`` is the part of
it that was there before the first environment step. ``physics`` is the share of the time that the
environment alone takes for as many steps, measured apart. Seconds are those of training, without
compiling and evaluations; in the figure they are spread evenly over a run's steps. Methods that
the file has already are not run again; their numbers of steps must be those that are asked for.

Where the environment shows a goal and the data do not (``maze/Goals-v0/goals``), each row gets one
drawn at random: the clones go to any goal, and fine-tuning teaches them to go to the one they see.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from clones import CLONES, SIZES, clone, located, read, sizes

import jaxrl
from jaxrl import cli, hyper
from jaxrl.analysis.curves import COLOURS
from jaxrl.analysis.statistics import bootstrap_ci, final_return, iqm
from jaxrl.cli.presets import dppo, dsrl, edit, pa_rl, ppo, reinflow
from jaxrl.cli.presets.preset import lookup
from jaxrl.data import Mixed
from jaxrl.data.dataset import checksum
from jaxrl.data.formats import load, metadata, reference
from jaxrl.envs.maze import GoalMaze
from jaxrl.errors import UsageError
from jaxrl.nn.flow import NoisyFlow
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance

CLONED = CLONES["diffusion"].replace(min_std=0.1)
REINFLOW = jaxrl.ReinFlow(policy=NoisyFlow(**SIZES, time_embedding="sinusoidal"))
ON_POLICY: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "dppo": (jaxrl.DPPO(policy=CLONED), dppo, "diffusion", {}),
    "reinflow": (REINFLOW, reinflow, "flow", {}),
    "reinflow_1": (REINFLOW, reinflow, "flow", {"sample_steps": 1}),
    "ppo": (jaxrl.PPO(policy=CLONES["gaussian"]), ppo, "gaussian", {}),
}
OFF_POLICY: dict[str, tuple[Any, Any, str]] = {
    "dsrl": (jaxrl.DSRL(policy=CLONES["flow"]), dsrl, "flow"),
    "edit": (jaxrl.EditPolicy(policy=CLONES["flow"]), edit, "flow"),
    "pa_rl": (jaxrl.PARL(policy=CLONES["diffusion"]), pa_rl, "diffusion"),
}
METHODS = (*ON_POLICY, *OFF_POLICY)
REWARDS = ("reward_scale", "reward_shift", "return_range")


def on_policy(method: str, names: tuple[str, str], steps: int) -> tuple[list[Any], str]:
    """Return the phase of a method, and the name of its clone."""
    agent, presets, source, policy = ON_POLICY[method]
    settings = lookup(presets.PRESETS, *names)
    agent = hyper.override(agent, settings["agent"])
    # The policy is the clone's, whatever the presets say of its size.
    parts = sizes(names[0])
    agent = hyper.override(agent, {"policy": parts | policy, "critic": parts})
    iterations = -(-steps // (settings["num_envs"] * settings["num_steps"]))
    if settings["anneal"]:
        agent = agent.replace(lr_decay_steps=float(iterations))
    agent = jaxrl.NormalizeObs(jaxrl.ScaleReward(agent, settings["reward_scale"]), frozen=True)
    env = jaxrl.VectorEnv(jaxrl.make(names[0]), settings["num_envs"])
    trainer = jaxrl.OnPolicy(agent, env, num_steps=settings["num_steps"])
    return [jaxrl.Phase(trainer, steps, "online")], source


def off_policy(
    method: str, names: tuple[str, str], data: Any, offline_steps: int, online_steps: int
) -> tuple[list[Any], str]:
    """Return the phases of a method, and the name of its clone."""
    agent, presets, source = OFF_POLICY[method]
    settings = lookup(presets.PRESETS, *names)
    agent = hyper.override(agent, settings["agent"])
    rewards = {name: settings[name] for name in REWARDS if name in settings}
    agent = cli.OfflineOptions(normalize_obs=True, **rewards).wrapped(agent, data)
    env = jaxrl.VectorEnv(jaxrl.make(names[0]), 1)
    sizes: dict[str, Any] = {"buffer_size": 100_000, "learning_starts": 1_000}
    online = jaxrl.OffPolicy(agent, env, warmup_policy="agent", sampler=Mixed(0.5), **sizes)
    offline = jaxrl.Offline(agent, env, num_updates=64)
    phases = [
        jaxrl.Phase(offline, offline_steps, "offline"),
        jaxrl.Phase(online, online_steps, "online"),
    ]
    return phases, source


def physics_seconds(env: Any, steps: int, members: int) -> float:
    """Return the seconds that environments alone take for ``steps`` of every member."""
    rows = max(256, 4096 // env.num_envs)

    def play(key: Any) -> Any:
        pool = env.reset_pool(key)

        def step(state: Any, key: Any) -> tuple[Any, Any]:
            shape = (env.num_envs, *env.spec.action.shape)
            action = jax.random.uniform(key, shape, minval=-1.0)
            state, made = env.step(key, state, action, pool)
            return state, jnp.sum(made.reward)

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, rows))[1]

    keys = jax.random.split(jax.random.key(0), members)
    played = jax.jit(jax.vmap(play)).lower(keys).compile()
    jax.block_until_ready(played(keys))
    began = time.perf_counter()
    jax.block_until_ready(played(keys))
    return (time.perf_counter() - began) * steps / (rows * env.num_envs)


def row(method: str, result: Any, source: Path, known: Any) -> dict[str, Any]:
    """Return a method's returns, gains and times."""
    frame, summary = result.frame("eval"), result.summary
    seeds, gap = summary["seeds"], known.expert - known.random
    table = frame.pivot(index="step", columns="seed", values="episode_return")[seeds]
    returns = table.to_numpy(float)
    clone = jaxrl.analysis.load_summary(source)
    assert clone is not None
    before = np.array(clone["final_return"]["per_seed"])
    offline: dict[str, Any] = {}
    if summary.get("switches"):
        switch = np.array(summary["switches"][0]["before"]["per_seed"])
        offline = {"offline": final_return((switch - before) / gap)}
    physics = physics_seconds(result.trainer.env, summary["env_steps"], len(seeds))
    return {
        "method": method,
        "seeds": seeds,
        "clone": final_return(before),
        "final": final_return(returns[-1]),
        "gain": final_return((returns[-1] - before) / gap),
        **offline,
        "env_steps": summary["env_steps"],
        "train_seconds": summary["train_seconds"],
        "physics_share": round(physics / summary["train_seconds"], 3),
        "steps": table.index.tolist(),
        "env_steps_at": frame.groupby("step")["env_steps"].first().tolist(),
        "returns": returns.tolist(),
        **provenance(),
    }


def shown(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    low, high = row["gain"]["ci95"]
    return (
        f"{row['method']:11} clone {row['clone']['iqm']:8.1f}  final {row['final']['iqm']:8.1f}  "
        f"gain {row['gain']['iqm']:6.1%} ({low:.1%} to {high:.1%})  "
        f"{row['train_seconds']:6.0f} s, physics {row['physics_share']:.0%}"
    )


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw the returns against environment steps and against seconds: IQM and interval."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for each, colour in zip(rows, COLOURS, strict=False):
        steps, returns = np.array(each["steps"]), np.array(each["returns"])
        middle = [iqm(x) for x in returns]
        low, high = np.transpose([bootstrap_ci(x) for x in returns])
        seconds = each["train_seconds"] * steps / steps[-1]
        for ax, x in zip(axes, (each["env_steps_at"], seconds), strict=True):
            ax.plot(x, middle, color=colour, label=each["method"])
            ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes[0].set(xlabel="environment steps of each seed", ylabel="return (IQM, 95 %)")
    # Off-policy methods take far fewer steps, and each takes longer.
    if len({each["method"] in OFF_POLICY for each in rows}) > 1:
        for ax, linear in zip(axes, (1_000, 10), strict=True):
            ax.set_xscale("symlog", linthresh=linear)
            ax.set_xlim(left=0)
            ax.set_xticks([0, linear, 10 * linear, 100 * linear])
            ax.minorticks_off()
    axes[1].set(xlabel="seconds of training, all seeds together")
    for ax in axes:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.grid(alpha=0.3)
    axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=140)


def earlier(out: Path, record: dict[str, Any], seeds: list[int]) -> list[dict[str, Any]]:
    """Return the rows that the file has. Raises UsageError if they are of another comparison."""
    if not out.exists():
        return []
    found = json.loads(out.read_text())
    rows: list[dict[str, Any]] = found["results"]
    alike = {name: found.get(name) for name in record} == record
    if not alike or any(row["seeds"] != seeds for row in rows):
        raise UsageError(
            f"out is {out}, which has other data, clones or seeds; give another, such as "
            f"{out.with_stem(out.stem + '_2')}"
        )
    return rows


def phases_of(
    method: str, names: tuple[str, str], data: Any, steps: int, offline: int, online: int
) -> tuple[list[Any], str]:
    """Return the phases of a method of either kind, and the name of its clone."""
    if method in ON_POLICY:
        return on_policy(method, names, steps)
    return off_policy(method, names, data, offline, online)


def check_budget(row: dict[str, Any], phases: list[Any], out: Path) -> None:
    """Raise UsageError if a row of the file has other numbers of steps than these phases."""
    offline, online = 0, 0
    for phase in phases:
        trainer = phase.trainer
        taken = trainer.first_step + trainer.iterations(phase.steps) * trainer.units_per_iteration
        offline += taken * (phase.name == "offline")
        online += taken * (phase.name == "online")
    # The last of a row's ``steps`` counts both.
    found = (row["steps"][-1] - row["env_steps"], row["env_steps"])
    if found != (offline, online):
        given = "--steps" if len(phases) == 1 else "--offline-steps, --online-steps"
        raise UsageError(
            f"out is {out}, where {row['method']} has {found[0]} offline and {found[1]} "
            f"environment steps, and {given} ask for {offline} and {online}; give the same, or "
            f"another file, such as {out.with_stem(out.stem + '_2')}"
        )


def main(
    methods: tuple[str, ...] = METHODS,
    dataset: str = "gymnax/Pendulum-v1/medium",
    num_seeds: int = 4,
    first_seed: int = 100,
    clone_steps: int = 8_000,
    steps: int = 300_000,
    evaluations: int = 10,
    offline_steps: int = 10_000,
    online_steps: int = 10_000,
    out: Path = Path("results/fine_tuning.json"),
) -> None:
    """Clone, fine-tune, print a table, write it and draw it."""
    path, names = located(dataset)
    seeds = list(range(first_seed, first_seed + num_seeds))
    if chosen := metadata(path).get("env_options"):
        raise UsageError(
            f"dataset is {dataset}, of {names[0]} with the options {chosen}, and this benchmark "
            "plays environments as they are; give a dataset without options"
        )
    env = jaxrl.make(names[0])
    data, known = read(path, env), reference(path)
    wrong = [method for method in methods if method in OFF_POLICY and isinstance(env, GoalMaze)]
    if wrong:
        raise UsageError(
            f"methods has {wrong[0]}, which learns from rewards, and those of {dataset} are for "
            f"other goals; give some of {', '.join(ON_POLICY)}"
        )
    if known is None:
        raise UsageError(
            f"dataset is {dataset}, of which no returns of random and expert are known"
        )
    record = {
        "dataset": dataset,
        "checksum": checksum(load(path, quiet=True)),
        "clone_steps": clone_steps,
    }
    rows, budget = earlier(out, record, seeds), (steps, offline_steps, online_steps)
    kinds = {method in ON_POLICY for method in methods}
    for each in rows:
        if (each["method"] in ON_POLICY) in kinds:
            check_budget(each, phases_of(each["method"], names, data, *budget)[0], out)
    for method in methods:
        if any(row["method"] == method for row in rows):
            continue
        options: dict[str, Any] = {"seeds": seeds, "quiet": True}
        phases, source = phases_of(method, names, data, *budget)
        given = None if method in ON_POLICY else cli.with_extras(data, phases[0].trainer.agent)
        options["eval_every"] = phases[-1].steps // evaluations
        folder = clone(source, names, data, seeds, clone_steps)
        result = jaxrl.run(phases, data=given, policy_from=folder, **options)
        made = row(method, result, folder, known)
        print(shown(made), flush=True)
        rows = sorted([*rows, made], key=lambda row: METHODS.index(row["method"]))
        write_json(out, {**record, "results": rows})
    draw(rows, f"Fine-tuning of clones of {dataset}", out.with_suffix(".png"))


if __name__ == "__main__":
    cli.launch(lambda: tyro.cli(main, description=__doc__))
