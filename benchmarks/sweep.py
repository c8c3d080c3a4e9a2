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

import csv
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from jaxrl.cli import launch
from jaxrl.errors import RunError, UsageError, nearest
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance

LOW = "learning_rate=log:1e-6,1e-5"  # where populations begin
WIDE = "learning_rate=log:1e-6,1e-1"  # where they may go


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    env: str = "gymnax/CartPole-v1"
    """The environment."""
    rates: str = "log:1e-4,1e-1,16"
    """The learning rates of the grid."""
    total_steps: int = 30_000
    """Environment steps of each run."""
    num_seeds: int = 16
    """Seeds of each learning rate."""
    populations: int = 4
    """Populations of 16 members."""
    single: int = 3
    """Single runs that are timed."""
    sections: tuple[str, ...] = ("grid", "parts", "halving", "single", "populations")
    """The parts to measure."""
    runs: Path = Path("runs/sweep")
    """The folder of all runs."""
    out: Path = Path("results/sweep")
    """The results without ending: .json, .csv and .png, and the same of _halving and _pbt."""


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


def grid_of(config: Config) -> str:
    """The options of the grid and its seeds."""
    return f"--grid learning_rate={config.rates} --num-seeds {config.num_seeds}"


def grid(config: Config) -> dict[str, Any]:
    """The grid as one program, and confirmed on fresh seeds."""
    words = f"sweep.py ppo {grid_of(config)} --confirm 16 --time-one"
    found = summary_of(config, "grid", words)
    return {"best": found["best"], "cost": found["cost"]}


def parts(config: Config) -> dict[str, Any]:
    """The grid in parts of 32."""
    words = f"sweep.py ppo {grid_of(config)} --max-parallel 32"
    found = summary_of(config, "parts", words)
    return {"best": found["best"]["row"], "cost": found["cost"]}


def halving(config: Config) -> dict[str, Any]:
    """Successive halving over the grid: whether it finds the same rate; that rate's row there."""
    words = f"sweep.py ppo {grid_of(config)} --halving 2 --rungs 4"
    found, best = summary_of(config, "halving", words), grid(config)["best"]["row"]
    rate = found["best"]["row"]["learning_rate"]
    with (config.runs / "grid" / "table.csv").open() as file:
        rows = {float(row["learning_rate"]): row for row in csv.DictReader(file)}
    return {
        "best": found["best"],
        "cost": found["cost"],
        "finds_the_best_of_the_grid": rate == best["learning_rate"],
        "in_the_grid": rows[rate],
    }


def single(config: Config) -> dict[str, Any]:
    """Single runs one after another, each a process of its own, and what all would take."""
    rate = grid(config)["best"]["row"]["learning_rate"]
    runs = [
        summary_of(config, f"single{i}", f"ppo.py --learning-rate {rate} --seed {i}")
        for i in range(config.single)
    ]
    cost, seconds = grid(config)["cost"], [run["wall_seconds"] for run in runs]
    together = cost["members"] * sum(seconds) / len(seconds)
    return {
        "wall_seconds": seconds,  # without the start of the process
        "compile_seconds": [run["compile_seconds"] for run in runs],
        "train_seconds": [run["train_seconds"] for run in runs],
        "all_one_after_another_seconds": round(together),
        "times_as_long_as_the_grid": round(together / cost["wall_seconds"], 2),
        "final_return": [run["final_return"]["mean"] for run in runs],
    }


def populations(config: Config) -> dict[str, Any]:
    """Members whose first rates are far too low, with fixed rates and as populations."""
    low = f"sweep.py ppo --random 16 {LOW} --num-seeds {config.populations} --no-anneal"
    fixed = summary_of(config, "fixed", low)
    pbt = summary_of(config, "pbt", f"{low} --pbt --explore {WIDE} --confirm 16")
    return {"fixed": fixed["best"], "pbt": pbt["best"], "cost": pbt["cost"]}


SECTIONS = {each.__name__: each for each in (grid, parts, halving, single, populations)}
PICTURES = {"grid": "", "halving": "_halving", "pbt": "_pbt"}


def main() -> None:
    """Run the sections, and write the results."""
    config = tyro.cli(Config, description=__doc__)
    unknown = [name for name in config.sections if name not in SECTIONS]
    if unknown:
        raise UsageError(f"sections {' '.join(unknown)}: {nearest(unknown[0], SECTIONS)}")
    found = {name: SECTIONS[name](config) for name in config.sections}
    options = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out.with_suffix(".json"), found | {"options": options} | provenance())
    for name, ending in PICTURES.items():
        folder, out = config.runs / name, config.out.with_name(config.out.name + ending)
        if (folder / "summary.json").exists():
            shutil.copy(folder / "table.csv", out.with_suffix(".csv"))
            shutil.copy(folder / "heat_map.png", out.with_suffix(".png"))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    launch(main)
