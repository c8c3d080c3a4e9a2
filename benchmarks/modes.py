"""Several good answers at once: a bandit with eight modes, and which of them agents use.

python benchmarks/modes.py
python benchmarks/modes.py --names flow_bc fql --num-seeds 2 --steps 2000

Actions of the data lie around eight points on a circle, with known weights and a deviation of 0.08.
Imitation should reproduce them: ``near`` is the share of 2,000 samples within three deviations of
a mode, ``distance`` the total variation distance between the weights of the modes in the samples
and in the data. Rewards grow with the number of the mode and fall with the distance from it, so
offline RL should move its mass to the best modes: ``best`` is the share of samples near one of the
two best. ``exact`` is what samplers of K steps reach with the best predictions there are, which are
known. Agents whose gradients run through a chain, or follow a critic, take 3,000 steps and the
others 10,000, unless ``--steps`` says otherwise. The figure shows samples of the first seed.
"""

from __future__ import annotations

import dataclasses
import json
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
from jaxrl.data import Dataset, UniformDataset
from jaxrl.nn.denoisers import Predict
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.edm import EDM
from jaxrl.nn.flow import Flow
from jaxrl.nn.policies import Gaussian
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance
from jaxrl.types import Array, Box, Spec

STD, SAMPLES = 0.08, 2_000
STEPS = {"diffusion_ql": 3_000, "fql": 3_000}  # the others: 10,000
ANGLES = 2 * np.pi * np.arange(8) / 8
MODES = 0.8 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)  # [8, 2]
WEIGHTS = np.array([1, 2, 3, 1, 2, 3, 2, 2]) / 16
REWARDS = np.arange(8) / 7  # the mean reward of each mode
SPEC = Spec(Box(-1.0, 1.0, (1,)), Box(-1.0, 1.0, (2,)), 1)
SIZES: dict[str, Any] = {"hidden_dims": (128, 128)}
DEEP: dict[str, Any] = {
    "hidden_dims": (128, 128, 128, 128),
    "activation": "relu",
    "initializer": "orthogonal",
}
DIFFUSION = Diffusion(**DEEP, num_steps=50, schedule="cosine")
FLOW = Flow(**DEEP, sample_steps=20, solver="midpoint")


def bandit(rows: int = 20_000, seed: int = 0) -> Dataset:
    """Return the data: one state, episodes of one step."""
    rng = np.random.default_rng(seed)
    mode = rng.choice(8, rows, p=WEIGHTS)
    action = np.clip(MODES[mode] + STD * rng.normal(size=(rows, 2)), -1, 1).astype(np.float32)
    away = np.linalg.norm(action - MODES[mode], axis=-1) / (3 * STD)
    reward = REWARDS[mode] - 0.5 * away**2 + 0.1 * rng.normal(size=rows)
    obs, ends = np.zeros((rows, 1), np.float32), np.ones(rows, bool)
    return Dataset.of(obs, action, reward.astype(np.float32), obs, ends, ~ends)


