"""The commands of ``python -m jaxrl.analysis``.

``python -m jaxrl.analysis RUN [RUN ...]`` prints a table with intervals and draws the curves.
``python -m jaxrl.analysis compare RUN ... -- RUN ...`` says which group is better, if any.
``python -m jaxrl.analysis evaluate RUN`` plays fresh episodes of the run's policies.
``python -m jaxrl.analysis render RUN`` draws an episode of the run's policy.
``python -m jaxrl.analysis export RUN`` writes the policy as files that need no jaxrl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from jaxrl import _startup
from jaxrl._output import lasting_output, one_line, sweep_label
from jaxrl.analysis import compare_command
from jaxrl.analysis.command import PICTURE, Parser, picture
from jaxrl.analysis.curves import env_label, plot_comparison, plot_run
from jaxrl.analysis.evaluation import evaluate_run
from jaxrl.analysis.load import (
    Curve,
    is_finished,
    load_config,
    load_curves,
    load_summary,
    load_timing,
)
from jaxrl.analysis.render import parse_size, render_run
from jaxrl.analysis.statistics import final_return
from jaxrl.analysis.tables import print_table, used_columns
from jaxrl.errors import RunError, UsageError
from jaxrl.export import export_run
from jaxrl.record.policy import Which

TEXTS = ("run", "algorithm", "env", "sweep")
NUMBERS = ("seeds", "steps", "final IQM", "95% interval", "mean", "steps/s")
ABOUT = """\
Print a table of runs: the interquartile mean (IQM) of the seeds' final evaluation returns with its
95% bootstrap interval, the mean, and steps/s of all seeds together. For several runs, also draw
the curves. A run that is not finished is shown up to its last evaluation.
To compare groups of runs, with tests:
    python -m jaxrl.analysis compare RUN ... -- RUN ... (--help)
To play fresh episodes of a run's policies:
    python -m jaxrl.analysis evaluate RUN (--help)
To draw an episode of a run's policy:
    python -m jaxrl.analysis render RUN (--help)
To write the policy as files that need no jaxrl:
    python -m jaxrl.analysis export RUN (--help)"""
ABOUT_EVALUATE = """\
Play fresh episodes of a run's policies, all seeds if none is named. The score that selected the
best policy is biased upwards; these episodes are not."""
ABOUT_RENDER = """\
Play one episode of a run's policy and draw it: episode.mp4 and episode.gif for MuJoCo's tasks and
those of gymnax that it can draw, episode.html for Brax, and always episode.npz. They are written to
the run's folder, replacing those of an earlier call."""

ABOUT_EXPORT = """\
Write the policy of a run, including observation normalisation and action scaling, as policy.npz
(for numpy, with a reader), policy.jaxexport (with a loader) and policy.onnx. Each file is compared
with the policy on 1,000 observations, and not kept if it differs. The files are written to the
folder export in the run's folder, replacing those of an earlier call."""


def main(words: Sequence[str] | None = None) -> int:
    """Print the table and draw the figure, or run the command named by the first word.

    Returns:
        The exit code: 0, 2 on bad usage, or 1 if the run has no intact checkpoint.
    """
    given = list(sys.argv[1:] if words is None else words)
    with lasting_output():
        try:
            if given[:1] == ["render"]:
                _render(_render_parser().parse_args(given[1:]))
            elif given[:1] == ["evaluate"]:
                _evaluate(_evaluate_parser().parse_args(given[1:]))
            elif given[:1] == ["compare"]:
                compare_command.main(given[1:])
            elif given[:1] == ["export"]:
                _export(_export_parser().parse_args(given[1:]))
            else:
                _show(_parser().parse_args(given))
        except (UsageError, RunError, OSError) as error:
            print(f"jaxrl.analysis: {one_line(error)}", file=sys.stderr)
            return 1 if isinstance(error, RunError) else 2
    return 0


def _show(options: argparse.Namespace) -> None:
    rows = [row for run in options.runs for row in table_rows(run)]
    head = list(TEXTS + NUMBERS)
    print_table(used_columns([head, *rows]), NUMBERS)
    out = options.out if len(options.runs) == 1 else picture(options.out)
    if out is not None:
        if len(options.runs) > 1:
            plot_comparison(options.runs, out)
        else:
            plot_run(options.runs[0], out)
        print(f"picture: {out}")


def _render(options: argparse.Namespace) -> None:
    given = vars(options)
    if given["size"] is not None:
        given["size"] = parse_size(given["size"])
    _startup.prepare()
    rendering = render_run(given.pop("run"), **given)
    for note in rendering.notes:
        print(f"jaxrl.analysis: {note}", file=sys.stderr)
    print(rendering)


def _evaluate(options: argparse.Namespace) -> None:
    given = vars(options)
    _startup.prepare()
    run = given.pop("run")
    if given["seed"] is not None:
        given["seeds"] = [given["seed"]]
    del given["seed"]
    played = evaluate_run(run, **given)
    print_table(played.table(), played.table()[0])
    print(played)


