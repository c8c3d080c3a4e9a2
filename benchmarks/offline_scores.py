"""What offline agents reach: normalised scores on datasets, eight seeds each, beside the data's TQ.

python benchmarks/offline_scores.py --datasets gymnax/Pendulum-v1/medium-replay
python benchmarks/offline_scores.py --algorithms iql bc10 --datasets maze/Stitch-v0/stitch
python benchmarks/offline_scores.py --algorithms diffusion_bc flow_bc diffusion_ql idql ifql fql
python benchmarks/offline_scores.py --algorithms td3_bc --sweep bc_alpha=2.5,10,40,160,640

Each cell is one call of ``experiments/ALGORITHM.py``, networks of 128x128 and 30,000 gradient steps
unless told otherwise; ``bc10`` is behaviour cloning of the best tenth of the episodes. Policies
that denoise take five steps. The score is that of the last evaluation. A row replaces one of the
same dataset, algorithm, steps and options. With ``--sweep`` nothing is added to the table: a heat
map of configurations and seeds is drawn.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxrl.analysis.load import load_config, load_summary
from jaxrl.cli import launch
from jaxrl.data.describe import describe
from jaxrl.data.formats import load, reference
from jaxrl.data.shipped import shipped, shipped_path
from jaxrl.errors import RunError
from jaxrl.record.folder import write_json

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
ALGORITHMS = ("bc", "bc10", "td3_bc", "iql", "rebrac", "edac", "cql")
PARTS = {  # networks besides policy and critic, or instead
    "bc": ["policy"],
    "diffusion_bc": ["policy"],
    "flow_bc": ["policy"],
    "iql": ["policy", "critic", "value"],
    "idql": ["policy", "critic", "value"],
    "ifql": ["policy", "critic", "value"],
    "fql": ["policy", "critic", "one-step"],
}
FLOWS = ("flow_bc", "ifql", "fql")
WIDTH = ("128", "128")
Row = dict[str, Any]
HEAD = """\
# What offline agents reach

Written by `benchmarks/offline_scores.py` from [offline.json](offline.json), which holds the
commands, versions, commits and devices. Scores are normalised by the returns of the random policy
and of the expert that are recorded in the dataset (0 and 100), and are those of the last
evaluation: the IQM over seeds, and its 95 % bootstrap interval. TQ is the mean return of the data
on the same scale (1 is the expert). Networks are of 128x128.

| dataset | TQ | algorithm | steps | seeds | score | 95 % interval |
|---|---|---|---|---|---|---|
"""


def run_script(command: list[str], folder: Path) -> tuple[Row, Row]:
    """Run a script of ``experiments`` into a folder, or go on there; return summary and config.

    Raises:
        RunError: if the script failed; what it printed stands above.
    """
    quiet = ["--run-dir", str(folder), "--quiet", *(["--resume"] if folder.exists() else [])]
    script = str(EXPERIMENTS.parent / command[0])
    if subprocess.run([sys.executable, script, *command[1:], *quiet], check=False).returncode:
        raise RunError(f"{shlex.join(command)} ended with an error")
    summary = load_summary(folder)
    assert summary is not None
    return summary, load_config(folder)


def measure(
    name: str,
    dataset: str,
    words: list[str],
    seeds: int,
    steps: int,
    evaluations: int | None,
    runs: Path,
) -> Row:
    """Train one cell, and return its row. Raises RunError as ``run_script`` does."""
    algorithm = "bc" if name == "bc10" else name
    command = [f"experiments/{algorithm}.py", "--env", dataset.rpartition("/")[0]]
    command += ["--dataset", dataset, "--total-steps", str(steps), "--num-seeds", str(seeds)]
    command += ["--eval-every", str(-(-steps // evaluations))] if evaluations else []
    for part in PARTS.get(algorithm, ["policy", "critic"]):
        command += [f"--agent.{part}.hidden-dims", *WIDTH]
    command += ["--agent.policy.sample-steps", "5"] if algorithm in FLOWS else []
    command += (["--top", "0.1"] if name == "bc10" else []) + words
    folder = runs / f"{name}_{dataset.replace('/', '-')}_{'_'.join(words) or steps}"
    summary, config = run_script(command, folder)
    path = shipped_path(dataset)
    found = describe(load(path, quiet=True), references=reference(path))
    row = {
        "dataset": dataset,
        "checksum": found["checksum"],
        "tq": round(found["tq"], 3),
        "algorithm": name,
        "options": words,
        "seeds": config["seeds"],
        "steps": summary["gradient_steps"],
        "episodes": config["eval_episodes"],
        "scores": summary["scores"],
        "configurations": summary.get("configurations", []),
        "seconds": summary["wall_seconds"],
        "command": f"python {shlex.join(command)}",
        **{key: config[key] for key in ("device", "versions", "git")},
    }
    shutil.rmtree(folder)
    return row


def short(word: str) -> str:
    """Return an option without the names of parts: ``temperature`` for ``--agent.temperature``."""
    return re.sub(r"^--([a-z-]+\.)*", "", word)


def line(row: Row) -> str:
    """Return a row's line of the table."""
    final = row["scores"]["final"]
    name = " ".join([row["algorithm"], *map(short, row["options"])])
    steps = f"{round(row['steps'] / 1000, 1):g}k"
    cells = [row["dataset"], f"{row['tq']:.2f}", name, steps, str(len(row["seeds"]))]
    if final["iqm"] is None:
        return f"| {' | '.join([*cells, 'not finite', ''])} |"
    low, high = final["ci95"]
    cells += [f"{final['iqm']:.1f}", f"{low:.1f} to {high:.1f}"]
    return f"| {' | '.join(cells)} |"


