"""The command line of sweeps: which values are tried, and how."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl import hyper
from jaxrl.cli.composing import Script
from jaxrl.cli.parsing import option_flags, parse_words
from jaxrl.errors import UsageError, nearest
from jaxrl.run import PBT, Halving, Range, Values, Variant
from jaxrl.run.configurations import WRAPPERS
from jaxrl.run.spaces import EXAMPLES, Space, draw, grid

EXAMPLE = "learning_rate=log:1e-4,1e-2,8"


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep; all others are those of the script, --num-seeds and --run-dir included.

    A value is NAME=V,V,... or NAME=SCALE:LOW,HIGH,COUNT with SCALE linear, log, or log1m (the
    logarithm of one minus the value, for discounts). Random draws and --explore need no COUNT."""

    grid: tuple[str, ...] = ()
    """Try all combinations, as in: learning_rate=log:1e-4,1e-2,8 gamma=0.97,0.99"""
    random: tuple[str, ...] = ()
    """Try N random draws, as in: 32 learning_rate=log:1e-4,1e-2 entropy_coef=0,0.01"""
    random_seed: int = 0
    """Seed of the draws."""
    static: tuple[str, ...] = ()
    """Static options to sweep, where each combination compiles anew, as in: num-envs=8,16
    'hidden-dims=64 64,128 128'"""
    halving: float | None = None
    """Successive halving: each rung keeps the best 1 / HALVING of the configurations."""
    rungs: int | None = None
    """Maximum number of rungs; with fewer, the first is longer and more configurations finish."""
    pbt: bool = False
    """Population-based training: one population of all configurations for each of --num-seeds."""
    explore: tuple[str, ...] = ()
    """Ranges that PBT may explore, as in: learning_rate=log:1e-5,1e-1; default the initial ones."""
    interval: int | None = None
    """Steps between PBT's exploit steps; default a twentieth of the run."""
    quantile: float = 0.25
    """Fraction of a population that PBT replaces by copies of the best."""
    factors: tuple[float, float] = (1.2, 0.8)
    """Factors by which PBT perturbs the values of copies."""
    resample: float = 0.25
    """Probability that PBT resamples a copy's value instead."""
    confirm: int = 0
    """Retrain the best on this many fresh seeds: the score that selected it is biased."""
    max_parallel: int | None = None
    """Maximum number of runs trained at once; default as many as fit in memory."""
    time_one: bool = False
    """Also time one run alone, over a twentieth of its length."""


def divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split words into the sweep's own options and all others."""
    known = set(option_flags(SweepOptions()))
    own: list[str] = []
    others: list[str] = []
    target = others
    for word in words:
        if word.startswith("--"):
            name = word.partition("=")[0].replace("_", "-")
            target = own if name in known else others
        target.append(word)
    return own, others


def check_once(words: Sequence[str]) -> None:
    """Raise UsageError for an option of the sweep that a command line gives twice.

    ``words`` are without the recorded ones of a resumed sweep, which they override.
    """
    own, _ = divided(words)
    given = [w.partition("=")[0].replace("_", "-") for w in own if w.startswith("--")]
    for option in given:
        if given.count(option) > 1:
            several = option in ("--grid", "--random", "--static", "--explore")
            instead = f"give all names after one {option}" if several else "give it once"
            raise UsageError(f"{option} is given twice; {instead}")


def parse_sweep(words: Sequence[str]) -> SweepOptions:
    """Parse the words of the sweep's own options.

    Raises:
        UsageError: for anything that cannot be parsed, in one line.
        SystemExit: after printing ``--help``.
    """
    options = parse_words(SweepOptions, SweepOptions(), words)
    if bool(options.grid) == bool(options.random):
        both = "both are given" if options.grid else "neither is given"
        raise UsageError(f"a sweep needs --grid or --random, and {both}; as --grid {EXAMPLE}")
    if options.random_seed and not options.random:
        raise UsageError("--random-seed belongs to --random; leave it out of a grid")
    if options.pbt and options.halving is not None:
        raise UsageError("--pbt and --halving exclude each other; give one of them")
    if options.rungs is not None and options.halving is None:
        raise UsageError("--rungs belongs to --halving; add --halving 2, or leave it out")
    if not options.pbt:
        for name in ("explore", "interval", "quantile", "factors", "resample"):
            if getattr(options, name) != getattr(SweepOptions(), name):
                raise UsageError(f"--{name} belongs to --pbt; add --pbt, or leave it out")
    return options


def spaces(words: Sequence[str], option: str) -> dict[str, Space]:
    """Parse ``["learning_rate=log:1e-4,1e-2,8", "gamma=0.97,0.99"]``.

    Raises:
        UsageError: for words of another form, or a name that is given twice.
    """
    found: dict[str, Space] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise UsageError(f"{option} {word!r} is not NAME=VALUES, as {EXAMPLE}")
        name = name.replace("-", "_")
        if name in found:
            raise UsageError(f"{option} {name} is given twice; once is enough, as {EXAMPLE}")
        scale, colon, numbers = text.rpartition(":")
        values = _numbers(numbers, f"{option} {word}")
        if not colon:
            found[name] = Values(values)
            continue
        if scale not in EXAMPLES:
            raise UsageError(
                f"{option} {word}: unknown scale {scale!r}; {nearest(scale, EXAMPLES)}"
            )
        count = values[2] if len(values) == 3 else None
        if len(values) not in (2, 3) or (count is not None and count != int(count)):
            raise UsageError(
                f"{option} {word} is not LOW,HIGH or LOW,HIGH,COUNT, as {EXAMPLES[scale]},8"
            )
        low, high, *rest = values
        kind: Any = scale
        found[name] = Range(low, high, kind, int(rest[0]) if rest else None)
    return found


