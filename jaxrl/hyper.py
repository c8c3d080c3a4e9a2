"""Hyper-parameters: declared once, then checked, swept and shown as options.

    @hyper.dataclass
    class Agent:
        gamma: float = number(0.99, 0, 1, help="discount")
        policy: Any = part(Gaussian())

``number`` fields are pytree leaves, so ``vmap`` sweeps them. ``size``, ``choice``, ``flag``,
``interval`` and ``words`` fields are static. Parts are nested dataclasses. A hyper-parameter's name
is the path of fields to it, such as ``critic.hidden_dims``; wrappers and trainers add nothing to
it. Wherever a name is asked for, its end is enough if only one hyper-parameter has that end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast, dataclass_transform, get_args

from flax import struct

from jaxrl.errors import UsageError, nearest
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
_KEY = "hyper"  # of a field's metadata


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
    """Declare a number in ``[low, high]``, or more than ``above``.

    None is allowed if it is the default, or with ``optional``.

    A pytree leaf: it can be swept, and changes without compiling again.
    """

    def check(name: str, value: Any) -> None:
        if value is None and default is not None and not optional:
            raise UsageError(f"{name} is None; it must be a number, as {default:g}")
        require(name, value, low if above is None else above, high, above=above is not None)

    return _declared(default, Declaration("number", check, help), leaf=True)


def size(default: Any, low: int = 1, high: int = INT32_MAX, *, help: str = "") -> Any:
    """Declare an integer, or a tuple of them, of at least ``low``. None as default allows None.

    Those of numpy and JAX are integers too.
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
    """Declare a part: a dataclass with hyper-parameters of its own."""

    def check(name: str, value: Any) -> None:
        if not is_node(value):
            kind = "class" if isinstance(value, type) else type(value).__name__
            instead = f"{type(default).__name__}()"
            raise UsageError(f"{name} is a {kind}; it must be a part, as {instead}")

    return _declared(default, Declaration("part", check, help), leaf=True)


def bound(default: Any = None) -> Any:
    """Declare what ``bind`` finds out: static, neither an option nor recorded."""
    return struct.field(pytree_node=False, default=default, metadata={_KEY: None}, repr=False)


def held() -> Any:
    """Declare arrays, None by default: pytree leaves that are neither options nor recorded."""
    return struct.field(pytree_node=True, default=None, metadata={_KEY: None}, repr=False)


def same_as(cls: type, name: str) -> Any:
    """Declare a field of a dataclass of options as ``cls`` declares the one of that name."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


def _declared(default: Any, declaration: Declaration, leaf: bool = False) -> Any:
    text = declaration.help
    metadata = {_KEY: declaration, "help": text and f"{text[0].upper()}{text[1:]}."}  # tyro's
    return struct.field(pytree_node=leaf, default=default, metadata=metadata)


@dataclass_transform(frozen_default=True)
def dataclass(cls: type[T]) -> type[T]:
    """Make a frozen dataclass and pytree, with its declared fields listed in the docstring.

    Static fields given as numpy's or JAX's numbers are kept as Python's, which hash and are JSON.
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
    """Replace the values of a frozen dataclass's declared static fields by Python's own."""
    for field in dataclasses.fields(node):
        if declaration(field) and not field.metadata.get("pytree_node", True):
            value = getattr(node, field.name)
            if type(value) not in _PLAIN:
                object.__setattr__(node, field.name, plain(value))


def declaration(field: dataclasses.Field) -> Declaration | None:
    """Return a field's declaration; None for fields without one, and for bound ones."""
    found: Declaration | None = field.metadata.get(_KEY)
    return found


