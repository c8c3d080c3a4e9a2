"""Optimisation: Adam rebuilt from traced hyper-parameters, clipping, and a guard against NaN."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl.metrics import Max, Metrics, Sum, mean_of
from jaxrl.sharding import shard_count, shard_mean
from jaxrl.types import Array, PyTree


class OptimState(NamedTuple):
    """The moments of Adam, and how many updates were skipped because they were not finite."""

    moments: optax.ScaleByAdamState  # of the parameters as ``packed``
    skipped: Array  # int32, in all
    in_a_row: Array  # int32, since the last good one


class Adam(NamedTuple):
    """Adam after clipping the gradient's global norm (None: no clipping).

    It is rebuilt from the hyper-parameters on every trace and lives in no state. Small tensors are
    stepped as one vector: a dozen of them one after another cost more than the arithmetic.
    ``rectified`` makes it RAdam (Liu et al. 2020, "On the Variance of the Adaptive Learning Rate
    and Beyond"), whose first steps are smaller, as their second moments rest on few gradients.
    """

    max_grad_norm: Array | float | None = None
    eps: float = 1e-8
    rectified: bool = False

    def init(self, params: PyTree) -> OptimState:
        """The state before the first update."""
        parts = [jnp.zeros_like(part) for part in packed(params)]
        return OptimState(optax.scale_by_adam().init(parts), jnp.int32(0), jnp.int32(0))

    def step(
        self, grads: PyTree, state: OptimState, params: PyTree, learning_rate: Array | float
    ) -> tuple[PyTree, OptimState, Metrics]:
        """One descent step on the mean gradient over all shards.

        A gradient with a NaN or an infinity changes nothing but the count of skipped updates.
        Returns the parameters, the state and the metrics ``grad_norm``, ``skipped_updates``,
        ``skipped_in_a_row``.
        """
        gradient = shard_mean(packed(grads))
        norm = jnp.sqrt(sum(jnp.vdot(part, part) for part in gradient))
        finite = jnp.isfinite(norm)
        if self.max_grad_norm is not None:
            factor = jnp.minimum(1.0, self.max_grad_norm / (norm + 1e-12))
            gradient = [part * factor for part in gradient]
        scale = optax.scale_by_radam if self.rectified else optax.scale_by_adam
        update, moments = scale(eps=self.eps).update(gradient, state.moments)

        # Where nothing is stepped the update is zero; ``where`` keeps the NaN out, a product would
        # not.
        update = [jnp.where(finite, learning_rate * part, 0.0) for part in update]
        params = jax.tree.map(jnp.subtract, params, unpacked(update, params))
        moments = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moments, state.moments)
        skip = (~finite).astype(jnp.int32)
        state = OptimState(moments, state.skipped + skip, (state.in_a_row + 1) * skip)
        metrics: Metrics = {
            "grad_norm": mean_of(norm, where=finite),
            "skipped_updates": Sum(skip / shard_count()),  # all shards skip the same ones
            "skipped_in_a_row": Max(state.in_a_row.astype(jnp.float32)),
        }
        return params, state, metrics


LARGE = 2**14  # elements of a tensor whose copying would cost more than a kernel of its own


def packed(tree: PyTree) -> list[Array]:
    """The large tensors as they are, and all small ones as one vector behind them."""
    leaves = jax.tree.leaves(tree)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < LARGE]
    vector = [jnp.concatenate(small)] if small else []
    return [leaf for leaf in leaves if leaf.size >= LARGE] + vector


def unpacked(parts: list[Array], like: PyTree) -> PyTree:
    """The tree of the shapes of ``like`` that was ``packed`` into ``parts``."""
    leaves, tree = jax.tree.flatten(like)
    sizes = [leaf.size for leaf in leaves if leaf.size < LARGE]
    pieces = iter(jnp.split(parts[-1], np.cumsum(sizes)[:-1]) if sizes else [])
    large = iter(parts)

    def next_part(leaf: Array) -> Array:
        return next(large) if leaf.size >= LARGE else next(pieces).reshape(leaf.shape)

    return jax.tree.unflatten(tree, [next_part(leaf) for leaf in leaves])


def linear_decay(updates: Array, over: Array | float) -> Array:
    """A factor falling from 1 at update 0 to 0 at update ``over``; always 1 where ``over`` is 0."""
    left = 1.0 - updates / jnp.maximum(over, 1.0)
    return jnp.where(jnp.asarray(over) > 0, jnp.maximum(left, 0.0), 1.0)


def polyak(target: PyTree, online: PyTree, tau: Array | float) -> PyTree:
    """``(1 - tau) target + tau online``, leaf-wise."""
    return jax.tree.map(lambda t, o: t + tau * (o - t), target, online)
