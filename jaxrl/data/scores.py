"""Normalised scores: 0 is a random policy's return, 100 an expert's.

    score = 100 * (R - random) / (expert - random)

``R`` is an undiscounted return, or the mean of several: the map is affine, so the mean of scores is
the score of the mean. D4RL's constants (Fu et al. 2020, "D4RL: Datasets for Deep Data-Driven
Reinforcement Learning"; ``d4rl/infos.py``) apply only to D4RL's own tasks. For other tasks,
references are measured, and a score is not called ``d4rl``.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from jaxrl.errors import UsageError
from jaxrl.require import plain, require, shown


class Reference(NamedTuple):
    """Returns of a random policy and of an expert, and their origin."""

    random: float
    expert: float
    source: str

    @property
    def name(self) -> str:
        """The name of the score: ``d4rl`` with D4RL's constants, else ``normalized``."""
        return "d4rl" if self.source == _SOURCE else "normalized"


def as_reference(given: Any) -> Reference | None:
    """Return a reference, or None, with Python's own numbers.

    Raises:
        UsageError: for anything but a ``Reference`` of two finite returns, the expert's greater.
    """
    if given is None:
        return None
    if not isinstance(given, Reference) or not isinstance(given.source, str):
        raise UsageError(
            f"reference is {shown(given)}; give the returns of a random policy and of an expert, "
            "and where they come from, as Reference(20.0, 500.0, 'measured')"
        )
    _check(given.random, given.expert, "reference.")
    return Reference(*map(plain, given))


def _check(random: Any, expert: Any, of: str = "") -> None:
    """Raise UsageError unless both returns are finite numbers, and the expert's is greater."""
    for name, value in (("random", random), ("expert", expert)):
        if value is None:
            raise UsageError(f"{of}{name} is None; it must be a number")
        require(f"{of}{name}", value, float("-inf"))
    if expert <= random:
        raise UsageError(
            f"{of}expert is {expert:g}, and random {random:g}; the expert's return must be greater"
        )


_SOURCE = "D4RL's constants"
# These are the same for all datasets and versions of a task.
_LOCOMOTION = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
}
_OTHERS = {
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
}
_MAZE2D = {
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
}
_QUALITIES = "random|medium|expert|medium-replay|medium-expert|full-replay"
_TASK = re.compile(rf"({'|'.join(_LOCOMOTION)})-v[234]")
_DATASET = re.compile(rf"({'|'.join(_LOCOMOTION)})-({_QUALITIES})-v[012]")
# Other suites have similar names: Meta-World's door-open-v2, OGBench's antmaze-giant-navigate-v0.
_OTHER = re.compile(
    r"antmaze-(umaze|umaze-diverse|(medium|large)-(play|diverse))-v[012]"
    r"|kitchen-(complete|partial|mixed)-v0"
    r"|(pen|hammer|door|relocate)-(human|cloned|expert)(-longhorizon)?-v[01]"
)


def d4rl_reference(task: str) -> Reference | None:
    """Return D4RL's constants for one of its tasks; None for any other.

    ``task`` is the name of an environment or of a dataset, with or without a suite:
    ``"mjx/Hopper-v4"``, ``"hopper-medium-v2"``, ``"antmaze-large-play-v2"``. Versions 2 to 4 of the
    locomotion environments are D4RL's tasks; version 5 has other rewards and observations.
    """
    name = task.rpartition("/")[2].lower()
    if name in _MAZE2D:
        return Reference(*_MAZE2D[name], _SOURCE)
    if not any(pattern.fullmatch(name) for pattern in (_TASK, _DATASET, _OTHER)):
        return None
    return Reference(*(_LOCOMOTION | _OTHERS)[name.partition("-")[0]], _SOURCE)


def d4rl_score(task: str, episode_return: Any) -> Any:
    """Return D4RL's score, in percent, of a return or an array of returns in ``task``.

    Raises:
        UsageError: for a task that is not one of D4RL's.
    """
    reference = d4rl_reference(task)
    if reference is None:
        raise UsageError(
            f"D4RL has no score of {task!r}, as it has of mjx/Hopper-v4; measure the returns of a "
            "random policy and of an expert, and call normalized(return, random, expert)"
        )
    return normalized(episode_return, reference.random, reference.expert)


def normalized(episode_return: Any, random: float, expert: float) -> Any:
    """Return the score, in percent, of a return or an array of returns between two references.

    Raises:
        UsageError: unless both references are finite, and the expert's is greater.
    """
    _check(random, expert)
    return 100.0 * (episode_return - random) / (expert - random)
