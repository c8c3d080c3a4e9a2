"""Declarations of hyper-parameters as dataclass fields."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, dataclass_transform, get_args

from flax import struct

from jaxrl.errors import UsageError
from jaxrl.require import (
    INT32_MAX,
    is_number,
    plain,
    require,
    require_choice,
    require_integer,
    shown,
)

T = TypeVar("T")
_PLAIN = (int, float, str, bool, type(None))
_KEY = "hyper"  # in a field's metadata


class Declaration(NamedTuple):
    """A field's declaration: its kind, the check of its values, and its help."""

    kind: str
    check: Callable[[str, Any], None]
    help: str
    choices: tuple[str, ...] = ()


def number(
    default: float | None,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float | None = None,
    optional: bool = False,
    help: str = "",
) -> Any:
    """Declare a number in ``[low, high]``, or greater than ``above``.

    None is allowed if it is the default, or with ``optional``.

    It is a pytree leaf: it can be swept, and changing it does not recompile.
    """

    def check(name: str, value: Any) -> None:
        if value is None and default is not None and not optional:
            raise UsageError(f"{name} is None; it must be a number, as {default:g}")
        require(name, value, low if above is None else above, high, above=above is not None)

    return _declared(default, Declaration("number", check, help), leaf=True)


def size(default: Any, low: int = 1, high: int = INT32_MAX, *, help: str = "") -> Any:
    """Declare an integer of at least ``low``, or a tuple of them. None as default allows None.

    Integers of numpy and JAX are accepted too.
    """

    def check(name: str, value: Any) -> None:
        if value is None and default is None:
            return
        value = plain(value)
        several = isinstance(default, tuple)
        if several and not isinstance(value, tuple):
            raise UsageError(
                f"{name} is {shown(value)}; it must be a tuple of integers, as {default}"
            )
        for each in value if several else (value,):
            require_integer(name, each, low, high)

    return _declared(default, Declaration("size", check, help))


def choice(default: str, literal: Any, *, help: str = "") -> Any:
    """Declare one of the strings of a ``Literal``."""
    choices = get_args(literal)

    def check(name: str, value: Any) -> None:
        require_choice(name, value, literal)

    return _declared(default, Declaration("choice", check, help, choices))


def flag(default: bool, *, help: str = "") -> Any:
    """Declare a switch."""

    def check(name: str, value: Any) -> None:
        if not isinstance(plain(value), bool):
            raise UsageError(f"{name} is {shown(value)}; it must be True or False")

    return _declared(default, Declaration("flag", check, help))


def interval(default: tuple[float, float], *, help: str = "") -> Any:
    """Declare two numbers, the first less than the second."""

    def check(name: str, value: Any) -> None:
        ends = plain(value)
        fits = isinstance(ends, tuple) and len(ends) == 2 and all(map(is_number, ends))
        if not fits or not ends[0] < ends[1]:
            raise UsageError(f"{name} is {shown(ends)}; it must be low and high, as {default}")

    return _declared(default, Declaration("interval", check, help))


def words(default: tuple[str, ...], *, help: str = "") -> Any:
    """Declare a tuple of strings."""

    def check(name: str, value: Any) -> None:
        several = plain(value)
        if not isinstance(several, tuple) or not all(isinstance(each, str) for each in several):
            raise UsageError(
                f"{name} is {shown(value)}; it must be a tuple of strings, as ('state',)"
            )

    return _declared(default, Declaration("words", check, help))


def part(default: Any, *, help: str = "") -> Any:
    """Declare a part: a dataclass with its own hyper-parameters."""

    def check(name: str, value: Any) -> None:
        if not is_node(value):
            kind = "class" if isinstance(value, type) else type(value).__name__
            instead = f"{type(default).__name__}()"
            raise UsageError(f"{name} is a {kind}; it must be a part, as {instead}")
        inputs = list(inspect.signature(default).parameters) if callable(default) else None
        if inputs is not None and not _takes(value, inputs):
            raise UsageError(
                f"{name} is a {type(value).__name__}; it must be a part that is called with "
                f"({', '.join(inputs)}), as {type(default).__name__}()"
            )

    return _declared(default, Declaration("part", check, help), leaf=True)


def _takes(part: Any, inputs: list[str]) -> bool:
    """Return whether ``part`` can be called with as many inputs."""
    try:
        inspect.signature(part).bind(*inputs)
    except TypeError:  # also if it cannot be called at all
        return False
    return True


def bound(default: Any = None) -> Any:
    """Declare a value that ``bind`` determines: static, neither an option nor recorded."""
    return struct.field(pytree_node=False, default=default, metadata={_KEY: None}, repr=False)


def held() -> Any:
    """Declare arrays, None by default: pytree leaves that are neither options nor recorded."""
    return struct.field(pytree_node=True, default=None, metadata={_KEY: None}, repr=False)


def same_as(cls: type, name: str) -> Any:
    """Declare a field of an options dataclass in the same way as ``cls`` declares ``name``."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


def _declared(default: Any, declaration: Declaration, leaf: bool = False) -> Any:
    text = declaration.help
    metadata = {_KEY: declaration, "help": text and f"{text[0].upper()}{text[1:]}."}  # tyro's
    return struct.field(pytree_node=leaf, default=default, metadata=metadata)


@dataclass_transform(frozen_default=True)
def dataclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass and pytree, with its declared fields listed in the docstring.

    Static fields given as numpy or JAX numbers are stored as Python numbers, which are hashable and
    valid JSON.
    """
    own: Any = getattr(cls, "__post_init__", None)
    if own is None:
        cls.__post_init__ = simplify  # type: ignore[attr-defined]
    elif own is not simplify:

        def simplified(node: Any) -> None:
            simplify(node)
            own(node)

        cls.__post_init__ = simplified  # type: ignore[attr-defined]
    made: Any = struct.dataclass(cls)
    lines = [
        f"    {field.name}: {found.help}."
        for field in dataclasses.fields(made)
        if (found := declaration(field)) and found.help and field.name in vars(cls)
    ]
    if lines:
        made.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), "", "Attributes:", *lines])
    result: type[T] = made
    return result


def simplify(node: Any) -> None:
    """Convert a frozen dataclass's declared static fields to Python's own types."""
    for field in dataclasses.fields(node):
        if declaration(field) and not field.metadata.get("pytree_node", True):
            value = getattr(node, field.name)
            if type(value) not in _PLAIN:
                object.__setattr__(node, field.name, plain(value))


def declaration(field: dataclasses.Field) -> Declaration | None:
    """Return a field's declaration; None for undeclared and bound fields."""
    found: Declaration | None = field.metadata.get(_KEY)
    return found


def is_node(value: Any) -> bool:
    """Whether a value is a dataclass instance, like parts and inner agents."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_option(field: dataclasses.Field) -> bool:
    """Whether a field is a hyper-parameter or a part, not determined by ``bind``."""
    return field.metadata.get(_KEY, True) is not None
