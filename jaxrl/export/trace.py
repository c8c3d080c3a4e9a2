"""Converts a policy to a list of operations: traces its program and translates each equation.

Nothing is assumed about the agent, its wrappers or its networks, including a user's own: the code
that acts is what is exported. Arrays that do not depend on the observation are computed here. Axes
along which a value is only repeated are omitted until an operation needs them, so that batches may
have any size.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend import core as jex

from jaxrl.errors import UsageError
from jaxrl.export import numpy_policy
from jaxrl.export.acting import Acting
from jaxrl.export.layers import Layer, named_layers
from jaxrl.export.operations import Network, Operation, needed
from jaxrl.export.rules import CALLS, FUNCTIONS, RULES
from jaxrl.export.values import Refused, Value, joined, shaped, sizes

RANDOM = "draws random numbers as it acts"


def trace(acting: Acting) -> Network:
    """Return the policy as operations.

    Raises:
        UsageError: for a policy that draws random numbers, has a memory, or uses a computation
            without an operation.
    """
    (batch,) = export.symbolic_shape("b")
    with named_layers() as layers:
        closed = acting.traced(batch)
    walk = Walk(layers)
    boxes = acting.boxes
    given: list[Any] = [Value(name, (None, *box.shape)) for name, box in boxes.items()]
    memory = len(closed.jaxpr.invars) - len(boxes) - 1
    given += [Refused("has a memory")] * memory + [Refused(RANDOM)]
    aval = closed.jaxpr.outvars[0].aval
    try:
        action = walk.full(walk.program(closed, given)[0], aval)
    except Refused as error:
        raise UsageError(str(error)) from None
    if action.name in boxes:
        action = walk.emit("positive", action)
    return needed(walk.network(tuple(boxes), action.name))


class Walk:
    """Translates a program's equations, one after another.

    Values are ``np.ndarray`` (known), ``Value`` (computed from the observation), or ``Refused``.
    """

    def __init__(self, layers: dict[str, Layer]) -> None:
        self.layers = layers
        self.operations: list[Operation] = []
        self.arrays: dict[str, np.ndarray] = {}
        self._names: dict[int, str] = {}

    def network(self, inputs: tuple[str, ...], output: str) -> Network:
        """Return the operations so far as a network whose output is named ``action``."""
        *rest, last = needed(Network(inputs, self.operations, self.arrays, output)).operations
        return Network(inputs, [*rest, last._replace(output="action")], self.arrays, "action")

    def emit(self, name: str, *values: Any, **options: Any) -> Any:
        """Return the output of an operation, computed now if all its inputs are known.

        Raises Refused if an input is Refused.
        """
        for each in values:
            if isinstance(each, Refused):
                raise each
        if all(isinstance(x, np.ndarray) for x in values):
            given = {str(i): x for i, x in enumerate(values)}
            with np.errstate(all="ignore"):  # as in the program, where one case of two may overflow
                made = numpy_policy.run([(name, list(given), "made", options)], given)["made"]
            return np.asarray(made)
        output = f"value_{len(self.operations)}"
        names = tuple(self._name(x) for x in values)
        self.operations.append(Operation(name, names, output, options))
        return Value(output, joined(values))

    def _name(self, value: Any) -> str:
        """Return the name of a value; arrays are stored under it."""
        if isinstance(value, Value):
            return value.name
        if id(value) not in self._names:
            self._names[id(value)] = f"array_{len(self.arrays)}"
            self.arrays[self._names[id(value)]] = value
        return self._names[id(value)]

    def full(self, value: Any, aval: Any) -> Any:
        """Return the value with all axes of ``aval``, repeated along them if necessary.

        Raises Refused if the value is Refused, or would have to be repeated over the batch.
        """
        if isinstance(value, Refused):
            raise value
        shape = sizes(aval)
        if value.shape == shape:
            return value
        if isinstance(value, np.ndarray) and None not in shape:
            return np.broadcast_to(value, aval.shape)
        rows = shape.index(None) if None in shape else None
        if rows is not None and (len(value.shape) <= rows or value.shape[rows] is not None):
            raise Refused("does not depend on the observation alone")
        if not np.issubdtype(aval.dtype, np.floating):
            raise Refused(f"repeats values of dtype {aval.dtype}")
        zeros = np.zeros([1 if size is None else size for size in shape], aval.dtype)
        return self.emit("add", value, zeros)

    def program(self, closed: Any, given: list[Any]) -> list[Any]:
        """Return the values of a program's outputs."""
        values: dict[Any, Any] = dict(zip(closed.jaxpr.invars, given, strict=True))
        values.update(zip(closed.jaxpr.constvars, map(_known, closed.consts), strict=True))

        def read(atom: Any) -> Any:
            return _known(atom.val) if isinstance(atom, jex.Literal) else values[atom]

        for equation in closed.jaxpr.eqns:
            made = self._equation(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def _equation(self, equation: Any, given: list[Any]) -> list[Any]:
        try:
            return self._translated(equation, given)
        except Refused as error:
            return [error] * len(equation.outvars)

    def _translated(self, equation: Any, given: list[Any]) -> list[Any]:
        name = equation.primitive.name
        if name in CALLS:
            inner = next(equation.params[key] for key in CALLS[name] if key in equation.params)
            inner = inner if hasattr(inner, "consts") else jex.ClosedJaxpr(inner, ())
            return self._call(equation.params.get("name"), inner, given)
        for each in given:
            if isinstance(each, Refused):
                raise each
        if name in RULES:
            made = RULES[name](self, equation, *given)
            return made if isinstance(made, list) else [made]
        return _computed(equation, given)

    def _call(self, name: str | None, inner: Any, given: list[Any]) -> list[Any]:
        """Return a function's outputs, as one operation if possible, else from its own program.

        Functions with a custom derivative have no name.
        """
        unknown = [i for i, x in enumerate(given) if not isinstance(x, np.ndarray)]
        avals = [inner.jaxpr.invars[i].aval for i in unknown]
        layer = self.layers.get(name or "")
        if layer is not None and [len(aval.shape) for aval in avals] == [layer.rank]:
            x = self.full(given[unknown[0]], avals[0])
            value = self.emit(layer.operation, x, *layer.arrays, **layer.options)
            return [shaped(value, inner.jaxpr.outvars[0].aval)]
        if unknown == [0] and len(given) == 1:
            maybe = set(FUNCTIONS.values()) if name is None else {FUNCTIONS.get(name, "")} - {""}
            operation = next((each for each in sorted(maybe) if self._is(each, inner)), None)
            if operation is not None:
                return [self.emit(operation, *given)]
        return self.program(inner, given)

    def _is(self, operation: str, inner: Any) -> bool:
        """Whether a function of one array equals an operation, judged by its values."""
        if len(inner.jaxpr.outvars) != 1:
            return False
        grid = np.linspace(-20.0, 20.0, 401, dtype=np.float32)
        shape = sizes(inner.jaxpr.invars[0].aval)
        walk = Walk({})
        (output,) = walk.program(inner, [Value("x", shape)])
        if not isinstance(output, Value) or output.shape != shape:
            return False
        given = {"x": grid.reshape(-1, *[1] * (len(shape) - 1)), **walk.arrays}
        found = numpy_policy.run(walk.operations, given)[output.name]
        wanted = numpy_policy.run([(operation, ["x"], "y", {})], given)["y"]
        return found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-5, atol=2e-6)


def _computed(equation: Any, given: list[Any]) -> list[Any]:
    """Return the result of an equation of known arrays; raise Refused for other inputs."""
    known = all(isinstance(x, np.ndarray) for x in given)
    if not known or any(None in sizes(var.aval) for var in equation.outvars):
        name = equation.primitive.name
        raise Refused(f"computes {name!r}, for which there is no operation")
    arrays = [
        np.broadcast_to(x, atom.aval.shape) for x, atom in zip(given, equation.invars, strict=True)
    ]
    made = equation.primitive.bind(*arrays, **equation.params)
    return [_known(x) for x in (made if equation.primitive.multiple_results else [made])]


def _known(x: Any) -> Any:
    """Return an array of numbers; random keys are refused."""
    if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.extended):
        return Refused(RANDOM)
    return np.asarray(x, jax.dtypes.canonicalize_dtype(np.asarray(x).dtype))
