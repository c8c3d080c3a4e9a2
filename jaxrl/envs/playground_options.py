"""The options of MuJoCo Playground's tasks: the numbers of their configurations, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from jaxrl.envs.checks import check_like, check_positive
from jaxrl.errors import UsageError

# Not offered: pictures need a renderer, and the time limit has its own name.
_HIDDEN = ("vision", "vision_config", "episode_length")


def numbers(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float]:
    """Return the numbers in a configuration by their dotted names."""
    found: dict[str, bool | int | float] = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float)):
            found[prefix + name] = value
    return {name: x for name, x in found.items() if name.partition(".")[0] not in _HIDDEN}


def checked(name: str, option: str, value: Any, default: bool | int | float) -> Any:
    """Return ``value`` in the type of ``default``; raise UsageError for invalid values."""
    check_like(name, option, value, default)
    if option == "action_repeat":
        return check_positive(name, option, value)
    if isinstance(default, int) and (not isinstance(value, Integral) or value < 0):
        raise UsageError(f"{name}: {option} is {value!r}; it must be a count, as {default}")
    if math.isfinite(default) and not math.isfinite(value):
        raise UsageError(f"{name}: {option} is {value!r}; it must be finite, as {default}")
    return type(default)(value)


def check_times(name: str, config: Any) -> None:
    """Raise UsageError for incompatible time steps."""
    ctrl, sim = config.ctrl_dt, config.sim_dt
    if sim <= 0:
        raise UsageError(f"{name}: sim_dt is {sim}; it must be more than 0 seconds")
    if ctrl <= 0 or abs(ctrl / sim - round(ctrl / sim)) > 1e-6:
        raise UsageError(f"{name}: ctrl_dt is {ctrl}; it must be a multiple of sim_dt, as {sim:g}")
