"""What the default settings reach on every task, beside the untrained policy.

python benchmarks/defaults.py ppo brax/hopper brax/ant --max-steps 1000000
python benchmarks/defaults.py pqn gymnax/MountainCar-v0
python benchmarks/defaults.py  # writes the table anew

Each task is one call of ``experiments/ALGORITHM.py`` with no option but the number of seeds and, if
``--max-steps`` is less than the default, the number of steps. The first evaluation is that of the
untrained policy, the last that of the trained one: both greedy, over the same 32 starts. A call
that was interrupted leaves its run in ``--runs``, and the next one resumes it.

A row replaces one of the same task, algorithm and steps. Rows of settings that are no longer the
default are dropped, so the table speaks of the defaults as they are.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxrl.analysis.load import load, load_config, load_summary
from jaxrl.analysis.statistics import final_return
from jaxrl.cli import launch
from jaxrl.cli.presets import lookup
from jaxrl.envs import names
from jaxrl.errors import RunError, UsageError
from jaxrl.record.folder import write_json
from jaxrl.require import require

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
Algorithm = Literal["ppo", "sac", "td3", "dsac_t", "dqn", "pqn"]
Row = dict[str, Any]
HEAD = """\
# What the defaults reach

Written by `benchmarks/defaults.py` from [defaults.json](defaults.json), which holds the commands,
versions, commits and devices. Returns are those of greedy evaluations over 32 episodes per seed:
the IQM over the seeds of the untrained policy and of the trained one (of three seeds their mean),
and each seed's after training. Where `of` is longer than `steps`, the run was cut short of the
default; learning rates and epsilons that fall then fell over the shorter run.

| task | algorithm | steps | of | untrained | trained | each seed |
|---|---|---|---|---|---|---|
"""


def settings_of(algorithm: str, task: str) -> dict[str, Any]:
    """Return the preset of an algorithm on a task, as JSON reads it back."""
    presets = importlib.import_module(f"jaxrl.cli.presets.{algorithm}").PRESETS
    settings: dict[str, Any] = json.loads(json.dumps(lookup(presets, task)))
    return settings


def measure(algorithm: str, task: str, seeds: int, max_steps: int | None, runs: Path) -> Row:
    """Train with the defaults, and return the row of the run.

    Raises:
        RunError: if the script failed; what it printed stands above.
    """
    settings = settings_of(algorithm, task)
    steps = min(settings["total_steps"], max_steps or settings["total_steps"])
    words = [f"experiments/{algorithm}.py", "--env", task, "--num-seeds", str(seeds)]
    if steps < settings["total_steps"]:
        words += ["--total-steps", str(steps)]
    folder = runs / f"{algorithm}_{task.replace('/', '-')}_{steps}"
    sparse = ["--eval-every", str(steps), "--log-every", str(-(-steps // 50))]
    sparse += ["--run-dir", str(folder), "--quiet"]
    resume = ["--resume"] if folder.exists() else []
    script = str(EXPERIMENTS / f"{algorithm}.py")
    done = subprocess.run([sys.executable, script, *words[1:], *sparse, *resume], check=False)
    if done.returncode:
        raise RunError(f"{shlex.join(words)} ended with {done.returncode}")
    summary, config, evaluations = load_summary(folder), load_config(folder), load(folder, "eval")
    assert summary is not None
    first = evaluations[evaluations["step"] == 0].sort_values("seed")
    row = {
        "task": task,
        "algorithm": algorithm,
        "seeds": config["seeds"],
        "steps": summary["total_steps"],
        "default_steps": settings["total_steps"],
        "untrained": final_return(first["episode_return"].tolist()),
        "trained": summary["final_return"],
        "episodes": config["eval_episodes"],
        "identical_episodes": summary["identical_episodes"],
        "command": f"python {shlex.join(words)}",
        "seconds": summary["wall_seconds"],
        **{name: config[name] for name in ("device", "versions", "git")},
        "settings": settings,
    }
    shutil.rmtree(folder)
    return row


def line(row: Row) -> str:
    """Return a row's line of the table."""

    def figure(x: float | None) -> str:
        if x is None:
            return "none"
        return f"{x:,.0f}" if abs(x) >= 1000 else f"{round(x, 3) + 0.0:.4g}"

    def figures(values: list[float | None]) -> str:
        return ", ".join(map(figure, values))

    cells = [row["task"], row["algorithm"], short(row["steps"]), short(row["default_steps"])]
    cells += [figures([row[which]["iqm"]]) for which in ("untrained", "trained")]
    return f"| {' | '.join([*cells, figures(row['trained']['per_seed'])])} |"


def short(steps: int) -> str:
    """Return a number of steps in thousands or millions."""
    return f"{steps / 1e6:.3g}M" if steps >= 999_500 else f"{steps / 1e3:.3g}k"


def table(rows: list[Row]) -> str:
    """Return the table: the rows of each of ``jaxrl.envs.names()``, or that it was not run."""
    lines = []
    for task in names():
        own = [line(row) for row in rows if row["task"] == task]
        lines += own or [f"| {task} | not run | | | | | |"]
    return HEAD + "\n".join(lines) + "\n"


def update(out: Path, new: list[Row]) -> None:
    """Add rows to the file, drop those that are out of date, and write the table anew."""

    def order(row: Row) -> tuple[str, str, int]:
        return row["task"], row["algorithm"], row["steps"]

    rows: list[Row] = json.loads(out.read_text())["rows"] if out.exists() else []
    kept = {order(row): row for row in [*rows, *new]}
    current = [kept[key] for key in sorted(kept)]
    current = [row for row in current if row["settings"] == settings_of(*order(row)[1::-1])]
    write_json(out, {"rows": current})
    out.with_suffix(".md").write_text(table(current))


def main(
    algorithm: tyro.conf.Positional[Algorithm | None] = None,
    tasks: tyro.conf.Positional[tuple[str, ...]] = (),
    max_steps: int | None = None,
    num_seeds: int = 3,
    runs: Path = Path("runs/defaults"),
    out: Path = Path("results/defaults.json"),
) -> None:
    """Run the tasks one after another; the file and the table beside it are written after each."""
    require("num_seeds", num_seeds, 1)
    unknown = [task for task in tasks if task not in names()]
    if unknown:
        raise UsageError(f"unknown task {unknown[0]!r}; give one such as {names()[0]!r}")
    update(out, [])
    for task in tasks:
        row = measure(str(algorithm), task, num_seeds, max_steps, runs)
        print(line(row), flush=True)
        update(out, [row])


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