def agents() -> dict[str, Any]:
    """Return the agents by name."""
    few = dataclasses.replace(DIFFUSION, num_steps=10)  # gradients run through its chain
    short = dataclasses.replace(FLOW, sample_steps=10, solver="euler")
    critic = {"critic": SIZES}
    values = {"critic": SIZES, "value": SIZES, "improver": {"num_candidates": 16}}
    clone = {"learning_rate": 2e-3, "ema_decay": 0.999}
    rates = {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    through = critic | rates | {"improver": {"temperature": 0.03}}  # values are in [0, 1]
    distilled = critic | {"one_step": DEEP, "learning_rate": 1e-3}
    chosen = values | {"actor_learning_rate": 2e-3, "ema_decay": 0.999}
    options: dict[str, tuple[Any, dict[str, Any]]] = {
        "gaussian_bc": (jaxrl.BC(Gaussian(**DEEP, std="exp")), clone),
        "diffusion_bc": (jaxrl.BC(DIFFUSION), clone),
        "edm_bc": (jaxrl.BC(EDM(**DEEP, sample_steps=20, solver="heun")), clone),
        "flow_bc": (jaxrl.BC(FLOW), clone),
        "diffusion_ql": (jaxrl.DiffusionQL(policy=few, eta=1.0), through),
        "fql": (jaxrl.FQL(policy=short, alpha=0.3), distilled),
        "idql": (jaxrl.IDQL(policy=DIFFUSION), chosen),
        "ifql": (jaxrl.IFQL(policy=FLOW), chosen),
    }
    return {name: hyper.override(*each) for name, each in options.items()}


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


def trained(
    agent: Any,
    spec: Spec,
    data: Dataset,
    num_seeds: int,
    steps: int,
    sampler: Any = UniformDataset(),  # noqa: B008
) -> tuple[Any, Any]:
    """Return the bound agent and its states ``[S, ...]`` after ``steps`` on the data."""
    trainer = jaxrl.Offline(agent, spec, num_updates=min(steps, 1_000), sampler=sampler)
    held = jax.tree.map(jnp.asarray, data)
    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    train = jax.vmap(lambda key, data: trainer.train(key, steps, data)[0].agent, (0, None))
    return trainer.agent, jax.jit(train)(keys, held)


def samples_of(agent: Any, states: Any) -> np.ndarray:
    """Return 2,000 actions ``[S, N, 2]`` of each seed's policy."""
    obs, key = jnp.zeros((SAMPLES, 1)), jax.random.key(1)
    act = jax.vmap(lambda state: agent.act(state, (), obs, key, "sample")[0])
    return np.asarray(jax.jit(act)(states))


def expected(x: Array, signal: Array, spread: Array) -> Array:
    """Return the mean ``[N, 2]`` of actions ``a``, given ``x = signal a + spread z``: ``[N, 2]``.

    ``signal[N]`` and ``spread[N]``; ``z`` is normal. That of the mixture, unclipped.
    """
    signal, spread = signal[:, None], spread[:, None]
    variance = (signal * STD) ** 2 + spread**2
    away = x[:, None] - signal[..., None] * MODES  # [N, 8, 2]
    logits = jnp.log(WEIGHTS) - 0.5 * jnp.sum(away**2, axis=-1) / variance
    each = MODES + (signal * STD**2 / variance)[..., None] * away
    return jnp.sum(jax.nn.softmax(logits)[..., None] * each, axis=1)


def exact(policy: Any) -> Predict:
    """Return what the best network of a family predicts, as ``predict(x, time)``."""

    def velocity(x: Array, t: Array) -> Array:
        return (expected(x, t, 1.0 - t) - x) / (1.0 - t)[:, None]

    def epsilon(x: Array, time: Array) -> Array:
        alpha_bar = jnp.asarray(policy.alpha_bars, jnp.float32)[time.astype(jnp.int32)]
        signal, spread = jnp.sqrt(alpha_bar), jnp.sqrt(1.0 - alpha_bar)
        return (x - signal[:, None] * expected(x, signal, spread)) / spread[:, None]

    def preconditioned(x: Array, time: Array) -> Array:
        sigma = jnp.exp(4.0 * time)
        skip, out, into = policy.scales(sigma[:, None])
        action = expected(x / into, jnp.ones_like(sigma), sigma)
        return (action - skip * x / into) / out

    kind = {Flow: velocity, Diffusion: epsilon, EDM: preconditioned}[type(policy)]
    return lambda x, time: kind(x, jnp.broadcast_to(time, x.shape[:-1]))


def limits(steps: tuple[int, ...] = (5, 10, 20, 50)) -> dict[str, dict[int, float]]:
    """Return the share near a mode by sampler and steps K, where predictions are exact."""
    policies = {
        "diffusion": lambda k: Diffusion(num_steps=k, schedule="cosine"),
        "diffusion_vp": lambda k: Diffusion(num_steps=k, schedule="vp"),
        "edm": lambda k: EDM(sample_steps=k, solver="heun"),
        "flow": lambda k: Flow(sample_steps=k),
        "flow_midpoint": lambda k: Flow(sample_steps=k, solver="midpoint"),
    }

    def share(policy: Any) -> float:
        samples = policy.generate(exact(policy), jax.random.key(0), (10 * SAMPLES, 2))
        return float(measure(np.asarray(samples)[None])["near"]["mean"])

    return {name: {k: share(of(k)) for k in steps} for name, of in policies.items()}


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
    steps: int | None = None,
    out: Path = Path("results/generative_modes.json"),
) -> None:
    """Train, print a table, and write the results and the figure."""
    data, drawn, rows = bandit(), {}, []
    print(f"{'agent':18}{'near':>8}{'distance':>10}{'best':>8}   (IQM over {num_seeds} seeds)")
    made = agents()
    for name in names:
        taken = steps or STEPS.get(name, 10_000)
        drawn[name] = samples_of(*trained(made[name], SPEC, data, num_seeds, taken))
        row = {"agent": name, "steps": taken, **measure(drawn[name])}
        rows.append(row)
        near, distance, best = (row[key]["iqm"] for key in ("near", "distance", "best"))
        print(f"{name:18}{near:8.1%}{distance:10.3f}{best:8.1%}", flush=True)
    reached = limits()
    print("the same with exact predictions, by K:", json.dumps(reached))
    record = {"seeds": num_seeds, "samples": SAMPLES, **provenance()}
    write_json(out, {**record, "results": rows, "exact": reached})
    draw({"data": np.asarray(data.action)[None], **drawn}, out.with_suffix(".png"))


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
