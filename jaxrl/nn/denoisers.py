"""The base class of policies that denoise, and the chains that they sample with.

A family (``nn/diffusion.py``, ``nn/edm.py``, ``nn/flow.py``) defines what the outputs mean and how
to turn them into a sample. Its samplers take the network as a function ``predict(x, time)``, so
that they can be tested with a known function, or given a combination of several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.hyper import choice, flag, number, size, words
from jaxrl.nn.encoders import POLICY_KEYS, chosen_keys
from jaxrl.nn.networks import (
    MLP,
    DenoisingNetwork,
    ResidualMLP,
    TimeEmbedding,
    apply_network,
    require_bound,
)
from jaxrl.nn.part import DropoutPart, split_key
from jaxrl.nn.policies import check_reach, vector_size
from jaxrl.require import is_number, plain
from jaxrl.rng import row_key
from jaxrl.types import Array, Key, PyTree, Spec

# x[..., A], time -> outputs[..., A]; times of fewer rows, or a single one, are broadcast.
Predict = Callable[[Array, Array], Array]
UNROLLED = 10  # chains of up to this many steps are unrolled


class Chain(NamedTuple):
    """A sample's path from noise to action, and its log-probability when it was drawn."""

    points: Array  # [..., K + 1, A], the noise first
    log_prob: Array  # [...]


