"""A policy's operations as an ONNX graph (opset 20), written with ``onnx.helper`` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from jaxrl.export.operations import Network, Operation

OPSET = 20  # the first with Gelu
IR_VERSION = 9

# Operations that map to one node, with their options as its attributes.
_NODES = {
    "absolute": "Abs",
    "add": "Add",
    "arctan": "Atan",
    "ceil": "Ceil",
    "cos": "Cos",
    "divide": "Div",
    "elu": "Elu",
    "equal": "Equal",
    "exp": "Exp",
    "floor": "Floor",
    "gelu": "Gelu",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "log": "Log",
    "logical_and": "And",
    "logical_not": "Not",
    "logical_or": "Or",
    "matmul": "MatMul",
    "maximum": "Max",
    "minimum": "Min",
    "mish": "Mish",
    "multiply": "Mul",
    "negative": "Neg",
    "positive": "Identity",
    "power": "Pow",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "subtract": "Sub",
    "tan": "Tan",
    "tanh": "Tanh",
    "where": "Where",
}
_REDUCTIONS = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}
_EXTREMES = {"argmax": "ArgMax", "argmin": "ArgMin"}


def model(network: Network, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the model; inputs are observations ``[batch, *O]``, the output is ``action``."""
    graph = _Graph(network)
    for operation in network.operations:
        graph.add(operation)
    inputs = [_tensor(box) for box in facts["observation"]]
    made = helper.make_model(
        helper.make_graph(
            graph.nodes, "policy", inputs, [_tensor(facts["action"])], list(graph.arrays.values())
        ),
        producer_name="jaxrl",
        producer_version=facts["made_by"].split()[-1],
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(made, {"jaxrl": json.dumps(facts)})
    onnx.checker.check_model(made, full_check=True)
    return made


def _tensor(box: Mapping[str, Any]) -> Any:
    shape = ["batch", *box["shape"]]
    return helper.make_tensor_value_info(box["name"], _dtype(box["dtype"]), shape)


def _dtype(name: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(name)))


class _Graph:
    """Nodes and the arrays that they read."""

    def __init__(self, network: Network) -> None:
        self.nodes: list[Any] = []
        self.arrays: dict[str, Any] = {}
        self._known = network.arrays

    def add(self, operation: Operation) -> None:
        """Add the nodes of an operation."""
        name, inputs, output, options = operation
        for each in inputs:
            if each in self._known:
                self._array(each, self._known[each])
        if name in _NODES:
            self._node(_NODES[name], inputs, output)
        elif name in _REDUCTIONS:
            axes = self._array(f"{output}_axes", np.array(options["axes"], np.int64))
            self._node(_REDUCTIONS[name], [*inputs, axes], output, keepdims=0)
        elif name in _EXTREMES:
            self._node(_EXTREMES[name], inputs, output, axis=options["axis"], keepdims=0)
        else:
            getattr(self, f"_{name}")(inputs, output, **options)

    def _node(self, kind: str, inputs: Any, output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def _array(self, name: str, array: np.ndarray) -> str:
        self.arrays[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def _one(self, output: str) -> str:
        return self._array(f"{output}_one", np.ones((), np.float32))

    # Operations that are not a single node

    def _dense(self, inputs: Any, output: str) -> None:
        x, kernel, bias = inputs
        self._node("Add", [self._node("MatMul", [x, kernel], f"{output}_product"), bias], output)

    def _layer_norm(self, inputs: Any, output: str, epsilon: float) -> None:
        self._node("LayerNormalization", inputs, output, axis=-1, epsilon=epsilon)

    def _conv(self, inputs: Any, output: str, stride: int) -> None:
        x, kernel, bias = inputs
        turned = np.transpose(self._known[kernel], (3, 2, 0, 1))  # ONNX wants channels first
        self.arrays.pop(kernel, None)
        weights = self._array(f"{output}_kernel", turned)
        first = self._node("Transpose", [x], f"{output}_first", perm=[0, 3, 1, 2])
        filtered = f"{output}_filtered"
        self._node("Conv", [first, weights, bias], filtered, strides=[stride, stride])
        self._node("Transpose", [filtered], output, perm=[0, 2, 3, 1])

    def _swish(self, inputs: Any, output: str) -> None:
        gate = self._node("Sigmoid", inputs, f"{output}_gate")
        self._node("Mul", [*inputs, gate], output)

    def _square(self, inputs: Any, output: str) -> None:
        self._node("Mul", [*inputs, *inputs], output)

    def _expm1(self, inputs: Any, output: str) -> None:
        self._node("Sub", [self._node("Exp", inputs, f"{output}_exp"), self._one(output)], output)

    def _log1p(self, inputs: Any, output: str) -> None:
        self._node(
            "Log", [self._node("Add", [*inputs, self._one(output)], f"{output}_sum")], output
        )

    def _not_equal(self, inputs: Any, output: str) -> None:
        self._node("Not", [self._node("Equal", inputs, f"{output}_equal")], output)

    def _isfinite(self, inputs: Any, output: str) -> None:
        nan = self._node("IsNaN", inputs, f"{output}_nan")
        infinite = self._node("IsInf", inputs, f"{output}_inf")
        self._node("Not", [self._node("Or", [nan, infinite], f"{output}_either")], output)

    def _cast(self, inputs: Any, output: str, dtype: str) -> None:
        self._node("Cast", inputs, output, to=_dtype(dtype))

    def _concatenate(self, inputs: Any, output: str, axis: int) -> None:
        self._node("Concat", inputs, output, axis=axis)

    def _einsum(self, inputs: Any, output: str, subscripts: str) -> None:
        self._node("Einsum", inputs, output, equation=subscripts)

    def _take(self, inputs: Any, output: str, axis: int) -> None:
        self._node("Gather", inputs, output, axis=axis)

    def _transpose(self, inputs: Any, output: str, axes: list[int]) -> None:
        self._node("Transpose", inputs, output, perm=axes)

    def _reshape(self, inputs: Any, output: str, shape: list[int]) -> None:
        wanted = self._array(f"{output}_shape", np.array(shape, np.int64))
        self._node("Reshape", [*inputs, wanted], output)

    def _slice(self, inputs: Any, output: str, bounds: list[Any]) -> None:
        axes = [axis for axis, (start, _, _) in enumerate(bounds) if start is not None]
        columns = [[bounds[axis][i] for axis in axes] for i in (0, 1)]
        columns += [axes, [bounds[axis][2] for axis in axes]]
        names = ("starts", "ends", "axes", "steps")
        arrays = [
            self._array(f"{output}_{name}", np.array(column, np.int64))
            for name, column in zip(names, columns, strict=True)
        ]
        self._node("Slice", [*inputs, *arrays], output)
