"""Gymnasium's spaces as JSON, as Minari writes them into ``metadata.json``.

    {"type": "Box", "dtype": "float32", "shape": [3], "low": [...], "high": [...]}
    {"type": "Discrete", "start": 0, "n": 2},  {"type": "Dict", "subspaces": {name: space}}
    {"type": "Tuple", "subspaces": [space, ...]}

An observation dictionary has one level: entries of nested spaces are named ``outer/inner``, and
tuple entries by index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxrl.errors import UsageError
from jaxrl.types import Box, Discrete, Spec


class Entry(NamedTuple):
    """An observation array: its keys, from the outermost group inwards, and its space."""

    keys: tuple[str, ...]
    box: Box


def parse(text: Any, where: str) -> dict[str, Any]:
    """Return a space's JSON object, which Minari stores as a string.

    Raises:
        UsageError: if it is not a JSON object.
    """
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise UsageError(f"{where} is no space; it must be JSON like {json.dumps(dump(_EXAMPLE))}")
    return found


def action_space(space: Mapping[str, Any], where: str) -> tuple[Box | Discrete, int]:
    """Return an action space, and the number of its first index (0 for a ``Box``).

    Raises:
        UsageError: for spaces other than ``Box`` and ``Discrete``.
    """
    if space["type"] == "Box":
        return _box(space, where), 0
    if space["type"] == "Discrete":
        n, start = space.get("n"), space.get("start", 0)
        if type(n) is not int or type(start) is not int or n < 1:
            raise UsageError(f"{where} has n {n!r} and start {start!r}; both must be integers")
        return Discrete(n), start
    raise UsageError(f"{where} is {space['type']}; only Box and Discrete actions are read")


def observation_entries(
    space: Mapping[str, Any], where: str, keys: tuple[str, ...] = ()
) -> list[Entry]:
    """Return all arrays of an observation space; for a ``Box``, one array with no keys.

    Raises:
        UsageError: for images, and for spaces other than ``Box``, ``Dict`` and ``Tuple``.
    """
    inner = space.get("subspaces")
    if space["type"] == "Dict" and isinstance(inner, dict):
        parts = [(str(name), part) for name, part in inner.items()]
    elif space["type"] == "Tuple" and isinstance(inner, list):
        parts = [(str(i), part) for i, part in enumerate(inner)]
    elif space["type"] == "Box":
        box = _box(space, where)
        if box.dtype == np.uint8 and len(box.shape) >= 2:
            raise UsageError(f"{where} is images (uint8{list(box.shape)}); only vectors are read")
        return [Entry(keys, box)]
    else:
        raise UsageError(f"{where} is {space['type']}; only Box, Dict and Tuple are read")
    return [
        entry
        for name, part in parts
        for entry in observation_entries(
            parse(part, f"{where}/{name}"), f"{where}/{name}", (*keys, name)
        )
    ]


def _box(space: Mapping[str, Any], where: str) -> Box:
    shape, name = space.get("shape"), space.get("dtype", "float32")
    dtype = np.dtype(name) if isinstance(name, str) and name in np.sctypeDict else None
    if (
        not isinstance(shape, list)
        or not all(type(n) is int and n >= 0 for n in shape)
        or dtype is None
        or dtype.kind not in "fiub"
    ):
        raise UsageError(f"{where} has shape {shape} and dtype {name!r}; both must be a Box's")
    try:
        return Box(space.get("low"), space.get("high"), tuple(shape), dtype)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def dump(space: Box | Discrete | Mapping[str, Box]) -> dict[str, Any]:
    """Return a space as a JSON object."""
    if isinstance(space, Mapping):
        return {"type": "Dict", "subspaces": {name: dump(box) for name, box in space.items()}}
    if isinstance(space, Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": int(space.n)}
    shape, dtype = list(space.shape), np.dtype(space.dtype).name
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
    return {"type": "Box", "dtype": dtype, "shape": shape, **bounds}


def dump_spec(spec: Spec) -> dict[str, str]:
    """Return the spaces of a spec as JSON strings, as in Minari's metadata."""
    return {
        "observation_space": json.dumps(dump(spec.observation)),
        "action_space": json.dumps(dump(spec.action)),
    }


_EXAMPLE = Box(-1.0, 1.0, (2,))
