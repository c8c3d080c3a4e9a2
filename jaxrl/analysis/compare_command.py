"""``python -m jaxrl.analysis compare``: its options and output."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from jaxrl.analysis.command import Parser, picture
from jaxrl.analysis.compare import Comparison, compare_groups
from jaxrl.analysis.comparison_figure import plot_groups
from jaxrl.analysis.curves import check_picture
from jaxrl.analysis.groups import FEW_SEEDS, read_groups
from jaxrl.analysis.tables import (
    NUMBERS,
    conclusions,
    group_table,
    pair_table,
    print_table,
    write_csv,
    write_latex,
)
from jaxrl.errors import UsageError

ABOUT = """\
Compare groups of runs, separated by --: every seed's final return (a normalised score if the runs
have a reference), on every environment that all groups have. Print both tables and conclusions,
and draw the figure. The runs of one group on one environment are one sample of seeds; each
configuration of a sweep is a group of its own. docs/statistics.md has the formulae."""
T = TypeVar("T")
BREAK = "\0"  # replaces -- between groups, which argparse would read as the end of options


def main(words: Sequence[str]) -> None:
    """Compare the runs named on a command line.

    Raises:
        UsageError: for wrong usage, or runs that cannot be compared.
        OSError: if a file cannot be read or written.
    """
    options = _parser().parse_intermixed_args([BREAK if w == "--" else w for w in words])
    sides = _sides(options.runs)
    out = picture(options.out)
    check_picture(out)
    _check_outputs(options)
    groups = read_groups(
        sides,
        options.csv,
        names=[name.strip() for name in options.names.split(",")] if options.names else (),
        where=_once("where", options.where, _where),
        steps=options.steps,
        references=_once("reference", options.reference, _reference),
        failed=options.failed,
    )
    comparison = compare_groups(groups, options.threshold)
    for table in (group_table(comparison), pair_table(comparison)):
        print_table(table, NUMBERS)
    for line in conclusions(comparison):
        print(line)
    for note in groups.notes:
        print(f"note: {note}")
    if any(row.seeds[0] < FEW_SEEDS for row in comparison.rows):
        print(
            f"note: with fewer than {FEW_SEEDS} seeds, the interval of the IQM is too narrow: with "
            "4 seeds, it contains the true IQM about 87 times in 100, not 95"
        )
    _write(comparison, options, out)


def _write(comparison: Comparison, options: argparse.Namespace, out: str) -> None:
    if options.out_csv is not None:
        write_csv(comparison, options.out_csv)
        print(f"csv: {options.out_csv}")
    if options.out_latex is not None:
        write_latex(comparison, options.out_latex)
        print(f"latex: {options.out_latex}")
    plot_groups(comparison, out)
    print(f"picture: {out}")


def _sides(words: Sequence[str]) -> list[list[str]]:
    sides: list[list[str]] = [[]]
    for word in words:
        if word == BREAK:
            sides.append([])
        else:
            sides[-1].append(word)
    return [] if sides == [[]] else sides


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise UsageError if a table would overwrite an input, or both tables are one file."""
    given = {"out-csv": options.out_csv, "out-latex": options.out_latex}
    named = {name: path for name, path in given.items() if path is not None}
    read = {Path(path).resolve() for path in options.csv}
    for name, path in named.items():
        if Path(path).resolve() in read:
            raise UsageError(f"{name} {path} is read by --csv; name another file")
    if len({Path(path).resolve() for path in named.values()}) < len(named):
        raise UsageError(f"out-csv and out-latex are both {options.out_csv}; name two files")


def _once(option: str, texts: Sequence[str], parse: Callable[[str], tuple[str, T]]) -> dict[str, T]:
    """Return the values that an option gives to names; raise UsageError for a repeated name."""
    found: dict[str, T] = {}
    for text in texts:
        name, value = parse(text)
        if name in found:
            raise UsageError(
                f"{option} {text} repeats {name}; give one value, as --{option} '{text}'"
            )
        found[name] = value
    return found


def _where(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"where is {text!r}; give NAME=VALUE, such as learning_rate=0.001")
    return name.strip(), _number("where", text, value)


def _reference(text: str) -> tuple[str, tuple[float, float]]:
    task, equals, values = text.rpartition("=")
    random, comma, expert = values.partition(",")
    if not equals or not comma:
        raise UsageError(
            f"reference is {text!r}; give TASK=RANDOM,EXPERT, such as gymnax/CartPole-v1=20,500"
        )
    return task, (_number("reference", text, random), _number("reference", text, expert))


def _number(option: str, text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{option} is {text!r}; {value!r} must be a number, such as 0.5")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "python -m jaxrl.analysis compare",
        usage="%(prog)s RUN [RUN ...] -- RUN [RUN ...] [options]",
        description=ABOUT,
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="folders of runs; -- between the groups")
    add(
        "--csv",
        action="append",
        default=[],
        metavar="FILE",
        help="curves of other libraries, with the columns step, return, seed, env, algorithm; each "
        "algorithm is a group (may be repeated)",
    )
    add("--names", metavar="A,B", help="names of the groups; default their algorithms")
    add(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="for swept runs, keep only the configurations with this value (may be repeated, for "
        "other names)",
    )
    add(
        "--steps",
        type=int,
        metavar="N",
        help="compare at N steps, by linear interpolation; default: at each run's end",
    )
    add(
        "--reference",
        action="append",
        default=[],
        metavar="TASK=RANDOM,EXPERT",
        help="the returns with scores of 0 and 100; default those of the runs, if they have any "
        "(may be repeated, for other tasks)",
    )
    add("--threshold", type=float, metavar="SCORE", help="report the steps to reach this score")
    add("--failed", type=float, metavar="RETURN", help="replace non-finite returns by this value")
    add("--out", metavar="PICTURE", help="where to draw; default comparison.png, if not there yet")
    add("--out-csv", metavar="FILE", help="write all numbers, unrounded, replacing the file")
    add("--out-latex", metavar="FILE", help="write both tables for LaTeX, replacing the file")
    return parser
