"""Hyper-parameters by name: read, replaced, swept, checked, and written to JSON and back.

Agents nest (``NormalizeObs(ScaleReward(PPO()))``); a name is looked up from the outermost inwards.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import jax
import numpy as np

from jaxrl.errors import UsageError, nearest

T = TypeVar("T")


def _is_static(field: dataclasses.Field, value: Any = None) -> bool:
    return not field.metadata.get("pytree_node", True)


def _is_absent(field: dataclasses.Field, value: Any) -> bool:
    return value is None and not _is_static(field)


def numbers(node: Any) -> dict[str, Any]:
    """All hyper-parameters that are numbers, and so can be swept: ``{name: value}``."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if _is_static(field):
            continue
        if dataclasses.is_dataclass(value):
            found = numbers(value) | found
        elif value is not None:
            found[field.name] = value
    return found


def _names(node: Any, wanted: Callable[[dataclasses.Field, Any], bool]) -> list[str]:
    """The names of the wanted fields, those of inner nodes included."""
    names: list[str] = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if wanted(field, value):
            names.append(field.name)
        elif dataclasses.is_dataclass(value) and not _is_static(field):
            names += _names(value, wanted)
    return names


def replace(node: T, values: Mapping[str, Any]) -> T:
    """A copy of ``node`` with the named numbers replaced, at whatever depth they live.

    Raises:
        UsageError: for a name that is none, that is static (it makes shapes), or whose value is
            None, which is no number to replace.
    """
    known, static, absent = numbers(node), _names(node, _is_static), _names(node, _is_absent)
    for name in values:
        if name in absent:
            raise UsageError(
                f"{name} is None, and so cannot be swept or traced; "
                f"give it a number first, as --agent.{name.replace('_', '-')}"
            )
        if name in static:
            raise UsageError(
                f"{name} makes shapes and cannot be swept or traced; "
                f"make a new agent with it, or sweep one of {', '.join(sorted(known))}"
            )
        if name not in known:
            raise UsageError(f"unknown hyper-parameter {name!r}; {nearest(name, known)}")
    return _replace(node, values)


def _replace(node: T, values: Mapping[str, Any]) -> T:
    new: dict[str, Any] = {}
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value) and not _is_static(field):
            new[field.name] = _replace(value, values)
        elif field.name in values and not _is_static(field):
            new[field.name] = values[field.name]
    return dataclasses.replace(node, **new)  # type: ignore[type-var]


def require(
    name: str, value: Any, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Raise UsageError unless ``low <= value <= high`` (``low <`` if ``above``) and finite.

    Tracers pass.
    """
    if value is None or isinstance(value, jax.core.Tracer):
        return
    for number in np.atleast_1d(value).tolist():
        fits = (low < number if above else low <= number) and number <= high
        if not fits or math.isinf(number):
            bounds = f"more than {low:g}" if above else f"at least {low:g}"
            bounds += " and finite" if high == math.inf == number else ""
            bounds += "" if high == math.inf else f" and at most {high:.10g}"
            raise UsageError(f"{name} is {number:.10g}; it must be {bounds}")


def require_choice(name: str, value: Any, literal: Any) -> None:
    """Raise UsageError unless ``value`` is one of a ``Literal``'s."""
    if value not in get_args(literal):
        raise UsageError(f"{name} is {value!r}; {nearest(str(value), get_args(literal))}")


def to_config(node: Any) -> dict[str, Any]:
    """An agent as JSON: ``{"class": name, field: value, ...}``, nested agents included."""
    config: dict[str, Any] = {"class": type(node).__name__}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        config[field.name] = to_config(value) if dataclasses.is_dataclass(value) else value
    return config


def from_config(config: Mapping[str, Any], classes: Mapping[str, type]) -> Any:
    """The agent that ``to_config`` wrote; ``classes`` maps names to classes.

    Raises:
        UsageError: for a class that is not among them, and fields that it does not have, or lacks.
    """
    name: Any = config.get("class")
    if name not in classes:
        raise UsageError(f"unknown agent class {name!r}; {nearest(str(name), classes)}")
    known = {field.name: field for field in dataclasses.fields(classes[name])}
    for key in config:
        if key not in known and key != "class":
            raise UsageError(f"{name} has no hyper-parameter {key!r}; {nearest(key, known)}")
    for key, field in known.items():
        if key not in config and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{name} needs {key!r}, which is not given")
    fields: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            fields[key] = from_config(value, classes)
        elif key != "class":
            fields[key] = tuple(value) if isinstance(value, list) else value
    return classes[name](**fields)
