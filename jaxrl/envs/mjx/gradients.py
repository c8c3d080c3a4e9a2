"""One-line errors for derivatives that an engine does not support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrl.errors import UsageError
from jaxrl.types import PyTree


def not_differentiable(f: Callable, engine: str) -> Callable:
    """``f``, whose differentiation raises an error that names a differentiable engine."""
    function = jax.custom_jvp(f)

    def refuse(primals: Any, tangents: Any) -> Any:
        raise UsageError(
            f"engine {engine!r} has no gradients; make the environment with engine='mjx'"
        )

    function.defjvp(refuse)
    return function


def forward_alone(tree: PyTree) -> PyTree:
    """The same arrays, allowing forward-mode derivatives; reverse mode raises an error.

    MJX's solver is a loop of unknown length; JAX's own error for it is long.
    """

    def mark(x: Any) -> Any:
        return _mark.bind(x) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(mark, tree)


def _refuse_reverse(*_: Any) -> Any:
    raise UsageError(
        "engine 'mjx' has reverse-mode gradients with one iteration of its solver; make the "
        "environment with iterations=1, or differentiate forwards (jax.jvp, jax.jacfwd)"
    )


# A custom identity: JAX has no function that only supports forward-mode differentiation.
_mark = Primitive("forward_alone")
_mark.def_impl(lambda x: x)
_mark.def_abstract_eval(lambda x: x)
ad.deflinear2(_mark, _refuse_reverse)
batching.defvectorized(_mark)
mlir.register_lowering(_mark, mlir.lower_fun(lambda x: x, multiple_results=False))
