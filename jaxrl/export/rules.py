"""Translation of JAX equations that correspond to operations."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxrl.export.shapes import SHAPE_RULES, TOGETHER
from jaxrl.export.values import Refused, result, sizes

# Function calls, and where their programs are stored.
CALLS = {
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "core_call": ("call_jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr", "fun_jaxpr"),
    "custom_vjp_call_jaxpr": ("fun_jaxpr", "call_jaxpr"),
    "remat": ("jaxpr",),
    "checkpoint": ("jaxpr",),
}

# Functions of one array by their names in programs, and their possible operations.
FUNCTIONS = {
    "relu": "relu",
    "silu": "swish",
    "swish": "swish",
    "elu": "elu",
    "gelu": "gelu",
    "mish": "mish",
    "sigmoid": "sigmoid",
}

# Elementwise: the same in numpy, for floats, and for integers unless named below.
_ELEMENTWISE = {
    "abs": "absolute",
    "add": "add",
    "add_any": "add",
    "and": "logical_and",
    "atan": "arctan",
    "ceil": "ceil",
    "cos": "cos",
    "div": "divide",
    "eq": "equal",
    "exp": "exp",
    "expm1": "expm1",
    "floor": "floor",
    "ge": "greater_equal",
    "gt": "greater",
    "is_finite": "isfinite",
    "le": "less_equal",
    "log": "log",
    "log1p": "log1p",
    "logistic": "sigmoid",
    "lt": "less",
    "max": "maximum",
    "min": "minimum",
    "mul": "multiply",
    "ne": "not_equal",
    "neg": "negative",
    "not": "logical_not",
    "or": "logical_or",
    "pow": "power",
    "sign": "sign",
    "sin": "sin",
    "sqrt": "sqrt",
    "square": "square",
    "sub": "subtract",
    "tan": "tan",
    "tanh": "tanh",
}
_OF_FLOATS = {"div", "pow"}
_OF_BOOLS = {"and", "or", "not"}
_SAME = ("copy", "copy_p", "optimization_barrier", "sharding_constraint", "stop_gradient")
_DTYPES = ("bool", "uint8", "int8", "int16", "int32", "float32")


def _elementwise(walk: Any, equation: Any, *values: Any) -> Any:
    name, dtype = equation.primitive.name, equation.invars[0].aval.dtype
    if (name in _OF_FLOATS and not np.issubdtype(dtype, np.floating)) or (
        name in _OF_BOOLS and dtype != np.bool_
    ):
        raise Refused(f"computes {name!r} of {dtype}")
    return walk.emit(_ELEMENTWISE[name], *values)


def _same(walk: Any, equation: Any, *values: Any) -> list[Any]:
    return list(values)


def _rows(walk: Any, equation: Any) -> Any:
    raise Refused(TOGETHER)  # the number of rows, used as a number


def _rsqrt(walk: Any, equation: Any, x: Any) -> Any:
    return walk.emit("divide", np.ones((), np.float32), walk.emit("sqrt", x))


def _integer_pow(walk: Any, equation: Any, x: Any) -> Any:
    dtype = equation.invars[0].aval.dtype
    if not np.issubdtype(dtype, np.floating):
        raise Refused(f"computes 'integer_pow' of {dtype}")
    if equation.params["y"] == 2:
        return walk.emit("square", x)
    return walk.emit("power", x, np.asarray(equation.params["y"], dtype))


def _select(walk: Any, equation: Any, which: Any, *cases: Any) -> Any:
    if equation.invars[0].aval.dtype != np.bool_ or len(cases) != 2:
        raise Refused("computes 'select_n' of more than two cases")
    if isinstance(which, np.ndarray) and len(set(which.reshape(-1).tolist())) == 1:
        return cases[int(which.reshape(-1)[0])]
    return walk.emit("where", which, cases[1], cases[0])


def _clamp(walk: Any, equation: Any, low: Any, x: Any, high: Any) -> Any:
    return walk.emit("minimum", walk.emit("maximum", x, low), high)


def _cast(walk: Any, equation: Any, x: Any) -> Any:
    dtype = np.dtype(equation.params["new_dtype"]).name
    if dtype == np.dtype(equation.invars[0].aval.dtype).name:
        return x
    if dtype not in _DTYPES:
        raise Refused(f"computes in {dtype}")
    return walk.emit("cast", x, dtype=dtype)


def _reduce(walk: Any, equation: Any, x: Any) -> Any:
    name, axes = equation.primitive.name, list(equation.params["axes"])
    if any(sizes(equation.invars[0].aval)[axis] is None for axis in axes):
        raise Refused(TOGETHER)
    whole = walk.full(x, equation.invars[0].aval)
    found = walk.emit(name.removeprefix("reduce_"), whole, axes=axes)
    if not np.issubdtype(equation.outvars[0].aval.dtype, np.floating):  # numpy widens integers
        found = walk.emit("cast", found, dtype=equation.outvars[0].aval.dtype.name)
    return result(found, equation)


def _arg(walk: Any, equation: Any, x: Any) -> Any:
    (axis,) = equation.params["axes"]
    if sizes(equation.invars[0].aval)[axis] is None:
        raise Refused(TOGETHER)
    whole = walk.full(x, equation.invars[0].aval)
    found = walk.emit(equation.primitive.name, whole, axis=axis)
    dtype = np.dtype(equation.params["index_dtype"]).name
    return result(walk.emit("cast", found, dtype=dtype), equation)


def _dot_general(walk: Any, equation: Any, x: Any, y: Any) -> Any:
    avals = [atom.aval for atom in equation.invars]
    whole = [walk.full(each, aval) for each, aval in zip((x, y), avals, strict=True)]
    (x_sum, y_sum), (x_batch, y_batch) = equation.params["dimension_numbers"]
    ranks = [len(aval.shape) for aval in avals]
    if (list(x_sum), list(y_sum), ranks[1]) == ([ranks[0] - 1], [0], 2) and not x_batch:
        return result(walk.emit("matmul", *whole), equation)
    letters = iter(string.ascii_letters)
    names = [[next(letters) for _ in range(rank)] for rank in ranks]
    for i, j in zip((*x_sum, *x_batch), (*y_sum, *y_batch), strict=True):
        names[1][j] = names[0][i]
    kept = [
        *(names[0][i] for i in x_batch),
        *(names[0][i] for i in range(ranks[0]) if i not in (*x_sum, *x_batch)),
        *(names[1][j] for j in range(ranks[1]) if j not in (*y_sum, *y_batch)),
    ]
    subscripts = f"{''.join(names[0])},{''.join(names[1])}->{''.join(kept)}"
    return result(walk.emit("einsum", *whole, subscripts=subscripts), equation)


RULES: dict[str, Callable[..., Any]] = {
    **SHAPE_RULES,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_SAME, _same),
    "argmax": _arg,
    "argmin": _arg,
    "clamp": _clamp,
    "convert_element_type": _cast,
    "dim_as_value": _rows,
    "dot_general": _dot_general,
    "integer_pow": _integer_pow,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_sum": _reduce,
    "rsqrt": _rsqrt,
    "select_n": _select,
}
