"""Optimisation: Adam rebuilt from traced hyper-parameters, clipping, and a guard against NaN."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl.axes import shard_mean
from jaxrl.metrics import Metrics, Peak, Sum, mean_of
from jaxrl.types import Array, PyTree


class OptimState(NamedTuple):
    """The moments of Adam, and how many updates were skipped because they were not finite."""

    moments: PyTree
    skipped: Array  # int32, in all
    in_a_row: Array  # int32, since the last good one


def adam(max_grad_norm: Array | float | None = None, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam of unit learning rate after clipping the global norm of the gradient.

    Everything runs on one flattened vector: stepping a dozen small tensors one after another costs
    more than the arithmetic.
    """
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    return optax.flatten(optax.chain(clip, optax.scale_by_adam(eps=eps)))


def start(optimiser: optax.GradientTransformation, params: PyTree) -> OptimState:
    """The state before the first update."""
    return OptimState(optimiser.init(params), jnp.int32(0), jnp.int32(0))


def apply(
    optimiser: optax.GradientTransformation,
    grads: PyTree,
    state: OptimState,
    params: PyTree,
    learning_rate: Array | float,
) -> tuple[PyTree, OptimState, Metrics]:
    """One descent step on the mean gradient over all shards.

    A gradient with a NaN or an infinity changes nothing but the count of skipped updates. Returns
    the parameters, the state and the metrics ``grad_norm``, ``skipped_updates`` and
    ``skipped_in_a_row``.
    """
    grads = shard_mean(grads)
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    updates, moments = optimiser.update(grads, state.moments, params)
    stepped = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)

    new = (stepped, moments)
    params, moments = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, state.moments))
    skip = (~finite).astype(jnp.int32)
    state = OptimState(moments, state.skipped + skip, (state.in_a_row + 1) * skip)
    metrics: Metrics = {
        "grad_norm": mean_of(norm, where=finite),
        "skipped_updates": Sum(skip.astype(jnp.float32)),
        "skipped_in_a_row": Peak(state.in_a_row.astype(jnp.float32)),
    }
    return params, state, metrics


def linear_decay(updates: Array, over: Array | float) -> Array:
    """A factor falling from 1 at update 0 to 0 at update ``over``; always 1 where ``over`` is 0."""
    left = 1.0 - updates / jnp.maximum(over, 1.0)
    return jnp.where(jnp.asarray(over) > 0, jnp.maximum(left, 0.0), 1.0)


def polyak(target: PyTree, online: PyTree, tau: Array | float) -> PyTree:
    """``(1 - tau) target + tau online``, leaf-wise."""
    return jax.tree.map(lambda t, o: t + tau * (o - t), target, online)
