"""Fine-tuning of clones: DPPO, ReinFlow, PPO, DSRL, edits and PA-RL, from the same data.

python benchmarks/fine_tuning.py
python benchmarks/fine_tuning.py --methods dppo reinflow --num-seeds 8

Clones of the dataset with a diffusion, a flow and a Gaussian policy are trained first, one for
each seed; each method then goes on from its clone. On-policy methods take ``steps`` environment
steps. The others, which make a gradient step for each, take ``online_steps``, after as many on the
dataset. The gain is the last return less the clone's, as a share of the way from the random policy
to the expert, with its interval over seeds. ``physics`` is the share of the time that the
environment alone takes for as many steps, measured apart.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxrl
from jaxrl import hyper
from jaxrl.analysis.curves import COLOURS
from jaxrl.analysis.statistics import bootstrap_ci, final_return, iqm
from jaxrl.cli import launch
from jaxrl.cli.presets import dppo, dsrl, edit, pa_rl, ppo, reinflow
from jaxrl.cli.presets.preset import lookup
from jaxrl.data import Mixed
from jaxrl.data.formats import load, reference
from jaxrl.data.shipped import shipped_path
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.flow import Flow, NoisyFlow
from jaxrl.nn.policies import Gaussian
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance
from jaxrl.training.trainer import Trainer

SIZES: dict[str, Any] = {"hidden_dims": (128, 128)}
CLONES = {
    "diffusion": Diffusion(**SIZES),
    "cosine": Diffusion(**SIZES, schedule="cosine"),  # as PA-RL's presets have it
    "flow": Flow(**SIZES),
    "sinusoidal": Flow(**SIZES, time_embedding="sinusoidal", sample_steps=5),
    "gaussian": Gaussian(**SIZES, initializer="orthogonal"),
}
REINFLOW = jaxrl.ReinFlow(policy=NoisyFlow(**SIZES))
ON_POLICY: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "dppo": (jaxrl.DPPO(policy=Diffusion(**SIZES, min_std=0.1)), dppo, "diffusion", {}),
    "reinflow": (REINFLOW, reinflow, "flow", {}),
    "reinflow_1": (REINFLOW, reinflow, "flow", {"policy": {"sample_steps": 1}}),
    "ppo": (jaxrl.PPO(policy=CLONES["gaussian"]), ppo, "gaussian", {}),
}
OFF_POLICY: dict[str, tuple[Any, Any, str]] = {
    "dsrl": (jaxrl.DSRL(policy=CLONES["sinusoidal"]), dsrl, "sinusoidal"),
    "edit": (jaxrl.EditPolicy(policy=CLONES["sinusoidal"]), edit, "sinusoidal"),
    "pa_rl": (jaxrl.PARL(policy=CLONES["cosine"]), pa_rl, "cosine"),
}
METHODS = (*ON_POLICY, *OFF_POLICY)


def clone(name: str, env_name: str, data: Any, seeds: list[int], steps: int, runs: Path) -> Path:
    """Return the folder of a run that clones the data, trained unless it is there."""
    folder = runs / name
    if not (folder / "summary.json").exists():
        agent = jaxrl.NormalizeObs(jaxrl.BC(CLONES[name], learning_rate=1e-3), frozen=True)
        env = jaxrl.VectorEnv(jaxrl.make(env_name), 1)
        trainer = jaxrl.Offline(agent, env, num_updates=100)
        jaxrl.run(trainer, steps, seeds=seeds, data=data, run_dir=folder, quiet=True)
    return folder


def on_policy(method: str, env_name: str, steps: int) -> tuple[Trainer, int, str]:
    """Return the trainer of a method, its steps, and the name of its clone."""
    agent, presets, source, options = ON_POLICY[method]
    settings = lookup(presets.PRESETS, env_name)
    agent = hyper.override(hyper.override(agent, settings["agent"]), options)
    iterations = steps // (settings["num_envs"] * settings["num_steps"])
    if settings["anneal"]:
        agent = agent.replace(lr_decay_steps=float(iterations))
    agent = jaxrl.NormalizeObs(jaxrl.ScaleReward(agent, settings["reward_scale"]), frozen=True)
    env = jaxrl.VectorEnv(jaxrl.make(env_name), settings["num_envs"])
    return jaxrl.OnPolicy(agent, env, num_steps=settings["num_steps"]), steps, source


def off_policy(method: str, env_name: str, data: Any, steps: int) -> tuple[list[Any], str]:
    """Return the phases of a method, and the name of its clone."""
    agent, presets, source = OFF_POLICY[method]
    settings = lookup(presets.PRESETS, env_name)
    agent = hyper.override(agent, settings["agent"])
    scale = settings["return_range"] / float(np.ptp(data.returns()))
    agent = jaxrl.NormalizeObs(jaxrl.ScaleReward(agent, scale), frozen=True)
    env = jaxrl.VectorEnv(jaxrl.make(env_name), 1)
    sizes: dict[str, Any] = {"buffer_size": 100_000, "learning_starts": 1_000}
    online = jaxrl.OffPolicy(agent, env, warmup_policy="agent", sampler=Mixed(0.5), **sizes)
    offline = jaxrl.Offline(agent, env, num_updates=64)
    return [jaxrl.Phase(offline, steps, "offline"), jaxrl.Phase(online, steps, "online")], source


def physics_seconds(env_name: str, num_envs: int, steps: int, members: int) -> float:
    """Return the seconds that environments alone take for ``steps`` of every member."""
    env = jaxrl.VectorEnv(jaxrl.make(env_name), num_envs)
    rows = 256

    def play(key: Any) -> Any:
        def step(state: Any, key: Any) -> tuple[Any, Any]:
            action = jax.random.uniform(key, (num_envs, *env.spec.action.shape), minval=-1.0)
            state, made = env.step(key, state, action, ())
            return state, jnp.sum(made.reward)

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, rows))[1]

    keys = jax.random.split(jax.random.key(0), members)
    played = jax.jit(jax.vmap(play)).lower(keys).compile()
    jax.block_until_ready(played(keys))
    began = time.perf_counter()
    jax.block_until_ready(played(keys))
    return (time.perf_counter() - began) * steps / (rows * num_envs)


def row(method: str, env_name: str, result: Any, source: Path, known: Any) -> dict[str, Any]:
    """Return a method's returns, gains and times."""
    frame, seeds = result.frame("eval"), result.summary["seeds"]
    table = frame.pivot(index="step", columns="seed", values="episode_return")[seeds]
    returns = table.to_numpy(float)
    before = np.array(jaxrl.analysis.load_summary(source)["final_return"]["per_seed"])
    gain = (returns[-1] - before) / (known.expert - known.random)
    members = len(seeds)
    total = result.summary["env_steps"]
    physics = physics_seconds(env_name, result.trainer.env.num_envs, total, members)
    return {
        "method": method,
        "seeds": seeds,
        "clone": final_return(before),
        "final": final_return(returns[-1]),
        "gain": final_return(gain),
        "env_steps": total,
        "train_seconds": result.summary["train_seconds"],
        "physics_share": round(physics / result.summary["train_seconds"], 3),
        "steps": table.index.tolist(),
        "returns": returns.tolist(),
    }


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw the returns against environment steps and against seconds: IQM and interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for each, colour in zip(rows, COLOURS, strict=False):
        steps, returns = np.array(each["steps"]), np.array(each["returns"])
        middle = [iqm(x) for x in returns]
        low, high = np.transpose([bootstrap_ci(x) for x in returns])
        seconds = each["train_seconds"] * steps / steps[-1]
        for ax, x in zip(axes, (steps, seconds), strict=True):
            ax.plot(x, middle, color=colour, label=each["method"])
            ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes[0].set(xlabel="steps of each seed", ylabel="return (IQM, 95 %)")
    axes[1].set(xlabel="seconds of training, all seeds together")
    for ax in axes:
        ax.grid(alpha=0.3)
    axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=140)


