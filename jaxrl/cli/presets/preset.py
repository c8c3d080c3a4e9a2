"""Presets: settings for environments that match a pattern, and how they are merged."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True, init=False)
class Preset:
    """Settings for environments or datasets whose names match ``pattern``.

    Settings have the names of a script's options; settings under ``agent`` are hyper-parameters,
    nested like the agent and its parts. Shared blocks of settings come first and are overridden by
    the keywords:
    ``Preset("brax/*", PARALLEL, batch_size=512, agent=dict(gamma=0.997))``.
    """

    pattern: str
    settings: Settings

    def __init__(self, pattern: str, *blocks: Settings, **settings: Any) -> None:
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "settings", merge(*blocks, settings))


def networks(**settings: Any) -> Settings:
    """Return the same settings for the policy and the critic."""
    return {"policy": dict(settings), "critic": dict(settings)}


def lookup(presets: Sequence[Preset], *names: str) -> Settings:
    """Return the settings for an environment and, if named, for a dataset.

    All presets that match one of the names are deep-merged in order. Later presets override earlier
    ones, so more specific patterns come last.
    """
    return merge(
        *(
            each.settings
            for each in presets
            if any(fnmatch.fnmatchcase(name, each.pattern) for name in names)
        )
    )


def merge(*blocks: Mapping[str, Any]) -> Settings:
    """Deep-merge dictionaries: nested ones are merged, other values are replaced by later ones.

    The result shares nothing with the arguments.
    """
    merged: Settings = {}
    for block in blocks:
        for name, value in block.items():
            if isinstance(value, Mapping):
                before = merged.get(name)
                merged[name] = merge(before if isinstance(before, Mapping) else {}, value)
            else:
                merged[name] = copy.deepcopy(value)
    return merged
