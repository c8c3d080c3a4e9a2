"""From a dataset to the environment: IQL, Cal-QL, RLPD and WSRL from the same data, in one figure.

python benchmarks/offline_to_online.py
python benchmarks/offline_to_online.py --num-seeds 8 --offline-steps 20000 --online-steps 20000

Each method is one call of ``experiments/offline_to_online.py``. The figure has the gradient steps
on the dataset on its left and the environment's steps after the switch on its right; RLPD has no
first phase. The JSON file has the return before the switch, the dip after it (how far the worst
evaluation fell below the last one before), the mean return online (the area under the curve), and
the last return. A method that is in the file already is not run again.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from offline_scores import run_script

from jaxrl.analysis.curves import COLOURS
from jaxrl.analysis.load import load_curves, load_switches
from jaxrl.analysis.statistics import bootstrap_ci, final_return, iqm
from jaxrl.cli import launch
from jaxrl.data.dataset import checksum
from jaxrl.data.formats import load
from jaxrl.data.shipped import shipped_path
from jaxrl.record.folder import write_json

METHODS = ("iql", "cal_ql", "rlpd", "wsrl")
NAMES = {"iql": "IQL", "cal_ql": "Cal-QL", "rlpd": "RLPD", "wsrl": "WSRL"}
Row = dict[str, Any]


def measure(method: str, dataset: str, options: list[str], runs: Path) -> Row:
    """Train one method, and return its row. Raises RunError as ``run_script`` does."""
    command = ["experiments/offline_to_online.py", "--method", method]
    if method == "rlpd":  # it has no offline phase
        at = options.index("--total-steps")
        options = options[:at] + options[at + 2 :]
    command += ["--env", dataset.rpartition("/")[0], "--dataset", dataset, *options]
    folder = runs / f"{method}_{dataset.replace('/', '-')}"
    summary, config = run_script(command, folder)
    curve = load_curves(folder)[1][0]
    switch = load_switches(folder).get("online", 0)
    online = curve.steps > switch if switch else curve.steps >= 0
    returns = np.asarray(curve.returns)
    row = {
        "method": method,
        "dataset": dataset,
        "checksum": checksum(load(shipped_path(dataset), quiet=True)),
        "seeds": config["seeds"],
        "final": summary["final_return"],
        "area": final_return(returns[online].mean(axis=0)),
        **{key: entry[key] for entry in summary.get("switches", []) for key in ("before", "dip")},
        "switch": switch,
        "steps": curve.steps.tolist(),
        "returns": returns.tolist(),
        "seconds": summary["wall_seconds"],
        "command": f"python {shlex.join(command)}",
        **{key: config[key] for key in ("device", "versions", "git")},
    }
    shutil.rmtree(folder)
    return row


def draw(rows: list[Row], path: Path) -> None:
    """Draw the curves: the IQM and its 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    before, after = figure.subplots(1, 2, sharey=True)
    for row, colour in zip(rows, COLOURS, strict=False):
        steps, returns = np.array(row["steps"]), np.array(row["returns"])
        middle = np.array([iqm(each) for each in returns])
        low, high = np.transpose([bootstrap_ci(each) for each in returns])
        offline = steps <= row["switch"] if row["switch"] else steps < 0
        label = f"{NAMES[row['method']]}, {len(row['seeds'])} seeds"
        # The last point before the switch is the first of what follows.
        joined = ~offline | (steps == row["switch"])
        for ax, part, start in ((before, offline, 0), (after, joined, row["switch"])):
            x = steps[part] - start
            ax.plot(x, middle[part], color=colour, linewidth=2.0, label=label)
            ax.fill_between(x, low[part], high[part], color=colour, alpha=0.2, linewidth=0)
    before.set(xlabel="gradient steps on the dataset", ylabel="evaluation return (IQM, 95 %)")
    after.set(xlabel="environment steps after the switch")
    for ax in (before, after):
        ax.grid(color="#B0B0B0", alpha=0.35, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    after.legend(frameon=False, fontsize=9)
    figure.suptitle(f"From {rows[0]['dataset']} to the environment", fontsize=11)
    figure.savefig(path, dpi=140)


def main(
    methods: tuple[str, ...] = METHODS,
    dataset: str = "gymnax/Pendulum-v1/medium-replay",
    num_seeds: int = 8,
    offline_steps: int = 20_000,
    online_steps: int = 20_000,
    words: str = "",
    runs: Path = Path("runs/offline_to_online"),
    out: Path = Path("results/offline_to_online.json"),
) -> None:
    """Run the methods one after another, print a table, and draw the figure.

    ``words``: more options of the script, as one string.
    """
    options = ["--num-seeds", str(num_seeds), "--total-steps", str(offline_steps)]
    options += ["--online-steps", str(online_steps), *shlex.split(words)]
    rows: list[Row] = json.loads(out.read_text())["rows"] if out.exists() else []
    for method in methods:
        if method not in {row["method"] for row in rows}:
            rows.append(measure(method, dataset, options, runs))
            write_json(out, {"rows": rows})
    print(f"{'method':8}{'before':>10}{'dip':>10}{'area':>10}{'final':>10}   (IQM over seeds)")
    for row in rows:
        cells = [row[key]["iqm"] if key in row else None for key in ("before", "dip")]
        cells += [row["area"]["iqm"], row["final"]["iqm"]]
        shown = "".join(f"{'-' if cell is None else f'{cell:.1f}':>10}" for cell in cells)
        print(f"{NAMES[row['method']]:8}{shown}")
    draw(rows, out.with_suffix(".png"))


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
