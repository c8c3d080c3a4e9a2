"""Values in a policy's program during its translation into operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Shape = tuple[int | None, ...]


class Value(NamedTuple):
    """A value computed from the observation.

    In its shape the batch is None, and axes along which it is only repeated may be 1.
    """

    name: str
    shape: Shape


class Refused(Exception):
    """A value that no operation produces; the text says why, as a verb and its object.

    It is a placeholder for the value, which must not affect the action; using it raises it.
    """


def sizes(aval: Any) -> Shape:
    """Return a shape with the symbolic batch replaced by None."""
    return tuple(size if isinstance(size, int) else None for size in aval.shape)


def joined(values: Sequence[Any]) -> Shape:
    """Return the shape that values of these shapes are broadcast to."""
    shapes = [value.shape for value in values]
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((n for n in axis if n != 1), 1) for axis in zip(*padded, strict=True))


def shaped(made: Any, aval: Any) -> Any:
    """Return an operation's result with the shape given by its program."""
    return made._replace(shape=sizes(aval)) if isinstance(made, Value) else made


def result(made: Any, equation: Any) -> Any:
    """Return the value of an equation's only output, with the shape given by its program."""
    return shaped(made, equation.outvars[0].aval)
