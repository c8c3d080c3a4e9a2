"""Keeps layers as single operations: a policy's program calls them by name.

While a policy is traced, each ``Dense``, ``LayerNorm`` and convolution becomes a separate call,
whose name identifies the operation. Their results are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from jaxrl.nn.encoders import Convolution
from jaxrl.nn.normalization import EPSILON, LayerNorm
from jaxrl.nn.products import dense_product


class Layer(NamedTuple):
    """An operation on one value, with the arrays and options of the layer.

    ``rank`` is the number of axes of the layer's input. If it differs in the program, ``vmap`` has
    changed the layer.
    """

    operation: str
    arrays: tuple[np.ndarray, ...]
    options: dict[str, Any]
    rank: int = 0


@contextmanager
def named_layers() -> Iterator[dict[str, Layer]]:
    """Inside the context, layer calls have names; yields the mapping of names to operations."""
    layers: dict[str, Layer] = {}

    def intercept(
        call: Callable[..., Any], args: tuple, kwargs: dict[str, Any], context: Any
    ) -> Any:
        layer = None
        if context.method_name == "__call__" and len(args) == 1 and not kwargs:
            layer = _layer(context.module) if isinstance(args[0], jax.core.Tracer) else None
        if layer is None:
            return call(*args, **kwargs)

        def inner(x: Any) -> Any:
            return call(x)

        inner.__name__ = f"jaxrl_layer_{len(layers)}"
        layers[inner.__name__] = layer._replace(rank=args[0].ndim)
        return jax.jit(inner)(args[0])

    with nn.intercept_methods(intercept):
        yield layers


def _layer(module: nn.Module) -> Layer | None:
    """Return the operation that a module represents, if any and if its parameters are known."""
    found: Any = _AS_LAYER.get(type(module))
    if found is None:
        return None
    params: Any = module.variables.get("params", {})
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
        return None
    layer: Layer | None = found(module, {name: np.asarray(x) for name, x in params.items()})
    return layer


def _dense(module: Any, params: dict[str, np.ndarray]) -> Layer | None:
    own_product = module.dot_general not in (None, dense_product) or module.dot_general_cls
    if not module.use_bias or own_product or module.dtype:
        return None
    return Layer("dense", (params["kernel"], params["bias"]), {})


def _layer_norm(module: Any, params: dict[str, np.ndarray]) -> Layer | None:
    usual = module.reduction_axes == module.feature_axes == -1 and module.axis_name is None
    if not usual or set(params) != {"scale", "bias"} or module.dtype:
        return None
    return Layer("layer_norm", (params["scale"], params["bias"]), {"epsilon": module.epsilon})


def _own_layer_norm(module: Any, params: dict[str, np.ndarray]) -> Layer:
    return Layer("layer_norm", (params["scale"], params["bias"]), {"epsilon": EPSILON})


def _convolution(module: Any, params: dict[str, np.ndarray]) -> Layer:
    return Layer("conv", (params["kernel"], params["bias"]), {"stride": module.stride})


_AS_LAYER: dict[type, Callable[..., Layer | None]] = {
    nn.Dense: _dense,
    nn.LayerNorm: _layer_norm,
    LayerNorm: _own_layer_norm,
    Convolution: _convolution,
}