@hyper.dataclass
class Denoiser(DropoutPart):
    """The base class of families that denoise: the network, guidance, and many noises per row.

    With ``guided_by``, learning replaces the named entries of dictionary observations with zeros in
    a share ``unguided_share`` of the rows. Acting extrapolates from the prediction without these
    entries: ``u + guidance (c - u)`` (Ho and Salimans 2022, "Classifier-Free Diffusion Guidance").
    A guidance of 1 is the plain conditional policy.
    """

    changeable: ClassVar[tuple[str, ...]] = (
        *DropoutPart.changeable, "noise_samples", "checkpoint",
    )  # fmt: skip

    residual: bool = flag(False, help="residual blocks of equal widths with LayerNorm")
    time_embedding: TimeEmbedding = choice(
        "sinusoidal", TimeEmbedding, help="time input: raw, or fixed or learnt sinusoids"
    )
    time_features: int = size(16, 4, help="number of sines and cosines of time; must be even")
    noise_samples: int = size(
        1, help="noise samples per row of a batch, in the loss; observations are encoded once"
    )
    guided_by: tuple[str, ...] = words((), help="entries of observations that guidance strengthens")
    guidance: float = number(
        1.0, 0, help="weight of guidance: 0 ignores the entries guided_by, 1 is plain conditioning"
    )
    unguided_share: float = number(0.1, 0, 1, help="share of rows that learn without those entries")
    checkpoint: bool = flag(
        False, help="recompute denoising steps in the backward pass: less memory, more time"
    )

    def bind(self, spec: Spec) -> Any:
        """Return the policy for ``spec``.

        Warns of action elements without two finite bounds: actions stay in [-1, 1].

        Raises:
            UsageError: for discrete actions, an odd ``time_features``, widths or norms that do not
                fit residual blocks, guidance of observations that are no dictionary, guidance by
                entries that are not observed or not seen by the encoder.
        """
        check_reach(self, spec)
        if self.time_features % 2:
            raise UsageError(
                f"time_features is {self.time_features}; it must be even, as "
                f"{self.time_features + 1}"
            )
        if self.residual and len(set(self.hidden_dims)) != 1:
            raise UsageError(
                f"hidden_dims is {self.hidden_dims}; residual blocks have one width, as "
                f"{self.hidden_dims[:1] * 3}"
            )
        for name in ("layer_norm", "post_norm"):
            if self.residual and getattr(self, name):
                raise UsageError(
                    f"{name} is True, and residual blocks have norms of their own; leave it False"
                )
        if self.guided_by:
            if not isinstance(spec.observation, Mapping):
                raise UsageError(
                    f"guided_by is {self.guided_by}, and observations are no dictionary; "
                    "leave it empty"
                )
            chosen_keys(spec.observation, self.guided_by, POLICY_KEYS)
        encoder = self.encoder.bind(spec.observation, POLICY_KEYS)
        seen = getattr(encoder, "keys", self.guided_by)
        if not set(self.guided_by) <= set(seen):
            raise UsageError(
                f"guided_by is {self.guided_by}, and the encoder sees {', '.join(seen)}; give it "
                f"obs_keys {tuple(dict.fromkeys((*seen, *self.guided_by)))}"
            )
        return dataclasses.replace(self, encoder=encoder, action_dim=vector_size(self, spec))

    def check_numbers(self) -> None:
        """Raise UsageError for guidance by no entry."""
        given = is_number(self.guidance) and plain(self.guidance) != 1.0
        if given and not self.guided_by:
            raise UsageError(
                f"guidance is {self.guidance}, and guided_by names no entry of observations to "
                "strengthen; name one, or leave guidance at 1"
            )

    # The network

    @property
    def outputs(self) -> int:
        """The number of outputs: one for each action element."""
        return self.action_dim

    @property
    def network_class(self) -> type[MLP]:
        """The class of the network after the time embedding."""
        return ResidualMLP if self.residual else MLP

    @property
    def denoiser(self) -> DenoisingNetwork:
        """The network with its time embedding."""
        return DenoisingNetwork(self.network, self.time_embedding, self.time_features)

    def init(self, key: Key) -> PyTree:
        """Return fresh parameters."""
        encoder_key, network_key = split_key(self.encoder, key)
        require_bound(self.encoder.features)
        inputs = (jnp.zeros(self.action_dim), jnp.zeros(()), jnp.zeros(self.encoder.features))
        return {
            "encoder": self.encoder.init(encoder_key),
            "network": self.denoiser.init(network_key, *inputs)["params"],
        }

    def predictor(self, params: PyTree, obs: PyTree) -> Predict:
        """Return the network at ``obs[..., *O]`` as ``predict(x, time)``, with guidance.

        Observations are encoded once for all calls.
        """
        plain = self._unguided(params, obs)
        if not self.guided_by:
            return plain
        without = self._unguided(params, self.without(obs))

        def predict(x: Array, time: Array) -> Array:
            base = without(x, time)
            return base + self.guidance * (plain(x, time) - base)

        return predict

    def _unguided(self, params: PyTree, obs: PyTree) -> Predict:
        features = self.encoder(params["encoder"], obs)

        def predict(x: Array, time: Array) -> Array:
            inputs, key = (x, time, features), self.dropout_key
            return apply_network(self.denoiser, params["network"], *inputs, dropout_key=key)

        return predict

    def without(self, obs: PyTree, share: Array | None = None) -> PyTree:
        """Return ``obs[..., *O]`` with the entries ``guided_by`` set to zero, where ``share``."""

        def zeroed(x: Array) -> Array:
            if share is None:
                return jnp.zeros_like(x)
            return jnp.where(share.reshape(*share.shape, *[1] * (x.ndim - share.ndim)), 0, x)

        return obs | {name: zeroed(obs[name]) for name in self.guided_by}

    def learner(self, params: PyTree, obs: PyTree, key: Key) -> Predict:
        """Return the network at ``obs[B, *O]`` for learning.

        It has dropout, and some rows lack the guidance entries.
        """
        if self.guided_by:
            rows = jax.tree.leaves(obs)[0].shape[:1]
            share = jax.random.bernoulli(row_key(key), self.unguided_share, rows)
            obs = self.without(obs, share)
        learner: Predict = self.dropping(key)._unguided(params, obs)
        return learner

    # Acting

    def generate(self, predict: Predict, key: Key, shape: tuple[int, ...]) -> Array:
        """Return actions ``[..., A]`` of the given shape, generated from noise by ``predict``."""
        raise AssertionError("a family defines how samples are made")

    def generate_from(self, predict: Predict, first: Array) -> Array:
        """Return actions ``[..., A]`` from initial noise ``[..., A]``, without further noise."""
        raise AssertionError("a family defines how samples are made")

    def sample(self, params: PyTree, obs: PyTree, key: Key) -> tuple[Array, Any]:
        """Return an action ``[..., A]``, and an empty trace."""
        return self.mode(params, obs, key), ()

    def mode(self, params: PyTree, obs: PyTree, key: Key) -> Array:
        """Return a sample ``[..., A]``; the most likely action has no closed form."""
        shape = (*batch_shape(self, obs), self.action_dim)
        return self.generate(self.predictor(params, obs), key, shape)

    def from_noise(self, params: PyTree, obs: PyTree, noise: Array) -> Array:
        """Return the action ``[..., A]`` for initial noise ``[..., A]``, without further noise."""
        return self.generate_from(self.predictor(params, obs), noise)

    # Learning

    def noised_errors(self, predict: Predict, time: Array, action: Array, noise: Array) -> Array:
        """Return squared errors ``[M, B, A]`` of the family's predictions from noised actions."""
        raise AssertionError("a family defines what it predicts")

    def times(self, key: Key, uniform: Array) -> Array:
        """Return times for learning, from values that are uniform in [0, 1)."""
        raise AssertionError("a family defines its times")

    def errors(self, params: PyTree, obs: PyTree, action: Array, key: Key) -> Array:
        """Return squared errors of predictions, for each action element: ``[B, A]``.

        They are means over ``noise_samples`` noises with evenly spread times.
        """
        time_key, noise_key, guidance_key = jax.random.split(key, 3)
        predict = self.learner(params, obs, guidance_key)
        many = self.noise_samples
        shape = (many, *action.shape[:-1])
        spread = jnp.arange(many).reshape(many, *[1] * (action.ndim - 1))
        uniform = (spread + jax.random.uniform(row_key(time_key), shape)) / many
        noise = jax.random.normal(row_key(noise_key), (*shape, self.action_dim))
        time = self.times(time_key, uniform)
        return jnp.mean(self.noised_errors(predict, time, action, noise), axis=0)

    def fit_loss(self, params: PyTree, obs: PyTree, action: Array, key: Key) -> Array:
        """Return the sum of ``errors`` over action elements: ``[B]``."""
        return jnp.sum(self.errors(params, obs, action, key), axis=-1)


