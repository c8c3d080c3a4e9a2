"""Turns agents and their parts into options, using their hyper-parameter declarations."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import numpy as np
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from jaxrl import hyper
from jaxrl.cli.options import Options
from jaxrl.errors import UsageError


def registry() -> ConstructorRegistry:
    """Return tyro's rules plus the rule for dataclasses with declared fields."""
    made = ConstructorRegistry()
    made.struct_rule(declared_rule)
    return made


def declared_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Describe the options of a dataclass with declared fields; None for other types.

    Fields that ``bind`` determines are not options. A part has the options of its default's class.
    """
    cls: Any = info.type
    known = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    if not any(hyper.declaration(field) for field in known) or issubclass(cls, Options):
        return None
    node: Any = info.default if isinstance(info.default, cls) else cls()
    hints = typing.get_type_hints(type(node))
    fields = [
        _option(field, hints[field.name], getattr(node, field.name))
        for field in dataclasses.fields(node)
        if hyper.is_option(field)
    ]

    def replaced(**values: Any) -> Any:
        return dataclasses.replace(node, **values)

    replaced.__doc__ = (cls.__doc__ or "").partition("\n\n")[0]  # the heading of its options
    return StructConstructorSpec(replaced, tuple(fields))


def _option(field: dataclasses.Field, hint: Any, value: Any) -> StructFieldSpec:
    declared = hyper.declaration(field)
    kind: Any = type(value) if dataclasses.is_dataclass(value) else hint
    if isinstance(value, np.generic) or hasattr(value, "tolist"):
        value = value.tolist()
    if declared is not None and _allows_none(declared):
        kind = kind | None
    return StructFieldSpec(field.name, kind, value, field.metadata.get("help"))


def _allows_none(declared: hyper.Declaration) -> bool:
    if declared.kind not in ("number", "size"):
        return False
    try:
        declared.check("", None)
    except UsageError:
        return False
    return True
