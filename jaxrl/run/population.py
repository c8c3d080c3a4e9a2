"""The population of a run: its seeds and configurations, counted before being listed."""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl.errors import UsageError
from jaxrl.require import INT32_MAX, is_number, plain, require, shown

MOST = 2**16  # members of a population; each has its own rows


def population(
    seeds: Sequence[int] | int,
    sweep: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]] | None,
) -> tuple[list[int], list[dict[str, float]]]:
    """Return the seeds and the configurations: all combinations of swept values, or a given list.

    ``seeds`` is a list or a number of seeds. ``{"gamma": [0.9, 0.99]}`` gives two configurations,
    and so does ``[{"gamma": 0.9}, {"gamma": 0.99}]``.

    Raises:
        UsageError: for seeds that are not integers from 0 to 2**31 - 1, or repeat; for a swept name
            without values, or with any that are not numbers; for configurations with different
            names, or several without any; for more than ``MOST`` members.
    """
    given = _sequence(seeds)
    if sweep is not None and not isinstance(sweep, Mapping):
        if not isinstance(sweep, Sequence) or not all(isinstance(x, Mapping) for x in sweep):
            raise UsageError(
                f"sweep is {shown(sweep)}; give values by name, as {{'gamma': [0.9, 0.99]}}"
            )
        check_count(len(given), len(sweep))
        return _seeds(given), _listed(sweep)
    swept = {name: plain(values) for name, values in (sweep or {}).items()}
    for name, values in swept.items():
        if isinstance(values, str | Mapping) or not hasattr(values, "__len__"):
            raise UsageError(f"sweep of {name} is {shown(values)}; give numbers, as [0.9, 0.99]")
        if not len(values):
            raise UsageError(f"sweep of {name} has no values; give some, as gamma=0.9,0.99")
    check_count(len(given), math.prod(len(values) for values in swept.values()))
    columns = [[_number(name, value) for value in values] for name, values in swept.items()]
    configurations = [dict(zip(swept, each, strict=True)) for each in itertools.product(*columns)]
    return _seeds(given), configurations


def _listed(configurations: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return listed configurations in the form in which they are recorded."""
    if not len(configurations):
        raise UsageError("sweep has no configurations; give some, as [{'gamma': 0.9}]")
    names, count = list(configurations[0]), len(configurations)
    if not names and count > 1:
        raise UsageError(
            f"sweep has {count} configurations without hyper-parameters, which are one; give each "
            "its own values, as [{'gamma': 0.9}, {'gamma': 0.99}], or more seeds"
        )
    for each in configurations:
        if set(each) != set(names):
            raise UsageError(
                f"sweep has configurations of {', '.join(names) or 'nothing'} and of "
                f"{', '.join(each) or 'nothing'}; give all of them the same hyper-parameters"
            )
    return [{name: _number(name, each[name]) for name in names} for each in configurations]


def _number(name: str, value: Any) -> float:
    """Return a swept value in the form in which it is recorded as JSON."""
    if not is_number(value):
        raise UsageError(f"sweep of {name} has {shown(value)}; give numbers, as [0.9, 0.99]")
    return float(value)


def _seeds(given: Sequence[int]) -> list[int]:
    listed = [_seed(seed) for seed in given]
    repeated = [seed for seed, count in Counter(listed).items() if count > 1]
    if repeated:
        raise UsageError(f"seeds repeat {repeated[0]}; give every seed once")
    return listed


def check_count(seeds: int, configurations: int = 1) -> None:
    """Raise UsageError unless there are 1 to ``MOST`` members."""
    require("num_seeds", seeds, 1)
    if seeds * configurations > MOST:
        times = f" for each of {configurations} configurations" if configurations > 1 else ""
        cure = f"give at most {MOST // configurations}" if configurations <= MOST else "sweep less"
        raise UsageError(
            f"num_seeds is {seeds}{times}; a run has at most {MOST} members, so {cure}, "
            "or make several runs"
        )


def _sequence(seeds: Sequence[int] | int) -> Sequence[int]:
    """Return the seeds; for a number of seeds, a range that is not listed yet."""
    try:
        count = operator.index(seeds)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(seeds, str) or not hasattr(seeds, "__len__"):
            raise UsageError(
                f"seeds is {seeds!r}; it must be an integer, or integers, as [0, 1]"
            ) from None
        if isinstance(seeds, range):  # may be too long for ``len``
            check_count(-((seeds.start - seeds.stop) // seeds.step))
        return seeds  # type: ignore[return-value]
    check_count(count)
    return range(count)


def _seed(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        raise UsageError(f"seed is {seed!r}; it must be an integer") from None
    require("seed", number, 0, INT32_MAX)
    return number
