"""Encoders: from observations to the input features of a policy or a critic.

    encoder.bind(observation, default) -> encoder
    encoder.init(key) -> params
    encoder(params, obs[..., *O]) -> features[..., F]

An encoder is a part of policies and critics. For dictionary observations, it selects the entries
that they see.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl import hyper
from jaxrl.errors import UsageError, nearest
from jaxrl.hyper import bound, part, size, words
from jaxrl.nn.initializers import orthogonal
from jaxrl.nn.networks import apply_network
from jaxrl.types import Array, Box, Key, PyTree

POLICY_KEYS = ("state",)  # the entries that policies see by default
CRITIC_KEYS = ("privileged_state", "state")  # critics see the first of these that exists


@hyper.dataclass
class Flatten:
    """The observation as one vector; multiple dictionary entries are concatenated."""

    obs_keys: tuple[str, ...] = words(
        (), help="entries of dictionary observations to use; default: state, but for critics "
        "privileged_state if there is one"
    )  # fmt: skip
    keys: tuple[str, ...] = bound(())  # of dictionary observations
    shapes: tuple[tuple[int, ...], ...] = bound(())

    def bind(self, observation: Box | dict[str, Box], default: tuple[str, ...]) -> Flatten:
        """Return the encoder of ``observation``, by default of the first ``default`` entry.

        Raises:
            UsageError: for entries that are not observed.
        """
        keys = chosen_keys(observation, self.obs_keys, default)
        boxes = [observation[key] for key in keys] if keys else [observation]  # type: ignore[index]
        return dataclasses.replace(self, keys=keys, shapes=tuple(box.shape for box in boxes))  # type: ignore[union-attr]

    @property
    def features(self) -> int:
        """The number of features ``F``."""
        return sum(map(math.prod, self.shapes))

    def init(self, key: Key) -> PyTree:
        """Return no parameters."""
        return {}

    def __call__(self, params: PyTree, obs: PyTree) -> Array:
        """Return ``obs[..., *O]`` as ``[..., F]``."""
        entries = [obs[key] for key in self.keys] if self.keys else [obs]
        flat = [
            as_float(x).reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))
            for x, shape in zip(entries, self.shapes, strict=True)
        ]
        return flat[0] if len(flat) == 1 else jnp.concatenate(flat, axis=-1)


@hyper.dataclass
class CNN:
    """Convolutions over ``[H, W, C]`` without padding, each with a ReLU, then flattened.

    The defaults are MinAtar's (Young and Tian 2019, section 4): one layer of 16 3x3 filters with
    stride 1. Weights are orthogonal with gain sqrt(2); biases are zero.
    """

    filters: tuple[int, ...] = size((16,), help="filters of each layer")
    kernels: tuple[int, ...] = size((3,), help="width of each layer's filters")
    strides: tuple[int, ...] = size((1,), help="stride of each layer")
    obs_keys: tuple[str, ...] = words((), help="the entry of dictionary observations that it sees")
    keys: tuple[str, ...] = bound(())
    shape: tuple[int, ...] = bound(())

    def bind(self, observation: Box | dict[str, Box], default: tuple[str, ...]) -> CNN:
        """Return the encoder of ``observation``, by default of the first ``default`` entry.

        Raises:
            UsageError: unless the entry is ``[H, W, C]`` and large enough for the filters.
        """
        if not len(self.filters) == len(self.kernels) == len(self.strides):
            raise UsageError(
                f"filters {self.filters}, kernels {self.kernels} and strides {self.strides} differ "
                "in length; give one of each for every layer"
            )
        keys = chosen_keys(observation, self.obs_keys, default)
        if len(keys) > 1:
            raise UsageError(f"obs_keys is {keys}; a CNN sees one entry, as {keys[:1]}")
        box = observation[keys[0]] if keys else observation  # type: ignore[index]
        shape = box.shape  # type: ignore[union-attr]
        if len(shape) != 3:
            raise UsageError(
                f"a CNN needs observations of shape [H, W, C], and these have {list(shape)}; "
                "give the encoder Flatten"
            )
        made = dataclasses.replace(self, keys=keys, shape=shape)
        if min(made._output_shape()) < 1:
            raise UsageError(
                f"kernels is {self.kernels}, too wide for observations of {list(shape)}; "
                "give narrower ones"
            )
        return made

    @property
    def network(self) -> _Convolutions:
        """The convolutions."""
        return _Convolutions(self.filters, self.kernels, self.strides)

    @property
    def features(self) -> int:
        """The number of features ``F``."""
        return math.prod(self._output_shape())

    def _output_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.shape
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            height, width = ((x - kernel) // stride + 1 for x in (height, width))
        return height, width, self.filters[-1] if self.filters else channels

    def init(self, key: Key) -> PyTree:
        """Return fresh filters."""
        params: Any = self.network.init(key, jnp.zeros((1, *self.shape)))["params"]
        return params

    def __call__(self, params: PyTree, obs: PyTree) -> Array:
        """Return features ``[..., F]`` of ``obs[..., H, W, C]``."""
        x = as_float(obs[self.keys[0]] if self.keys else obs)
        leading = x.shape[:-3]
        out = apply_network(self.network, params, x.reshape(-1, *self.shape))
        return out.reshape(*leading, self.features)


@hyper.dataclass
class WithAction:
    """The features of an observation, concatenated with a given action.

    It encodes pairs ``(obs[..., *O], action[..., A])``, and is bound to pairs of their boxes.
    """

    encoder: Any = part(Flatten(), help="encoder of the observation")
    elements: int = bound(0)  # of the action

    def bind(self, observation: Any, default: tuple[str, ...]) -> WithAction:
        """Return the encoder of a pair. Raises UsageError if the observation's encoder does."""
        observed, action = observation
        encoder = self.encoder.bind(observed, default)
        return dataclasses.replace(self, encoder=encoder, elements=math.prod(action.shape))

    @property
    def features(self) -> int:
        """The number of features ``F``."""
        return int(self.encoder.features) + self.elements

    def init(self, key: Key) -> PyTree:
        """Return the parameters of the observation's encoder."""
        return self.encoder.init(key)

    def __call__(self, params: PyTree, obs: tuple[PyTree, Array]) -> Array:
        """Return features ``[..., F]``; observations may lack leading axes that actions have."""
        observed, action = obs
        features = self.encoder(params, observed)
        features = jnp.broadcast_to(features, (*action.shape[:-1], features.shape[-1]))
        return jnp.concatenate([features, action], axis=-1)