def _numbers(text: str, shown: str) -> tuple[float, ...]:
    try:
        values = tuple(float(each) for each in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{shown} is not a list of numbers, as {EXAMPLE}")
    return values


def configurations(options: SweepOptions) -> tuple[list[dict[str, float]], dict[str, Space]]:
    """Return the configurations that are tried, and the spaces that they come from.

    Raises:
        UsageError: for words that describe no configurations.
    """
    if options.grid:
        found = spaces(options.grid, "--grid")
        return grid(found), found
    count, *words = options.random
    if not count.isdecimal() or not words:
        raise UsageError(
            f"--random {' '.join(options.random)} is not a number and what to draw, as "
            "--random 32 learning_rate=log:1e-4,1e-2"
        )
    found = spaces(words, "--random")
    return draw(found, int(count), options.random_seed), found


def method(options: SweepOptions, found: Mapping[str, Space]) -> Halving | PBT | None:
    """Return the method that the options request; ``found`` are the initial values' spaces."""
    if options.halving is not None:
        return Halving(options.halving, options.rungs)
    if not options.pbt:
        return None
    return PBT(
        spaces={**found, **spaces(options.explore, "--explore")},
        interval=options.interval,
        quantile=options.quantile,
        factors=options.factors,
        resample=options.resample,
    )


def static_choices(words: Sequence[str]) -> list[dict[str, str]]:
    """Return all combinations of ``["num-envs=8,16"]``, as ``[{"num-envs": "8"}, ...]``.

    Raises:
        UsageError: for words of another form, or a name that is given twice.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise UsageError(f"--static {word!r} is not NAME=VALUES, as num-envs=8,16")
        name = name.removeprefix("--").replace("_", "-")
        if name in found:
            raise UsageError(f"--static {name} is given twice; once is enough, as num-envs=8,16")
        found[name] = text.split(",")
    return [dict(zip(found, each, strict=True)) for each in itertools.product(*found.values())]


def trainers_of(trainer: Any) -> list[Any]:
    """Return the trainers of a variant's phases, in order."""
    return [trainer] if hasattr(trainer, "agent") else [phase.trainer for phase in trainer]


def static_words(choices: Mapping[str, str]) -> list[str]:
    """Return static choices as options of a script; ``True`` and ``False`` are switches."""
    words = []
    for name, value in choices.items():
        before, dot, last = name.rpartition(".")
        if value in ("True", "False"):
            words.append(f"--{before}{dot}{'' if value == 'True' else 'no-'}{last}")
        else:
            words += [f"--{name}", *value.split()]
    return words


def variants(
    script: Script, words: Sequence[str], options: SweepOptions, tried: Mapping[str, float]
) -> tuple[list[Variant], dict[str, Any]]:
    """Return the variants that a script composes, and its other arguments to ``run``.

    ``tried`` is one of the configurations.

    Raises:
        UsageError: for settings that the script refuses, swept names that are not numbers of its
            agent, or static choices that change an argument which all variants share.
    """
    found: list[Variant] = []
    others: dict[str, Any] | None = None
    for choices in static_choices(options.static):
        arguments = script.compose([*words, *static_words(choices)])
        trainer = arguments.pop("trainer")
        _check_names(trainers_of(trainer)[-1], tried)
        found.append(
            Variant(
                trainer,
                arguments.pop("total_steps", None),
                choices,
                arguments.pop("data", ()),
                arguments.pop("reference", None),
                arguments.pop("policy_from", None),
            )
        )
        arguments.pop("max_nonfinite", None)
        others = arguments if others is None else others
        _check_shared(others, arguments, found[0].choices, choices)
    assert others is not None
    return found, others


def _check_shared(
    first: Mapping[str, Any],
    arguments: Mapping[str, Any],
    first_choices: Mapping[str, str],
    choices: Mapping[str, str],
) -> None:
    """Raise UsageError if a variant's other arguments to ``run`` are not those of the first."""
    for name in {**first, **arguments}:
        if name == "run_dir" and "run-dir" not in choices:
            continue  # its default contains the time
        values: list[Any] = [each.get(name) for each in (first, arguments)]
        if not np.array_equal(*values):
            changed = {n: value for n, value in first_choices.items() if value != choices[n]}
            given = " ".join(f"{n}={choices[n]}" for n in changed)
            raise UsageError(
                f"--static {given} changes {name}, which all variants of a sweep share; give one "
                f"value without --static, as {shlex.join(static_words(changed))}"
            )


def _check_names(trainer: Any, tried: Mapping[str, float]) -> None:
    wrapped = {field.name for wrapper in WRAPPERS for field in dataclasses.fields(wrapper)}
    for name, value in tried.items():
        if name in wrapped - set(hyper.names(trainer)):
            continue  # ``sweep`` names the option that adds the wrapper
        try:
            hyper.replace(trainer, {name: value})
        except UsageError as error:
            if "is static" in str(error):
                text = f"{name} is static: each value compiles anew"
            else:
                text = f"{error}; an option that is static"
            raise UsageError(f"{text}, and is swept as --static {name}=...") from None
