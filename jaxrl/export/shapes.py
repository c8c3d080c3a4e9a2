"""Translation of JAX equations that only move numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl.export.values import Refused, Shape, Value, result, sizes

TOGETHER = "computes with the rows of a batch together"


def _reshaped(walk: Any, value: Any, shape: Shape) -> Any:
    """Return a value in another shape, where at most the batch axis is None."""
    if value.shape == shape:
        return value
    if shape.count(None) > 1 or (None in shape) != (None in value.shape):
        raise Refused(TOGETHER)
    made = walk.emit("reshape", value, shape=[-1 if size is None else size for size in shape])
    return made._replace(shape=shape) if isinstance(made, Value) else made


def _reshape(walk: Any, equation: Any, x: Any, *_: Any) -> Any:
    whole = walk.full(x, equation.invars[0].aval)
    return _reshaped(walk, whole, sizes(equation.outvars[0].aval))


def _squeeze(walk: Any, equation: Any, x: Any) -> Any:
    dropped = equation.params["dimensions"]
    return _reshaped(walk, x, tuple(n for axis, n in enumerate(x.shape) if axis not in dropped))


def _broadcast(walk: Any, equation: Any, x: Any, *_: Any) -> Any:
    if not x.shape:
        return x
    shape: list[int | None] = [1] * len(equation.outvars[0].aval.shape)
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return _reshaped(walk, x, tuple(shape))


def _transpose(walk: Any, equation: Any, x: Any) -> Any:
    order = list(equation.params["permutation"])
    made = walk.emit("transpose", walk.full(x, equation.invars[0].aval), axes=order)
    return result(made, equation)


def _concatenate(walk: Any, equation: Any, *parts: Any) -> Any:
    whole = [walk.full(x, atom.aval) for x, atom in zip(parts, equation.invars, strict=True)]
    return result(walk.emit("concatenate", *whole, axis=equation.params["dimension"]), equation)


def _stack(walk: Any, equation: Any, *parts: Any) -> Any:
    axis, whole = equation.params["axis"], []
    for x, atom in zip(parts, equation.invars, strict=True):
        shape = list(sizes(atom.aval))
        whole.append(_reshaped(walk, walk.full(x, atom.aval), (*shape[:axis], 1, *shape[axis:])))
    return result(walk.emit("concatenate", *whole, axis=axis), equation)


def _rev(walk: Any, equation: Any, x: Any) -> Any:
    aval = equation.invars[0].aval
    value = walk.full(x, aval)
    for axis in equation.params["dimensions"]:
        if sizes(aval)[axis] is None:
            raise Refused(TOGETHER)
        value = walk.emit("take", value, np.arange(aval.shape[axis])[::-1].copy(), axis=axis)
    return result(value, equation)


def _slice(walk: Any, equation: Any, x: Any) -> Any:
    params, aval = equation.params, equation.invars[0].aval
    steps = params["strides"] or [1] * len(aval.shape)
    each = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return _sliced(walk, walk.full(x, aval), aval, list(each))


def _dynamic_slice(walk: Any, equation: Any, x: Any, *starts: Any) -> Any:
    aval, wanted = equation.invars[0].aval, equation.params["slice_sizes"]
    if not all(isinstance(start, np.ndarray) for start in starts):
        raise Refused("computes 'dynamic_slice' at a place that depends on the observation")
    bounds = [
        (int(start), size, 1) if isinstance(size, int) else (0, size, 1)
        for start, size in zip(starts, wanted, strict=True)
    ]
    for axis, (start, size, _) in enumerate(bounds):
        if isinstance(size, int):
            first = min(max(start, 0), aval.shape[axis] - size)  # clamped as in XLA
            bounds[axis] = (first, first + size, 1)
    return _sliced(walk, walk.full(x, aval), aval, bounds)


def _split(walk: Any, equation: Any, x: Any) -> list[Any]:
    aval, axis, start = equation.invars[0].aval, equation.params["axis"], 0
    whole, parts = walk.full(x, aval), []
    for size in map(int, equation.params["sizes"]):
        bounds = [(0, n, 1) for n in aval.shape]
        bounds[axis] = (start, start + size, 1)
        parts.append(_sliced(walk, whole, aval, bounds))
        start += size
    return parts


def _sliced(walk: Any, x: Any, aval: Any, bounds: list[tuple[int, Any, int]]) -> Any:
    """Return ``x[start:stop:step, ...]`` over all axes; the batch axis is kept whole."""
    made, kept = [], []
    for size, (start, stop, step) in zip(aval.shape, bounds, strict=True):
        whole = not isinstance(size, int)
        if whole and (start, stop, step) != (0, size, 1):
            raise Refused(TOGETHER)
        made.append([None, None, None] if whole else [start, stop, step])
        kept.append(None if whole else len(range(start, stop, step)))
    value = walk.emit("slice", x, bounds=made)
    return value._replace(shape=tuple(kept)) if isinstance(value, Value) else value


def _gather(walk: Any, equation: Any, x: Any, index: Any) -> Any:
    """Known indices: one position, or several along one axis."""
    params, aval = equation.params, equation.invars[0].aval
    numbers, shape = params["dimension_numbers"], sizes(aval)
    axes, dropped = numbers.start_index_map, numbers.collapsed_slice_dims
    refused = Refused("takes elements at indices that depend on the observation")
    index = walk.full(index, equation.invars[1].aval)
    if not isinstance(index, np.ndarray) or numbers.operand_batching_dims:
        raise refused
    if any(shape[axis] is None for axis in axes):
        raise Refused(TOGETHER)
    whole, wanted = walk.full(x, aval), params["slice_sizes"]
    most = [aval.shape[axis] - wanted[axis] for axis in axes]
    if np.any(index < 0) or np.any(index > most):
        raise Refused("takes elements at indices that are out of range")
    if index.ndim == 1:
        bounds = [(0, size, 1) for size in wanted]
        for axis, start in zip(axes, index.tolist(), strict=True):
            bounds[axis] = (start, start + wanted[axis], 1)
        part = _sliced(walk, whole, aval, bounds)
        return _reshaped(walk, part, tuple(n for i, n in enumerate(part.shape) if i not in dropped))
    others = all(size == wanted[i] for i, size in enumerate(aval.shape) if i not in axes)
    outputs = range(len(equation.outvars[0].aval.shape))
    along = [i for i in outputs if i not in numbers.offset_dims]
    if index.ndim != 2 or not others or not along == list(axes) == list(dropped):
        raise refused
    (axis,), places = axes, index[:, 0].astype(np.int64)
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    if step > 0 and np.all(np.diff(places) == step):
        bounds = [(0, size, 1) for size in aval.shape]
        bounds[axis] = (int(places[0]), int(places[-1]) + 1, step)
        return _sliced(walk, whole, aval, bounds)
    return result(walk.emit("take", whole, places, axis=axis), equation)


def _iota(walk: Any, equation: Any) -> Any:
    axis, shape = equation.params["dimension"], sizes(equation.outvars[0].aval)
    if shape[axis] is None:
        raise Refused(TOGETHER)
    line = np.arange(shape[axis], dtype=equation.params["dtype"])
    return line.reshape([-1 if i == axis else 1 for i in range(len(shape))])


SHAPE_RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
    "iota": _iota,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}
