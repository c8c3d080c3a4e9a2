"""What a sweep costs, and what halving and populations find: PPO on CartPole.

python benchmarks/sweep.py --out results/sweep

1. A grid of 16 learning rates x 16 seeds as one program; the table and the heat map; its wall time
   beside that of single runs, one after another (three are measured), and of parts of 32.
2. Successive halving over the same rates and seeds: whether it finds the same best rate.
3. Populations that all begin with rates far too low, beside the same members with their rates
   fixed, and the schedule of the best one replayed on fresh seeds.

Each part is a command of ``experiments/``, and goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from jaxrl.analysis.statistics import final_return
from jaxrl.cli import launch
from jaxrl.errors import RunError
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance

GRID = "--grid learning_rate=log:1e-4,1e-1,16"
LOW = "learning_rate=log:1e-6,1e-5"  # where populations begin
WIDE = "learning_rate=log:1e-6,1e-1"  # where they may go


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    env: str = "gymnax/CartPole-v1"
    """The environment."""
    total_steps: int = 30_000
    """Environment steps of each run."""
    num_seeds: int = 16
    """Seeds of each learning rate."""
    populations: int = 4
    """Populations of 16 members."""
    single: int = 3
    """Single runs that are timed."""
    runs: Path = Path("runs/sweep")
    """The folder of all runs."""
    out: Path = Path("results/sweep")
    """The results without ending: .json, .csv, .png and _halving.csv."""


def summary_of(config: Config, name: str, words: str) -> dict[str, Any]:
    """Return the summary of a script's run in the folder ``name``; it runs unless it has one."""
    folder = config.runs / name
    if not (folder / "summary.json").exists():
        script, *rest = shlex.split(words)
        resume = ["--resume"] if (folder / "config.json").exists() else []
        common = ["--env", config.env, "--total-steps", str(config.total_steps), "--quiet"]
        command = ["experiments/" + script, *rest, *common, "--run-dir", str(folder), *resume]
        if subprocess.run([sys.executable, *command], check=False).returncode:
            raise RunError(f"stopped: {shlex.join(command)}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def main() -> None:
    """Run all parts, and write the results."""
    config = tyro.cli(Config, description=__doc__)
    seeds, populations = f"--num-seeds {config.num_seeds}", f"--num-seeds {config.populations}"
    grid = summary_of(config, "grid", f"sweep.py ppo {GRID} {seeds} --confirm 16 --time-one")
    halving = summary_of(config, "halving", f"sweep.py ppo {GRID} {seeds} --halving 2 --rungs 4")
    parts = summary_of(config, "parts", f"sweep.py ppo {GRID} {seeds} --max-parallel 32")
    rate = grid["best"]["row"]["learning_rate"]
    single = [
        summary_of(config, f"single{i}", f"ppo.py --learning-rate {rate} --seed {i}")
        for i in range(config.single)
    ]
    low = f"sweep.py ppo --random 16 {LOW} {populations} --no-anneal"
    fixed = summary_of(config, "fixed", low)
    pbt = summary_of(config, "pbt", f"{low} --pbt --explore {WIDE} --confirm 16")

    each = sum(run["wall_seconds"] for run in single) / len(single)
    members, wall = grid["cost"]["members"], grid["cost"]["wall_seconds"]
    found = {
        "grid": {"best": grid["best"], "cost": grid["cost"]},
        "grid_in_parts_of_32": {"best": parts["best"], "cost": parts["cost"]},
        "halving": {"best": halving["best"], "cost": halving["cost"]},
        "halving_finds_the_best_of_the_grid": halving["best"]["row"]["learning_rate"] == rate,
        "single_runs": {
            "wall_seconds": [run["wall_seconds"] for run in single],
            "compile_seconds": [run["compile_seconds"] for run in single],
            "all_one_after_another_seconds": round(members * each),
            "times_as_long_as_the_grid": round(members * each / wall, 1),
            "final_return": final_return([run["final_return"]["mean"] for run in single]),
        },
        "low_rates_fixed": fixed["best"],
        "low_rates_pbt": pbt["best"],
        "options": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        **provenance(),
    }
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out.with_suffix(".json"), found)
    for name, ending in [("grid", ""), ("halving", "_halving"), ("pbt", "_pbt")]:
        folder, out = config.runs / name, config.out.with_name(config.out.name + ending)
        shutil.copy(folder / "table.csv", out.with_suffix(".csv"))
        shutil.copy(folder / "heat_map.png", out.with_suffix(".png"))
    print(json.dumps({name: found[name] for name in list(found)[:7]}, indent=1))


if __name__ == "__main__":
    launch(main)
