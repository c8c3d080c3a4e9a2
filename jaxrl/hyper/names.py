"""Finding, replacing and checking hyper-parameters by name, anywhere in a tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from jaxrl.errors import UsageError, nearest
from jaxrl.hyper.declarations import declaration, is_node, is_option

T = TypeVar("T")


class _Entry(NamedTuple):
    """A hyper-parameter: the path of fields to it, and its own field."""

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
    """The hyper-parameters of ``node`` and of its dataclass children."""
    for field in dataclasses.fields(node):
        if not is_option(field):
            continue
        entry = _Entry((*path, field.name), field, getattr(node, field.name))
        if entry.leaf and is_node(entry.value):
            yield from _entries(entry.value, entry.path)
        else:
            yield entry


def numbers(node: Any) -> dict[str, Any]:
    """Return all numeric hyper-parameters, which can be swept: ``{name: value}``."""
    return {e.name: e.value for e in _entries(node) if e.leaf and e.value is not None}


def names(node: Any) -> list[str]:
    """Return the names of all hyper-parameters."""
    return [entry.name for entry in _entries(node)]


def matches(name: str, known: Sequence[str]) -> list[str]:
    """Return the known names that ``name`` may mean: itself, else all names that end in it."""
    if name in known:
        return [name]
    return [each for each in known if each.endswith(f".{name}")]


def replace(node: T, values: Mapping[str, Any]) -> T:
    """Return a copy of ``node`` with the named numbers replaced, wherever they are.

    Raises:
        UsageError: for a name that is unknown, ambiguous or static, or whose value is None and so
            not a number to replace.
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
    """Return ``node`` with nested settings such as ``{"critic": {"hidden_dims": (64, 64)}}``.

    Raises:
        UsageError: for a name that is not a hyper-parameter, and for settings nested in a number.
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


def check(node: Any, *, numbers: bool = True) -> None:
    """Raise UsageError for the first hyper-parameter at any depth that its declaration refuses.

    Then each part's own ``check_numbers()`` is called, if it has one, for numbers that do not fit
    together. Traced numbers pass. Without ``numbers``, no numbers are checked: JAX may have put
    anything there.
    """
    for entry in _entries(node):
        declared = declaration(entry.field)
        if declared is not None and (numbers or declared.kind != "number"):
            declared.check(entry.name, entry.value)
    _check_parts(node, (), numbers)


def _check_parts(node: Any, path: tuple[str, ...], numbers: bool) -> None:
    if numbers and hasattr(node, "check_numbers"):
        node.check_numbers()
    for field in filter(is_option, dataclasses.fields(node)):
        value, declared = getattr(node, field.name), declaration(field)
        if is_node(value):
            inner = (*path, field.name)
            if declared is not None:
                declared.check(_Entry(inner, field, value).name, value)
            _check_parts(value, inner, numbers)


def check_fields(node: Any) -> None:
    """Raise UsageError for the first field of ``node`` itself that its declaration refuses."""
    for field in dataclasses.fields(node):
        declared = declaration(field)
        if declared is not None:
            declared.check(field.name, getattr(node, field.name))
