"""Weighted sampling: a few episodes of an expert among random ones, and an expert's alone.

python benchmarks/weighted_sampling.py
python benchmarks/weighted_sampling.py --names bc --num-seeds 4 --steps 2000

Sampling by advantage (AW, ``jaxrl.data.weighted``) should be above uniform sampling where 5 % of
the rows are the expert's, and equal to it where all are. Scores are normalised: 0 is the random
policy's return, 100 the expert's.

Source: Hong et al. 2023, "Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory
Weighting", figure 1.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import jaxrl
from jaxrl import hyper
from jaxrl.cli import launch
from jaxrl.cli.presets import lookup, td3_bc
from jaxrl.data import Dataset, UniformDataset, WeightedDataset, weighted
from jaxrl.data.dataset import checksum, concatenate
from jaxrl.data.formats import load, reference
from jaxrl.data.shipped import shipped_path
from jaxrl.nn.policies import Deterministic
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance

ENV = "gymnax/Pendulum-v1"
SIZES: dict[str, Any] = {"hidden_dims": (128, 128)}
SHARES = (0.05, 1.0)  # of the expert's rows
SAMPLINGS = ("uniform", "advantage")


def agents() -> dict[str, Any]:
    """Return the agents by name; TD3+BC has its preset of random data."""
    preset = lookup(td3_bc.PRESETS, f"{ENV}/medium-replay")["agent"]
    parts = {"policy": SIZES, "critic": SIZES}
    return {
        "bc": jaxrl.BC(Deterministic(**SIZES), learning_rate=1e-3),
        "td3_bc": hyper.override(hyper.override(jaxrl.TD3BC(), preset), parts),
    }


def mixture(share: float) -> Dataset:
    """Return random episodes and the expert's, whose rows are ``share`` of all."""
    files = {name: shipped_path(f"{ENV}/{name}") for name in ("random", "expert")}
    random, expert = (load(path, quiet=True) for path in files.values())
    if share == 1.0:
        return expert
    rows = random.size * share / (1 - share)
    kept = np.arange(expert.num_episodes) < round(rows / expert.lengths().mean())
    return concatenate([random, expert.filter(kept)])


def measure(
    name: str, share: float, sampling: str, data: Dataset, steps: int, seeds: int
) -> dict[str, Any]:
    """Train an agent on ``data``, and return its row."""
    weighs = sampling == "advantage"
    trainer = jaxrl.Offline(
        jaxrl.NormalizeObs(agents()[name], frozen=True),
        jaxrl.VectorEnv(jaxrl.make(ENV), 1),
        num_updates=50,
        sampler=WeightedDataset() if weighs else UniformDataset(),
    )
    result = jaxrl.run(
        trainer,
        steps,
        data=weighted(data, "advantage") if weighs else data,
        reference=reference(shipped_path(f"{ENV}/expert")),
        seeds=seeds,
        quiet=True,
    )
    return {
        "agent": name,
        "share": share,
        "sampling": sampling,
        "checksum": checksum(data),
        "rows": data.size,
        "score": result.summary["scores"]["final"],
        "seconds": result.summary["wall_seconds"],
    }


def main(
    names: tuple[str, ...] = tuple(agents()),
    num_seeds: int = 8,
    steps: int = 5_000,
    out: Path = Path("results/weighted_sampling.json"),
) -> None:
    """Train every combination, print a table and write it."""
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        data = mixture(share)
        for name, sampling in itertools.product(names, SAMPLINGS):
            rows.append(measure(name, share, sampling, data, steps, num_seeds))
            score = rows[-1]["score"]
            low, high = score["ci95"]
            print(f"{share:5.0%} of the expert  {name:8}{sampling:10}"
                  f"{score['iqm']:7.1f} ({low:.1f} to {high:.1f})", flush=True)  # fmt: skip
            write_json(out, {"steps": steps, "seeds": num_seeds, **provenance(), "results": rows})


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
