"""Play policy.npz with numpy alone: copy this file and policy.npz where needed.

    policy = NumpyPolicy("policy.npz")
    action = policy(obs)

``obs[..., *O]`` is an observation as returned by the environment, or a dictionary of its entries;
``action[..., *A]`` is in the environment's units. ``policy.metadata`` describes both.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def gelu(x: Any) -> Any:  # Abramowitz and Stegun 1964, 7.1.26
    t = 1 / (1 + 0.231641888 * np.abs(x))
    t *= 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    tail = 0.5 * t * np.exp(-0.5 * x * x)
    return x * np.where(x > 0, 1 - tail, tail)


def layer_norm(x: Any, scale: Any, bias: Any, epsilon: float) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def conv(x: Any, kernel: Any, bias: Any, stride: int) -> Any:  # [B, H, W, C], [h, w, C, F], [F]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    return np.tensordot(windows[:, ::stride, ::stride], kernel, ((4, 5, 3), (0, 1, 2))) + bias


SAME = """absolute add arctan argmax argmin ceil cos divide equal exp expm1 floor greater
greater_equal isfinite less less_equal log log1p logical_and logical_not logical_or matmul maximum
minimum multiply negative not_equal positive power sign sin sqrt square subtract take tan tanh
transpose where"""
OPERATIONS: dict[str, Any] = {  # a file can call only these
    **{name: getattr(np, name) for name in SAME.split()},
    "dense": lambda x, kernel, bias: x @ kernel + bias,
    "layer_norm": layer_norm,
    "conv": conv,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 0.5 * np.tanh(0.5 * x) + 0.5,
    "swish": lambda x: x * (0.5 * np.tanh(0.5 * x) + 0.5),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": gelu,
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "cast": lambda x, dtype: np.asarray(x).astype(dtype),
    "concatenate": lambda *parts, axis: np.concatenate(parts, axis),
    "einsum": lambda *factors, subscripts: np.einsum(subscripts, *factors),
    "reshape": lambda x, shape: np.reshape(x, shape),
    "slice": lambda x, bounds: x[tuple(slice(*each) for each in bounds)],
    "sum": lambda x, axes: x.sum(tuple(axes)),
    "max": lambda x, axes: x.max(tuple(axes)),
    "min": lambda x, axes: x.min(tuple(axes)),
}


def run(operations: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Compute each ``[name, inputs, output, options]`` on arrays; add the output to ``values``."""
    for name, inputs, output, options in operations:
        values[output] = OPERATIONS[name](*(values[each] for each in inputs), **options)
    return values


class NumpyPolicy:
    """A policy from ``policy.npz``."""

    def __init__(self, path: Any) -> None:
        with np.load(path) as file:
            self.arrays = dict(file)
        self.metadata = json.loads(str(self.arrays.pop("metadata")))
        self.operations = json.loads(str(self.arrays.pop("operations")))

    def __call__(self, obs: Any) -> Any:
        """Return the greedy action ``[..., *A]`` for ``obs[..., *O]``."""
        values, leading = dict(self.arrays), ()
        for box in self.metadata["observation"]:
            x, shape = np.asarray(obs[box["entry"]] if box["entry"] else obs), tuple(box["shape"])
            leading = x.shape[: x.ndim - len(shape)]
            if x.shape[len(leading) :] != shape:
                raise ValueError(f"{box['name']} has shape {x.shape}; it must end with {shape}")
            rows = int(np.prod(leading))
            values[box["name"]] = x.astype(box["dtype"]).reshape(rows, *shape)
        box = self.metadata["action"]
        action = run(self.operations, values)[box["name"]]
        return action.reshape((*leading, *box["shape"])).astype(box["dtype"])
