"""Several good answers at once: a bandit with eight modes, and which of them agents use.

python benchmarks/modes.py
python benchmarks/modes.py --names flow_bc fql --num-seeds 2 --steps 2000

Actions of the data lie around eight points on a circle, with known weights and a deviation of 0.08.
Imitation should reproduce them: ``near`` is the share of 2,000 samples within three deviations of
a mode, ``distance`` the total variation distance between the weights of the modes in the samples
and in the data. Rewards grow with the number of the mode, so offline RL should move its mass to the
best modes: ``best`` is the share of samples near one of the two best. The figure shows samples of
the first seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxrl
from jaxrl import hyper
from jaxrl.analysis.statistics import final_return
from jaxrl.cli import launch
from jaxrl.data import Dataset
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.edm import EDM
from jaxrl.nn.flow import Flow
from jaxrl.nn.policies import Gaussian
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance
from jaxrl.types import Box, Spec

STD, SAMPLES = 0.08, 2_000
ANGLES = 2 * np.pi * np.arange(8) / 8
MODES = 0.8 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)  # [8, 2]
WEIGHTS = np.array([1, 2, 3, 1, 2, 3, 2, 2]) / 16
REWARDS = np.arange(8) / 7  # the mean reward of each mode
SPEC = Spec(Box(-1.0, 1.0, (1,)), Box(-1.0, 1.0, (2,)), 1)
SIZES: dict[str, Any] = {"hidden_dims": (256, 256)}


def bandit(rows: int = 20_000, seed: int = 0) -> Dataset:
    """Return the data: one state, episodes of one step."""
    rng = np.random.default_rng(seed)
    mode = rng.choice(8, rows, p=WEIGHTS)
    action = np.clip(MODES[mode] + STD * rng.normal(size=(rows, 2)), -1, 1).astype(np.float32)
    reward = (REWARDS[mode] + 0.1 * rng.normal(size=rows)).astype(np.float32)
    obs, ends = np.zeros((rows, 1), np.float32), np.ones(rows, bool)
    return Dataset.of(obs, action, reward, obs, ends, ~ends)


def agents() -> dict[str, Any]:
    """Return the agents by name."""
    diffusion = Diffusion(**SIZES, num_steps=10, schedule="cosine", activation="mish")
    edm = EDM(**SIZES, sample_steps=10, solver="heun", activation="mish")
    flow = Flow(**SIZES, activation="gelu")
    sizes = {"critic": SIZES}
    made = {
        "gaussian_bc": jaxrl.BC(Gaussian(**SIZES, std="exp")),
        "diffusion_bc": jaxrl.BC(diffusion),
        "edm_bc": jaxrl.BC(edm),
        "flow_bc": jaxrl.BC(flow),
        "diffusion_ql": hyper.override(jaxrl.DiffusionQL(policy=diffusion, eta=1.0), sizes),
        "fql": hyper.override(jaxrl.FQL(policy=flow), sizes | {"one_step": SIZES}),
        "idql": hyper.override(jaxrl.IDQL(policy=diffusion), sizes | {"value": SIZES}),
        "ifql": hyper.override(jaxrl.IFQL(policy=flow), sizes | {"value": SIZES}),
    }
    rates = {"learning_rate": 1e-3, "ema_decay": 0.999}
    return {k: hyper.override(v, rates) if "_bc" in k else v for k, v in made.items()}


def measure(samples: np.ndarray) -> dict[str, Any]:
    """Return what ``samples[S, N, 2]`` of several seeds say about the modes."""
    distance = np.linalg.norm(samples[..., None, :] - MODES, axis=-1)  # [S, N, 8]
    mode, near = distance.argmin(-1), distance.min(-1) < 3 * STD
    share = np.stack([np.bincount(each, minlength=8) / len(each) for each in mode])
    best = near & (mode >= 6)
    return {
        "near": final_return(near.mean(-1)),
        "distance": final_return(0.5 * np.abs(share - WEIGHTS).sum(-1)),
        "best": final_return(best.mean(-1)),
    }


def train(agent: Any, data: Dataset, num_seeds: int, steps: int) -> np.ndarray:
    """Return 2,000 samples ``[S, N, 2]`` of each seed's policy after ``steps``."""
    trainer = jaxrl.Offline(agent, SPEC, num_updates=min(steps, 1_000))
    held = jax.tree.map(jnp.asarray, data)

    def whole(key: Any, data: Dataset) -> Any:
        ts, _ = trainer.train(key, steps, data)
        obs = jnp.zeros((SAMPLES, 1))
        return trainer.agent.act(ts.agent, (), obs, jax.random.key(1), "sample")[0]

    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    return np.asarray(jax.jit(jax.vmap(whole, in_axes=(0, None)))(keys, held))


def draw(found: dict[str, np.ndarray], path: Path) -> None:
    """Draw samples of every agent, and circles of three deviations around the modes."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    columns = 5
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(found) :]:
        ax.set_axis_off()
    for ax, (name, samples) in zip(axes, found.items(), strict=False):
        for mode, reward in zip(MODES, REWARDS, strict=True):
            ax.add_patch(
                Circle(mode, 3 * STD, fill=False, color="#D55E00", alpha=0.3 + 0.7 * reward)
            )
        ax.plot(*samples[0, :1000].T, ".", markersize=1.5, color="#0072B2")
        ax.set(title=name, xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal")
        ax.set_xticks([])
        ax.set_yticks([])
    figure.savefig(path, dpi=140)


def main(
    names: tuple[str, ...] = tuple(agents()),
    num_seeds: int = 4,
    steps: int = 10_000,
    out: Path = Path("results/generative_modes.json"),
) -> None:
    """Train, print a table, and write the results and the figure."""
    data, drawn, rows = bandit(), {}, []
    print(f"{'agent':18}{'near':>8}{'distance':>10}{'best':>8}   (IQM over {num_seeds} seeds)")
    for name in names:
        drawn[name] = train(agents()[name], data, num_seeds, steps)
        row = {"agent": name, **measure(drawn[name])}
        rows.append(row)
        near, distance, best = (row[key]["iqm"] for key in ("near", "distance", "best"))
        print(f"{name:18}{near:8.1%}{distance:10.3f}{best:8.1%}", flush=True)
    record = {"steps": steps, "seeds": num_seeds, "samples": SAMPLES, **provenance()}
    write_json(out, {**record, "results": rows})
    draw({"data": np.asarray(data.action)[None], **drawn}, out.with_suffix(".png"))


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