def main(
    methods: tuple[str, ...] = METHODS,
    dataset: str = "gymnax/Pendulum-v1/medium",
    num_seeds: int = 4,
    first_seed: int = 100,
    clone_steps: int = 8_000,
    steps: int = 300_000,
    online_steps: int = 10_000,
    runs: Path = Path("runs/fine_tuning"),
    out: Path = Path("results/fine_tuning.json"),
) -> None:
    """Clone, fine-tune, print a table, write it and draw it."""
    env_name, seeds = dataset.rpartition("/")[0], list(range(first_seed, first_seed + num_seeds))
    spec = jaxrl.make(env_name).spec
    data = load(shipped_path(dataset), action_space=spec.action, quiet=True)
    known, rows = reference(shipped_path(dataset)), []
    for method in methods:
        if method in ON_POLICY:
            trainer, count, source = on_policy(method, env_name, steps)
            phases: Any = [jaxrl.Phase(trainer, count, "online")]
            given = None
        else:
            phases, source = off_policy(method, env_name, data, online_steps)
            given = data.with_return_to_go(0.99)
        folder = clone(source, env_name, data, seeds, clone_steps, runs)
        result = jaxrl.run(phases, seeds=seeds, data=given, policy_from=folder, quiet=True)
        rows.append(row(method, env_name, result, folder, known))
        new = rows[-1]
        low, high = new["gain"]["ci95"]
        print(f"{method:11} clone {new['clone']['iqm']:8.1f}  final {new['final']['iqm']:8.1f}  "
              f"gain {new['gain']['iqm']:6.1%} ({low:.1%} to {high:.1%})  "
              f"{new['train_seconds']:6.0f} s, physics {new['physics_share']:.0%}",
              flush=True)  # fmt: skip
        record = {"dataset": dataset, "clone_steps": clone_steps, **provenance()}
        write_json(out, {**record, "results": rows})
    draw(rows, f"Fine-tuning of clones of {dataset}", out.with_suffix(".png"))


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
