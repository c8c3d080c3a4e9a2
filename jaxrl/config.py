"""Conversion of agents to JSON and back, for run records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxrl import hyper
from jaxrl.errors import UsageError, nearest
from jaxrl.require import plain


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