def _export(options: argparse.Namespace) -> None:
    given = vars(options)
    _startup.prepare()
    export = export_run(given.pop("run"), **given)
    for note in export.notes:
        print(f"jaxrl.analysis: {note}", file=sys.stderr)
    print(export)


def table_rows(run_dir: str | Path) -> list[list[str]]:
    """Return the cells of ``TEXTS + NUMBERS``, one row per configuration of a run."""
    config, summary = load_config(run_dir), load_summary(run_dir)
    timing = load_timing(run_dir)
    reached = 0 if timing.empty else int(timing["step"].iloc[-1])
    name = str(run_dir)
    if summary is None or not is_finished(run_dir):
        name += " (unfinished)"
        entries = _so_far(run_dir)
        members = sum(len(entry["final_return"]["per_seed"]) for entry in entries)
        seconds = 0.0 if timing.empty else timing["seconds"].iloc[-1]
        speed = f"{reached * members / seconds:,.0f}" if seconds else "-"
    else:
        steps = f"{summary['total_steps']:,}"
        entries = [{"steps": steps} | e for e in summary.get("configurations", [summary])]
        speed = f"{summary['steps_per_second']:,.0f}"
    start = [name, str(config["algorithm"]), env_label(config)]
    rows = [[*start, *_cells(entry)] for entry in entries]
    # The speed is the total over all configurations.
    return [[*row, speed if i == 0 else ""] for i, row in enumerate(rows)]


def _so_far(run_dir: str | Path) -> list[dict[str, Any]]:
    """Return the newest returns of all seeds of an unfinished run, per configuration."""
    _, curves = load_curves(run_dir)
    return [_newest(curve) for curve in curves] or [
        {"steps": "0", "final_return": final_return([])}
    ]


def _newest(curve: Curve) -> dict[str, Any]:
    whole = curve.without_partial()
    return {
        "sweep": whole.sweep,
        "steps": f"{int(whole.steps[-1]):,}",
        "final_return": final_return(whole.returns[-1]),
    }


def _cells(entry: dict[str, Any]) -> list[str]:
    """Return swept values, seeds, steps, final IQM, interval and mean."""
    final = entry["final_return"]
    cells = [sweep_label(entry.get("sweep", {})), str(len(final["per_seed"])), entry["steps"]]
    if final["iqm"] is None:
        return [*cells, "-", "-", "-"]
    low, high = final["ci95"]
    size = max(abs(low), abs(high))
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    text = [f"{x:,.{digits}f}" for x in (final["iqm"], low, high, final["mean"])]
    return [*cells, text[0], f"{text[1]} to {text[2]}", text[3]]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m jaxrl.analysis",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run (./-a for -a)")
    parser.add_argument(
        "--out",
        metavar="PICTURE",
        help=f"where to draw, replacing what is there (default for several runs: {PICTURE})",
    )
    return parser


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = _policy_parser("evaluate", ABOUT_EVALUATE)
    add = parser.add_argument
    add("--mode", choices=("greedy", "sample"), default="greedy", help="how to act")
    add("--episodes", type=int, default=100, metavar="N", help="episodes of each seed")
    add("--key", type=int, default=0, metavar="K", help="random seed of the episodes")
    return parser


def _render_parser() -> argparse.ArgumentParser:
    parser = _policy_parser("render", ABOUT_RENDER)
    _add_out(parser)
    add = parser.add_argument
    add("--mode", choices=("greedy", "sample"), default="greedy", help="how to act")
    add("--episode", type=int, default=0, metavar="I", help="index of an evaluation's episode")
    add("--steps", type=int, metavar="MAX", dest="max_steps", help="cut off after MAX steps")
    add("--size", metavar="WxH", help="pixels of MuJoCo's pictures, such as 640x480")
    return parser


def _export_parser() -> argparse.ArgumentParser:
    parser = _policy_parser("export", ABOUT_EXPORT)
    _add_out(parser)
    words = "npz, jax, onnx; default all that support the policy"
    parser.add_argument("--formats", nargs="+", metavar="F", help=words)
    return parser


def _policy_parser(command: str, about: str) -> argparse.ArgumentParser:
    """Return a parser for the options that select one policy of a run."""
    parser = Parser(f"python -m jaxrl.analysis {command}", description=about)
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run")
    default = "all" if command == "evaluate" else "the first"
    add("--seed", type=int, metavar="S", help=f"one of its seeds; default {default}")
    add("--config", type=int, default=0, metavar="I", help="the configuration of a sweep")
    add("--iteration", type=int, metavar="I", help="the number of a checkpoint; default the newest")
    add("--checkpoint", choices=get_args(Which), default="last",
        help="the last policy, or that of the seed's best evaluation")  # fmt: skip
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    text = "write here instead; nothing is replaced"
    parser.add_argument("--out", metavar="FOLDER", help=text)


if __name__ == "__main__":
    sys.exit(main())