def is_node(value: Any) -> bool:
    """Whether a value is an instance of a dataclass, as parts and inner agents are."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_option(field: dataclasses.Field) -> bool:
    """Whether a field is a hyper-parameter or a part, and not found out by ``bind``."""
    return field.metadata.get(_KEY, True) is not None


# --- fields by name -----------------------------------------------------------------------------


class _Entry(NamedTuple):
    """A hyper-parameter: the fields to it, and its own."""

    path: tuple[str, ...]
    field: dataclasses.Field
    value: Any

    @property
    def name(self) -> str:
        return ".".join(name for name in self.path if name != "agent")

    @property
    def leaf(self) -> bool:
        return bool(self.field.metadata.get("pytree_node", True))


def _entries(node: Any, path: tuple[str, ...] = ()) -> Iterator[_Entry]:
    """The hyper-parameters of ``node`` and of the dataclasses that are its pytree children."""
    for field in dataclasses.fields(node):
        if not is_option(field):
            continue
        entry = _Entry((*path, field.name), field, getattr(node, field.name))
        if entry.leaf and is_node(entry.value):
            yield from _entries(entry.value, entry.path)
        else:
            yield entry


def numbers(node: Any) -> dict[str, Any]:
    """Return all hyper-parameters that are numbers, and so can be swept: ``{name: value}``."""
    return {e.name: e.value for e in _entries(node) if e.leaf and e.value is not None}


def names(node: Any) -> list[str]:
    """Return the names of all hyper-parameters."""
    return [entry.name for entry in _entries(node)]


def matches(name: str, known: Sequence[str]) -> list[str]:
    """Return the known names that ``name`` may mean: itself, or else all that end in it."""
    if name in known:
        return [name]
    return [each for each in known if each.endswith(f".{name}")]


def replace(node: T, values: Mapping[str, Any]) -> T:
    """Return a copy of ``node`` with the named numbers replaced, wherever they live.

    Raises:
        UsageError: for a name that is unknown or ambiguous, that is static, or whose value is
            None, which is no number to replace.
    """
    entries = {entry.name: entry for entry in _entries(node)}
    for name, value in values.items():
        entry = entries[_resolve(name, entries)]
        if entry.leaf and entry.value is None:
            raise UsageError(
                f"{name} is None, and so cannot be swept or traced; "
                f"give it a number first, as --agent.{entry.name.replace('_', '-')}"
            )
        if not entry.leaf:
            raise UsageError(
                f"{name} is static and cannot be swept or traced; make a new agent with it, "
                f"or sweep one of {', '.join(sorted(numbers(node)))}"
            )
        node = _set(node, entry.path, value)
    return node


def _resolve(name: str, entries: Mapping[str, _Entry]) -> str:
    found = matches(name, list(entries))
    if not found:
        sweepable = [n for n, e in entries.items() if e.leaf and e.value is not None]
        raise UsageError(f"unknown hyper-parameter {name!r}; {nearest(name, sweepable)}")
    if len(found) > 1:
        raise UsageError(f"{name!r} is ambiguous; choose one of {', '.join(sorted(found))}")
    return found[0]


def _set(node: Any, path: tuple[str, ...], value: Any) -> Any:
    first, *rest = path
    inner = _set(getattr(node, first), tuple(rest), value) if rest else value
    return dataclasses.replace(node, **{first: inner})


def override(node: T, settings: Mapping[str, Any]) -> T:
    """Return a copy of ``node`` with nested settings, as ``{"critic": {"hidden_dims": (64, 64)}}``.

    Raises:
        UsageError: for a name that is no hyper-parameter, and for settings inside of a number.
    """
    known = [field.name for field in filter(is_option, dataclasses.fields(cast(Any, node)))]
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            kind = type(node).__name__
            raise UsageError(f"{kind} has no hyper-parameter {name!r}; {nearest(name, known)}")
        inner = getattr(node, name)
        if isinstance(value, Mapping) and not is_node(inner):
            raise UsageError(f"{name} is {inner!r}, which has no hyper-parameters of its own")
        changed[name] = override(inner, value) if isinstance(value, Mapping) else value
    return dataclasses.replace(cast(Any, node), **changed)


# --- checks -------------------------------------------------------------------------------------


def check(node: Any, *, numbers: bool = True) -> None:
    """Raise UsageError for the first hyper-parameter, at any depth, that its declaration refuses.

    Traced numbers pass. Without ``numbers``, none is checked: JAX may have put anything there.
    """
    for entry in _entries(node):
        declared = declaration(entry.field)
        if declared is not None and (numbers or declared.kind != "number"):
            declared.check(entry.name, entry.value)


def check_fields(node: Any) -> None:
    """Raise UsageError for the first field of ``node`` itself that its declaration refuses."""
    for field in dataclasses.fields(node):
        declared = declaration(field)
        if declared is not None:
            declared.check(field.name, getattr(node, field.name))
