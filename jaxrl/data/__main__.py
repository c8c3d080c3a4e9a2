"""``python -m jaxrl.data PATH``: a dataset's contents, as text and as a picture."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from jaxrl._output import lasting_output, one_line
from jaxrl.data.dataset import Dataset
from jaxrl.data.describe import BINS, columns_of, describe, lines
from jaxrl.data.formats import load, reference
from jaxrl.data.scores import Reference
from jaxrl.errors import UsageError

ABOUT = """\
Describe a dataset (D4RL's HDF5, a folder of Minari's, OGBench's npz): episodes, returns, lengths,
ranges, terminations, coverage. TQ is printed where returns of a random policy and of an expert are
known, SACo with --reference. --out writes dataset.json and dataset.png."""


def main(words: Sequence[str] | None = None) -> int:
    """Print a dataset's description. Returns the exit code: 0, or 2 on bad usage."""
    with lasting_output():
        try:
            _run(_parser().parse_args(words))
        except (UsageError, OSError) as error:
            print(f"jaxrl.data: {one_line(error)}", file=sys.stderr)
            return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    data = load(options.path, task=options.task)
    other = None if options.reference is None else load(options.reference, task=options.task)
    found = describe(
        data,
        references=_references(options),
        reference=other,
        dims=options.dims,
        bins=options.bins,
    )
    print(options.path)
    for line in lines(found):
        print(f"  {one_line(line)}")
    if options.out is not None:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset.json").write_text(json.dumps(found, indent=2) + "\n")
        draw(data, found, folder / "dataset.png")
        print(f"  picture: {folder / 'dataset.png'}")


def _references(options: argparse.Namespace) -> Reference | None:
    """Return the given references, or else those that belong to the dataset."""
    if (options.random is None) != (options.expert is None):
        raise UsageError("--random and --expert belong together; give both")
    if options.random is not None:
        return Reference(options.random, options.expert, "given")
    return reference(options.path)


def draw(data: Dataset, found: dict[str, Any], path: Path) -> None:
    """Draw returns, lengths, rewards and the first two dimensions of the coverage, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, 2).reshape(-1)
    for ax, name, values in zip(
        axes,
        ("return", "length", "reward"),
        (data.returns(), data.lengths(), np.asarray(data.reward)),
        strict=False,
    ):
        ax.hist(values, bins=50, color="#0072B2")
        ax.set(xlabel=name, ylabel="rows" if name == "reward" else "episodes")
        ax.axvline(float(np.mean(values)), color="#D55E00", label="mean")
    axes[0].legend()
    names = found["coverage"]["dims"][:2]
    columns = columns_of(data, names)
    shown = np.linspace(0, data.size - 1, min(data.size, 20_000)).astype(int)
    if len(names) == 2:
        axes[3].plot(columns[shown, 0], columns[shown, 1], ",", color="#0072B2")
        axes[3].set(xlabel=names[0], ylabel=names[1])
    else:
        axes[3].hist(columns[shown, 0], bins=50, color="#0072B2")
        axes[3].set(xlabel=names[0], ylabel="rows")
    figure.suptitle(f"{data.size:,} transitions, {data.num_episodes:,} episodes")
    figure.savefig(path, dpi=120)


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m jaxrl.data", description=ABOUT)
    add = parser.add_argument
    add("path", metavar="PATH", help="a file or folder")
    add("--reference", metavar="PATH", help="the dataset that SACo compares with")
    add("--out", metavar="DIR", help="where to write dataset.json and dataset.png, replacing them")
    add("--dims", nargs="+", metavar="DIM", help="dimensions of coverage, as obs[0] action[0]")
    add("--bins", type=int, default=BINS, metavar="N", help=f"bins per dimension (default {BINS})")
    add("--random", type=float, metavar="R", help="the return of a random policy")
    add("--expert", type=float, metavar="R", help="the return of an expert")
    add("--task", metavar="NAME", help="a single task of OGBench, which gives the rewards")
    return parser


if __name__ == "__main__":
    sys.exit(main())
