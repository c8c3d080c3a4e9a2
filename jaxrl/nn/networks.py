"""Networks: multi-layer perceptrons, dueling heads, denoisers, and batched ensembles."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.errors import UsageError
from jaxrl.nn.activations import ACTIVATIONS, Activation
from jaxrl.nn.initializers import Initializer, bias_init, kernel_init
from jaxrl.nn.normalization import LayerNorm
from jaxrl.nn.products import ComputeDtype, dot_general
from jaxrl.rng import row_key
from jaxrl.types import Array, Key, PyTree

TimeEmbedding = Literal["raw", "sinusoidal", "fourier"]


class MLP(nn.Module):
    """Hidden layers and a linear head: ``[..., I] -> [..., outputs]``.

    With orthogonal initialisation the hidden layers have gain sqrt(2) and the head ``head_scale``.
    ``layer_norm`` normalises hidden layers before the activation, and ``post_norm`` after it.
    ``outputs=None``: no head. ``dropout`` is the share of hidden units that are dropped when the
    network is applied with a key.
    """

    hidden_dims: tuple[int, ...]
    outputs: int | None
    activation: Activation = "tanh"
    initializer: Initializer = "orthogonal"
    head_scale: float = 1.0
    layer_norm: bool = False
    post_norm: bool = False
    compute_dtype: ComputeDtype = "float32"
    dropout: Array | float | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.hidden_dims):
            x = self._dense(f"layer_{i}", width, 2.0**0.5, x)
            if self.layer_norm:
                x = LayerNorm(name=f"norm_{i}")(x)
            x = ACTIVATIONS[self.activation](x)
            if self.post_norm:
                x = LayerNorm(name=f"post_norm_{i}")(x)
            x = self._thinned(x)
        return x if self.outputs is None else self._dense("head", self.outputs, self.head_scale, x)

    def _dense(self, name: str, width: int, scale: float, x: Array) -> Array:
        head = name == "head"
        kernel = kernel_init(self.initializer, scale, head)
        bias = bias_init(self.initializer, x.shape[-1], scale, head)
        multiply = dot_general(self.compute_dtype)
        layer = nn.Dense(width, kernel_init=kernel, bias_init=bias, dot_general=multiply, name=name)
        out: Array = layer(x)
        return out

    def _thinned(self, x: Array) -> Array:
        """Return ``x`` with a share ``dropout`` of its elements zeroed, and the rest scaled up.

        (Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from
        Overfitting".) The rate may be traced, and is exact to 1 / 65536.
        """
        if self.dropout is None or not self.has_rng("dropout"):
            return x
        # Sixteen bits per number: a training loop draws all its numbers before it begins.
        bits = jax.random.bits(row_key(self.make_rng("dropout")), x.shape, jnp.uint16)
        keeps = bits.astype(jnp.float32) >= 65536.0 * self.dropout
        return jnp.where(keeps, x / jnp.maximum(1.0 - self.dropout, 1.0 / 65536.0), 0.0)


class Dueling(MLP):
    """Values of discrete actions as ``V + A - mean A``: ``[..., I] -> [..., outputs]``.

    ``V`` and ``A`` are streams, each with its own last hidden layer; they share the earlier layers.
    (Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", eq. 9.)
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shared, own = self.hidden_dims[:-1], self.hidden_dims[-1:]
        stream = functools.partial(
            MLP,
            activation=self.activation,
            initializer=self.initializer,
            head_scale=self.head_scale,
            layer_norm=self.layer_norm,
            post_norm=self.post_norm,
            compute_dtype=self.compute_dtype,
            dropout=self.dropout,
        )
        if shared:
            x = stream(shared, None, name="shared")(x)
        value = stream(own, 1, name="value")(x)
        advantage = stream(own, self.outputs, name="advantage")(x)
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


class DenoisingNetwork(nn.Module):
    """The network: ``x[..., A], time[...], features[..., F] -> [..., A]``.

    Time enters unchanged, through fixed sines and cosines and two layers (Wang et al. 2022,
    "Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning"), or
    through sines and cosines of learnt frequencies (Hansen-Estruch et al. 2023, "IDQL", appendix).
    """

    body: nn.Module
    time_embedding: TimeEmbedding
    time_features: int

    @nn.compact
    def __call__(self, x: Array, time: Array, features: Array) -> Array:
        embedded = self._embedded(time[..., None])
        shape = jnp.broadcast_shapes(x.shape[:-1], time.shape, features.shape[:-1])
        inputs = [jnp.broadcast_to(y, (*shape, y.shape[-1])) for y in (x, embedded, features)]
        out: Array = self.body(jnp.concatenate(inputs, axis=-1))
        return out

    def _embedded(self, time: Array) -> Array:
        """Return features ``[..., T]`` of ``time[..., 1]``."""
        width = self.time_features
        if self.time_embedding == "raw":
            return time
        if self.time_embedding == "sinusoidal":
            exponents = jnp.arange(width // 2) / (width // 2 - 1)
            hidden, outputs, act = 2 * width, width, ACTIVATIONS["mish"]
            waves = time * jnp.exp(-math.log(10_000.0) * exponents)
        else:
            init = nn.initializers.normal(0.2)
            waves = 2.0 * jnp.pi * time @ self.param("frequencies", init, (1, width // 2))
            hidden, outputs, act = 2 * width, 2 * width, ACTIVATIONS[self.body.activation]
        waves = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], axis=-1)
        waves = act(nn.Dense(hidden, name="time_0")(waves))
        out: Array = nn.Dense(outputs, name="time_1")(waves)
        return out


class ResidualMLP(MLP):
    """Residual blocks of equal width, each with a hidden layer four times as wide.

    The network has a layer to that width, then a block ``x + Dense(act(Dense(LayerNorm(x))))`` for
    each of ``hidden_dims``, then activation and head (Hansen-Estruch et al. 2023, "IDQL", figure
    3). Dropout comes before the norms.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, act = self.hidden_dims[0], ACTIVATIONS[self.activation]
        gain = 2.0**0.5
        x = self._dense("inputs", width, gain, x)
        for i, _ in enumerate(self.hidden_dims):
            y = LayerNorm(name=f"norm_{i}")(self._thinned(x))
            y = act(self._dense(f"wide_{i}", 4 * width, gain, y))
            x = x + self._dense(f"layer_{i}", width, gain, y)
        x = act(x)
        return x if self.outputs is None else self._dense("head", self.outputs, self.head_scale, x)


def require_bound(inputs: int) -> None:
    """Raise UsageError if a network has no inputs, as that of a part that is not bound."""
    if inputs == 0:
        raise UsageError("the agent is not bound; call agent.bind(env.spec) before init")


def init_network(network: nn.Module, key: Key, inputs: int) -> PyTree:
    """Return fresh parameters of a network with input ``[..., inputs]``.

    Raises:
        UsageError: without inputs, as in a part that is not bound.
    """
    require_bound(inputs)
    return network.init(key, jnp.zeros(inputs))["params"]


def apply_network(
    network: nn.Module, params: PyTree, *inputs: Array, dropout_key: Key | None = None
) -> Array:
    """Return the network's outputs ``[..., outputs]`` for ``x[..., inputs]``, or several inputs.

    With a key, hidden units are dropped as set by the network's ``dropout``.
    """
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    out: Any = network.apply({"params": params}, *inputs, rngs=rngs)
    return out


def init_ensemble(network: nn.Module, key: Key, inputs: int, members: int) -> PyTree:
    """Return fresh parameters of ``members`` networks, stacked along a leading axis ``[E]``."""
    keys = jax.random.split(key, members)
    return jax.vmap(lambda key: init_network(network, key, inputs))(keys)


def apply_ensemble(network: nn.Module, params: PyTree, x: Array, members: int) -> Array:
    """Return all networks' outputs ``[E, ..., outputs]`` for one ``x[..., inputs]``.

    Each layer is one batched product. The input is repeated along a network axis, so that XLA needs
    no transposes between the layers.
    """
    return apply_members(network, params, jnp.broadcast_to(x, (members, *x.shape)))


def apply_members(network: nn.Module, params: PyTree, x: Array) -> Array:
    """Return each network's outputs ``[E, ..., outputs]`` for its own inputs ``x[E, ...]``."""
    return jax.vmap(lambda params, x: apply_network(network, params, x))(params, x)
