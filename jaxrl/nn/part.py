"""The fields and the network that policies and critics share."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from jaxrl import hyper
from jaxrl.hyper import bound, choice, flag, held, number, part, size
from jaxrl.nn.activations import Activation
from jaxrl.nn.encoders import Flatten
from jaxrl.nn.initializers import Initializer
from jaxrl.nn.networks import MLP, apply_network, init_network
from jaxrl.nn.products import ComputeDtype
from jaxrl.rng import split_if
from jaxrl.types import Array, Key, PyTree


@hyper.dataclass
class NetworkPart:
    """An encoder of observations, and a network from its features to ``outputs`` numbers."""

    # Static fields that do not affect the meaning of trained parameters, so they may change later.
    changeable: ClassVar[tuple[str, ...]] = ("initializer", "compute_dtype")

    hidden_dims: tuple[int, ...] = size((256, 256), help="widths of the hidden layers")
    activation: Activation = choice("relu", Activation, help="activation of the hidden layers")
    layer_norm: bool = flag(False, help="normalise hidden layers before their activation")
    post_norm: bool = flag(False, help="normalise hidden layers after their activation")
    initializer: Initializer = choice("torch", Initializer, help="distribution of initial weights")
    compute_dtype: ComputeDtype = choice(
        "float32", ComputeDtype, help="precision of the matrix products after the encoder"
    )
    encoder: Any = part(Flatten(), help="encoder of observations")
    action_dim: int = bound(0)  # action elements, or choices if discrete

    head_scale = 1.0

    @property
    def outputs(self) -> int:
        """The number of the network's outputs."""
        return 1

    @property
    def network_class(self) -> type[MLP]:
        """The class of the network."""
        return MLP

    @property
    def network(self) -> MLP:
        """The network from features to outputs."""
        return self.network_class(
            hidden_dims=self.hidden_dims,
            outputs=self.outputs,
            activation=self.activation,
            initializer=self.initializer,
            head_scale=self.head_scale,
            layer_norm=self.layer_norm,
            post_norm=self.post_norm,
            compute_dtype=self.compute_dtype,
        )

    def init(self, key: Key) -> PyTree:
        """Return fresh parameters."""
        encoder_key, network_key = split_key(self.encoder, key)
        return {
            "encoder": self.encoder.init(encoder_key),
            "network": init_network(self.network, network_key, self.encoder.features),
        }

    def output(self, params: PyTree, obs: PyTree) -> Array:
        """Return the network's outputs ``[..., outputs]`` at ``obs[..., *O]``."""
        features = self.encoder(params["encoder"], obs)
        return apply_network(self.network, params["network"], features)


@hyper.dataclass
class DropoutPart(NetworkPart):
    """A network with dropout of hidden units during imitation only."""

    dropout: float | None = number(
        None, 0, 1, help="dropout rate in imitation losses; None: no dropout"
    )
    dropout_key: Any = held()

    @property
    def network(self) -> MLP:
        """The network from features to outputs; it applies dropout if it gets a key."""
        return super().network.clone(dropout=self.dropout)

    def dropping(self, key: Key) -> Any:
        """Return the part with dropout active, with its own key derived from ``key``.

        Without dropout, returns the part itself.
        """
        if self.dropout is None:
            return self
        return dataclasses.replace(self, dropout_key=jax.random.fold_in(key, 1))

    def output(self, params: PyTree, obs: PyTree) -> Array:
        """Return the network's outputs ``[..., outputs]`` at ``obs[..., *O]``."""
        features = self.encoder(params["encoder"], obs)
        key = self.dropout_key
        return apply_network(self.network, params["network"], features, dropout_key=key)


def split_key(encoder: Any, key: Key) -> tuple[Key, Key]:
    """Return keys for an encoder, which may have no parameters, and for the network after it."""
    return split_if(bool(jax.tree.leaves(jax.eval_shape(encoder.init, key))), key)
