"""The command line that trains one configuration of a sweep alone."""

from __future__ import annotations

import contextlib
import io
import itertools
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxrl import hyper
from jaxrl.cli.composing import Script
from jaxrl.cli.resuming import without_own
from jaxrl.cli.sweeping import static_words, trainers_of
from jaxrl.run import Variant

UNWRAPPED = {"reward_scale": 1.0, "reward_shift": 0.0}  # rewards as they are, without ScaleReward


def command_of(
    script: Script,
    words: Sequence[str],
    variants: Sequence[Variant],
    tried: Sequence[Mapping[str, float]],
) -> Callable[[Variant, Mapping[str, float]], str] | None:
    """Return the function that writes a configuration as the command line that trains it alone.

    None if there is none: a swept number may have no option, or one with another meaning. To find
    out, the script composes the first and the last configuration of every variant.
    """
    for more in ((), ("--return-range", "None")):  # a return range changes the reward scale
        if all(
            _trains(script, [*words, *_options(variant, each), *more], variant, each)
            for variant, each in itertools.product(variants, (tried[0], tried[-1]))
        ):
            return partial(_command, script, words, more)
    return None


def _trains(
    script: Script, words: Sequence[str], variant: Variant, configuration: Mapping[str, float]
) -> bool:
    """Whether a script composes a variant's trainers with a configuration's numbers."""
    heard = io.StringIO()  # the dataset has been described
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            found = trainers_of(script.compose(words)["trainer"])
        wanted = [hyper.replace(each, configuration) for each in trainers_of(variant.trainer)]
    except (Exception, SystemExit):  # whatever a user's own script raises
        return False
    return len(found) == len(wanted) and all(map(_same_numbers, found, wanted))


def _same_numbers(one: Any, other: Any) -> bool:
    """Whether two trainers have the same numeric hyper-parameters."""
    a, b = ({**UNWRAPPED, **hyper.numbers(each)} for each in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _options(variant: Variant, configuration: Mapping[str, float]) -> list[str]:
    """Return a variant's choices and a configuration's values as options of a script."""
    values = [f"--{name.replace('_', '-')}={value!r}" for name, value in configuration.items()]
    return [*static_words(variant.choices), *values]


def _command(
    script: Script,
    words: Sequence[str],
    more: Sequence[str],
    variant: Variant,
    configuration: Mapping[str, float],
) -> str:
    """Return the command line that trains a configuration alone, in its own folder."""
    own = [*without_own(words), *_options(variant, configuration), *more]
    return shlex.join(["python", script.shown, *own])
