"""A policy as a list of array operations, used by the numpy reader and the ONNX writer.

The operations are those of ``numpy_policy.OPERATIONS``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Operation(NamedTuple):
    """``output = name(*inputs, **options)``. Values are referred to by name; options are JSON."""

    name: str
    inputs: tuple[str, ...]
    output: str
    options: dict[str, Any]


class Network(NamedTuple):
    """A policy that maps named observations ``[B, *O]`` to ``output``, the action ``[B, *A]``."""

    inputs: tuple[str, ...]
    operations: list[Operation]
    arrays: dict[str, np.ndarray]
    output: str


def needed(network: Network) -> Network:
    """Return the network without operations that do not affect its output."""
    wanted, kept = {network.output}, []
    for operation in reversed(network.operations):
        if operation.output in wanted:
            kept.append(operation)
            wanted.update(operation.inputs)
    return Network(
        inputs=tuple(name for name in network.inputs if name in wanted),
        operations=kept[::-1],
        arrays={name: array for name, array in network.arrays.items() if name in wanted},
        output=network.output,
    )