def run_chain(
    step: Callable[[Array, Any], Array], first: Array, xs: PyTree, checkpoint: bool = False
) -> Array:
    """Apply ``step(x, step's xs) -> x`` for every row of ``xs[K, ...]``, from ``first[..., A]``.

    Returns all points ``[..., K + 1, A]``. Up to ten steps are unrolled.
    """
    count = jax.tree.leaves(xs)[0].shape[0]
    apply = jax.checkpoint(step) if checkpoint else step

    def body(x: Array, row: Any) -> tuple[Array, Array]:
        x = apply(x, row)
        return x, x

    if count <= UNROLLED:
        points = [first]
        for k in range(count):
            points.append(apply(points[-1], jax.tree.map(lambda leaf, k=k: leaf[k], xs)))
        return jnp.stack(points, axis=-2)
    _, rest = jax.lax.scan(body, first, xs)
    return jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, -2)


def normals(key: Key, steps: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return a chain's initial noise ``[*shape]`` and its steps' noise ``[K, *shape]``, at once."""
    noise = jax.random.normal(row_key(key), (steps + 1, *shape))
    return noise[0], noise[1:]


def time_of(step: Array) -> Array:
    """Return the time of a step for ``predict``: ``[]`` in a chain, ``[K, 1, ...]`` from ``over``.

    It keeps axes of size one, so that the network embeds the time once for all rows.
    """
    return step[..., 0] if step.ndim else step


def over(table: Array, x: Array) -> Array:
    """Return ``table[K]`` as ``[K, 1, ...]``, to broadcast with ``[K, *x.shape]``."""
    return table.reshape(-1, *[1] * x.ndim)


def batch_shape(policy: Any, obs: PyTree) -> tuple[int, ...]:
    """Return the leading axes of observations, as the policy's encoder sees them."""
    fresh = jax.eval_shape(policy.encoder.init, jax.random.key(0))
    features = jax.eval_shape(policy.encoder, fresh, obs)
    return features.shape[:-1]
