"""Conversion of agents to JSON and back, and of other fields to JSON, for run records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jaxrl import hyper
from jaxrl.errors import UsageError, nearest
from jaxrl.require import plain, shown


def to_config(node: Any) -> dict[str, Any]:
    """Return an agent as JSON, ``{"class": name, field: value, ...}``, including nested parts."""
    config: dict[str, Any] = {"class": type(node).__name__}
    for field in filter(hyper.is_option, dataclasses.fields(node)):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config(value)
        config[field.name] = plain(value)
    return config


def from_config(config: Mapping[str, Any], classes: Mapping[str, type]) -> Any:
    """Rebuild the agent that ``to_config`` wrote; ``classes`` maps names to classes.

    Raises:
        UsageError: for an unknown class, or for unknown or missing fields.
    """
    name: Any = config.get("class")
    if name not in classes:
        raise UsageError(
            f"unknown agent class {name!r}; {nearest(str(name), classes)}; "
            "a class of your own has to be given, as classes=[Mine]"
        )
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


def recorded_options(env: Any) -> dict[str, Any]:
    """Return an environment's options, as ``make`` takes them, as JSON.

    Raises:
        UsageError: for options that JSON cannot hold.
    """
    given = getattr(env, "options", None)
    try:
        text = json.dumps({} if given is None else dict(given), default=plain)
    except (TypeError, ValueError):  # ValueError: ``plain`` returns what it does not know
        raise UsageError(
            f"env {env.name} has options {shown(given)}; give what JSON can hold, as {{'g': 9.8}}"
        ) from None
    found: dict[str, Any] = json.loads(text)
    return found


def recorded(value: Any) -> Any:
    """Return a field as JSON. An object that is no dataclass is recorded by its class alone."""

    def described(x: Any) -> Any:
        if dataclasses.is_dataclass(x):
            return to_config(x)
        known = plain(x)
        return {"class": type(x).__name__} if known is x else known

    return json.loads(json.dumps(value, default=described))
