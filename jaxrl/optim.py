"""Optimisation: Adam with traced hyper-parameters, gradient clipping, and a guard against NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl import hyper
from jaxrl.hyper import flag, number
from jaxrl.metrics import Max, Metrics, Sum, mean_of
from jaxrl.sharding import shard_count, shard_mean
from jaxrl.types import Array, PyTree


class OptimState(NamedTuple):
    """Adam's moments, and the number of updates skipped because they were not finite."""

    moments: optax.ScaleByAdamState  # for the ``packed`` parameters
    skipped: Array  # int32, in total
    in_a_row: Array  # int32, since the last finite one


class Trained(NamedTuple):
    """Parameters and the state of their optimiser."""

    params: PyTree
    optim: OptimState


@hyper.dataclass
class Adam:
    """Adam, after clipping the gradient's global norm.

    The optimiser is rebuilt from the hyper-parameters on every trace and is not part of any state.
    Small tensors are updated as one vector: a dozen separate updates would cost more than the
    arithmetic.
    """

    max_grad_norm: float | None = number(
        None, above=0, help="maximum global norm of each network's gradient; None: no clipping"
    )
    eps: float = number(1e-8, above=0, help="added to the root of the second moment")
    rectified: bool = flag(
        False, help="RAdam (Liu et al. 2020): smaller steps while the second moment is uncertain"
    )

    def start(self, params: PyTree) -> Trained:
        """Return the parameters with their initial optimiser state."""
        return Trained(params, self.init(params))

    def init(self, params: PyTree) -> OptimState:
        """Return the state before the first update."""
        parts = [jnp.zeros_like(part) for part in packed(params)]
        return OptimState(optax.scale_by_adam().init(parts), jnp.int32(0), jnp.int32(0))

    def minimize(
        self,
        loss: Callable[..., tuple[Array, Any]],
        trained: Trained,
        learning_rate: Array | float,
        *args: Any,
    ) -> tuple[Trained, Any, Metrics]:
        """Make one descent step on ``loss(params, *args) -> value, aux``.

        Returns the updated parameters and optimiser state, ``aux``, and metrics. Some metrics are
        named after the loss, e.g. ``critic_loss`` and ``critic_grad_norm``; the others are
        ``skipped_updates`` and ``skipped_in_a_row``.
        """
        gradient: Any = jax.value_and_grad(loss, has_aux=True)
        (value, aux), grads = gradient(trained.params, *args)
        params, optim, metrics = self.step(grads, trained.optim, trained.params, learning_rate)
        name = getattr(loss, "__name__", "loss").removesuffix("loss")  # partials have no name
        metrics[f"{name}grad_norm"] = metrics.pop("grad_norm")
        return Trained(params, optim), aux, metrics | {f"{name}loss": mean_of(value)}

    def step(
        self, grads: PyTree, state: OptimState, params: PyTree, learning_rate: Array | float
    ) -> tuple[PyTree, OptimState, Metrics]:
        """Make one descent step on the mean gradient over all shards.

        A gradient with a NaN or an infinity changes only the count of skipped updates. Returns the
        parameters, the state and the metrics ``grad_norm``, ``skipped_updates``,
        ``skipped_in_a_row``.
        """
        gradient = shard_mean(packed(grads))
        norm = jnp.sqrt(sum(jnp.vdot(part, part) for part in gradient))
        finite = jnp.isfinite(norm)
        if self.max_grad_norm is not None:
            factor = jnp.minimum(1.0, self.max_grad_norm / (norm + 1e-12))
            gradient = [part * factor for part in gradient]

        # A non-finite gradient counts as zeros, and the moments do not decay. This guard uses
        # scalars only, so it needs no further pass over the parameters.
        gradient = [jnp.where(finite, part, 0.0) for part in gradient]
        decays = (jnp.where(finite, decay, 1.0) for decay in (0.9, 0.999))
        scale = optax.scale_by_radam if self.rectified else optax.scale_by_adam
        update, moments = scale(*decays, eps=self.eps).update(gradient, state.moments)
        update = [jnp.where(finite, learning_rate * x, 0.0) for x in self.decayed(update, params)]
        params = jax.tree.map(jnp.subtract, params, unpacked(update, params))
        count = jnp.where(finite, moments.count, state.moments.count)
        skip = (~finite).astype(jnp.int32)
        moments = moments._replace(count=count)
        state = OptimState(moments, state.skipped + skip, (state.in_a_row + 1) * skip)
        metrics: Metrics = {
            "grad_norm": mean_of(norm, where=finite),
            "skipped_updates": Sum(skip / shard_count()),  # all shards skip the same ones
            "skipped_in_a_row": Max(state.in_a_row.astype(jnp.float32)),
        }
        return params, state, metrics

    def decayed(self, update: list[Array], params: PyTree) -> list[Array]:
        """Return Adam's update, without weight decay."""
        return update


@hyper.dataclass
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Networks decay. A scalar that is learnt alone, such as a temperature, does not.
    """

    weight_decay: float = number(1e-4, 0, help="weight decay coefficient")

    def decayed(self, update: list[Array], params: PyTree) -> list[Array]:
        """Return Adam's update plus ``weight_decay`` times the parameters."""
        if [leaf.ndim for leaf in jax.tree.leaves(params)] == [0]:
            return update
        pairs = zip(update, packed(params), strict=True)
        return [part + self.weight_decay * old for part, old in pairs]


LARGE = 2**14  # elements; copying a larger tensor would cost more than its own kernel


def packed(tree: PyTree) -> list[Array]:
    """The large tensors unchanged, followed by all small ones as one vector."""
    leaves = jax.tree.leaves(tree)
    small = [leaf.reshape(-1) for leaf in leaves if leaf.size < LARGE]
    vector = [jnp.concatenate(small)] if small else []
    return [leaf for leaf in leaves if leaf.size >= LARGE] + vector


def unpacked(parts: list[Array], like: PyTree) -> PyTree:
    """Undo ``packed``: rebuild a tree shaped like ``like`` from ``parts``."""
    leaves, tree = jax.tree.flatten(like)
    sizes = [leaf.size for leaf in leaves if leaf.size < LARGE]
    pieces = iter(jnp.split(parts[-1], np.cumsum(sizes)[:-1]) if sizes else [])
    large = iter(parts)

    def next_part(leaf: Array) -> Array:
        return next(large) if leaf.size >= LARGE else next(pieces).reshape(leaf.shape)

    return jax.tree.unflatten(tree, [next_part(leaf) for leaf in leaves])


def linear_decay(updates: Array, over: Array | float) -> Array:
    """Return a factor that falls from 1 at update 0 to 0 at update ``over``; 1 if ``over`` is 0."""
    left = 1.0 - updates / jnp.maximum(over, 1.0)
    return jnp.where(jnp.asarray(over) > 0, jnp.maximum(left, 0.0), 1.0)


def cosine_decay(updates: Array, over: Array | float) -> Array:
    """Return ``(1 + cos(pi updates / over)) / 2``, and 0 after; 1 if ``over`` is 0."""
    return 0.5 - 0.5 * jnp.cos(jnp.pi * linear_decay(updates, over))


def polyak(target: PyTree, online: PyTree, tau: Array | float) -> PyTree:
    """Return ``(1 - tau) target + tau online``, leaf-wise."""
    return jax.tree.map(lambda t, o: t + tau * (o - t), target, online)