class _Convolutions(nn.Module):
    filters: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layers = zip(self.filters, self.kernels, self.strides, strict=True)
        for i, (filters, kernel, stride) in enumerate(layers):
            x = jax.nn.relu(Convolution(filters, kernel, stride, name=f"conv_{i}")(x))
        return x


class Convolution(nn.Module):
    """A convolution as one matrix product of patches; parameters as in ``nn.Conv``.

    XLA's CPU back-end computes gradients of native convolutions twenty times slower inside loops,
    and ``vmap`` over parameters turns them into grouped convolutions, which are slow everywhere.
    """

    filters: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, stride = self.kernel, self.stride
        height, width, channels = x.shape[-3:]
        shape = (size, size, channels, self.filters)
        kernel = self.param("kernel", orthogonal(2.0**0.5), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.filters,))
        rows, columns = height - size + 1, width - size + 1  # possible window positions
        windows = [
            x[..., i : i + rows : stride, j : j + columns : stride, :]
            for i in range(size)
            for j in range(size)
        ]
        return jnp.concatenate(windows, axis=-1) @ kernel.reshape(-1, self.filters) + bias


def chosen_keys(
    observation: Box | dict[str, Box], obs_keys: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the entries to see: ``obs_keys``, or else the first of ``default`` that exists.

    Observations that are not dictionaries have none; their name is ``"state"``.

    Raises:
        UsageError: for entries that are not observed.
    """
    entries = observation if isinstance(observation, Mapping) else {"state": observation}
    wanted = obs_keys or tuple(key for key in default if key in entries)[:1] or default[-1:]
    for key in wanted:
        if key not in entries:
            raise UsageError(
                f"obs_keys is {wanted}, and this environment does not observe {key!r}; "
                f"{nearest(key, entries)}"
            )
    return wanted if isinstance(observation, Mapping) else ()


def as_float(x: Array) -> Array:
    """Return integers and booleans as float32; floats stay as they are."""
    return jnp.asarray(x, jnp.result_type(x, jnp.float32))
