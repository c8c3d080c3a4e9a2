"""Optimisation: Adam rebuilt from traced hyper-parameters, clipping, and a guard against NaN."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl.axes import shard_count, shard_mean
from jaxrl.metrics import Metrics, Peak, Sum, mean_of
from jaxrl.types import Array, PyTree


class OptimState(NamedTuple):
    """The moments of Adam, and how many updates were skipped because they were not finite."""

    moments: optax.ScaleByAdamState  # of all parameters as one vector [P]
    skipped: Array  # int32, in all
    in_a_row: Array  # int32, since the last good one


class Adam(NamedTuple):
    """Adam after clipping the gradient's global norm (None: no clipping).

    It is rebuilt from the hyper-parameters on every trace and lives in no state. All tensors are
    stepped as one vector: a dozen small tensors one after another cost more than the arithmetic.
    """

    max_grad_norm: Array | float | None = None
    eps: float = 1e-8

    def init(self, params: PyTree) -> OptimState:
        """The state before the first update."""
        vector = jnp.zeros(sum(leaf.size for leaf in jax.tree.leaves(params)))
        return OptimState(optax.scale_by_adam().init(vector), jnp.int32(0), jnp.int32(0))

    def step(
        self, grads: PyTree, state: OptimState, params: PyTree, learning_rate: Array | float
    ) -> tuple[PyTree, OptimState, Metrics]:
        """One descent step on the mean gradient over all shards.

        A gradient with a NaN or an infinity changes nothing but the count of skipped updates.
        Returns the parameters, the state and the metrics ``grad_norm``, ``skipped_updates``,
        ``skipped_in_a_row``.
        """
        gradient, unravel = ravel_pytree(grads)
        gradient = shard_mean(gradient)
        norm = jnp.sqrt(jnp.vdot(gradient, gradient))
        finite = jnp.isfinite(norm)
        if self.max_grad_norm is not None:
            gradient = gradient * jnp.minimum(1.0, self.max_grad_norm / (norm + 1e-12))
        update, moments = optax.scale_by_adam(eps=self.eps).update(gradient, state.moments)

        # Where nothing is stepped the update is zero; ``where`` keeps the NaN out, a product would
        # not.
        update = unravel(jnp.where(finite, learning_rate * update, 0.0))
        params = jax.tree.map(jnp.subtract, params, update)
        moments = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moments, state.moments)
        skip = (~finite).astype(jnp.int32)
        state = OptimState(moments, state.skipped + skip, (state.in_a_row + 1) * skip)
        metrics: Metrics = {
            "grad_norm": mean_of(norm, where=finite),
            "skipped_updates": Sum(skip / shard_count()),  # all shards skip the same ones
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