def update(out: Path, new: list[Row]) -> None:
    """Add rows to the file, and write the table anew."""

    def order(row: Row) -> tuple:
        return row["dataset"], row["algorithm"], row["steps"], tuple(row["options"])

    rows: list[Row] = json.loads(out.read_text())["rows"] if out.exists() else []
    kept = {order(row): row for row in [*rows, *new]}
    current = [kept[key] for key in sorted(kept)]
    write_json(out, {"rows": current})
    out.with_suffix(".md").write_text(HEAD + "\n".join(map(line, current)) + "\n")


def heat_map(row: Row, path: Path) -> None:
    """Draw the final scores of configurations (rows) and seeds (columns)."""
    from matplotlib.figure import Figure

    configurations = row["configurations"]
    scores = np.array([each["scores"]["final"]["per_seed"] for each in configurations], float)
    labels = [" ".join(f"{k}={v:g}" for k, v in each["sweep"].items()) for each in configurations]
    figure = Figure(figsize=(1.5 + 0.7 * scores.shape[1], 1.2 + 0.5 * len(labels)),
                    layout="constrained")  # fmt: skip
    ax = figure.subplots()
    image = ax.imshow(scores, aspect="auto", cmap="viridis")
    ax.set_yticks(range(len(labels)), labels)
    ax.set_xticks(range(scores.shape[1]), [str(seed) for seed in row["seeds"]])
    ax.set(xlabel="seed", title=f"{row['algorithm']} on {row['dataset']}")
    middle = (np.nanmin(scores) + np.nanmax(scores)) / 2
    for (i, j), score in np.ndenumerate(scores):
        colour = "black" if score > middle else "white"
        ax.text(j, i, f"{score:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="normalised score")
    figure.savefig(path, dpi=140)


def main(
    algorithms: tuple[str, ...] = ALGORITHMS,
    datasets: tuple[str, ...] = ("gymnax/Pendulum-v1/medium-replay",),
    num_seeds: int = 8,
    steps: int = 30_000,
    evaluations: int | None = None,
    sweep: str | None = None,
    words: str = "",
    runs: Path = Path("runs/offline_scores"),
    out: Path = Path("results/offline.json"),
) -> None:
    """Run the cells one after another; the table is written after each.

    ``words``: more options, as one string. ``evaluations``: their number after the start; the
    default is the script's. Policies that choose among many samples take longer to evaluate than to
    train.
    """
    for dataset in datasets:
        shipped_path(dataset)
        assert dataset in shipped()
        for name in algorithms:
            options = [*shlex.split(words), *(["--sweep", sweep] if sweep else [])]
            row = measure(name, dataset, options, num_seeds, steps, evaluations, runs)
            print(line(row), f"{row['seconds']:.0f} s", flush=True)
            if sweep:
                write_json(out.with_name(f"offline_{name}_sweep.json"), row)
                heat_map(row, out.with_name(f"offline_{name}_sweep.png"))
            else:
                update(out, [row])


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
