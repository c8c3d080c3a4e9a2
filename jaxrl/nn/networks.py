"""Networks, with initialisers that are safe under ``vmap``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.errors import UsageError, nearest
from jaxrl.nn.distributions import Categorical, Distribution, Normal, TanhNormal
from jaxrl.types import Array, Box, Discrete, Key, PyTree

Activation = Literal["tanh", "relu", "swish", "elu", "gelu"]
Init = Literal["orthogonal", "lecun", "torch"]
Std = Literal["independent", "dependent", "clipped"]

PRIVILEGED = "privileged_state"  # the part of an observation that only value functions see

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "swish": nn.swish,
    "elu": nn.elu,
    "gelu": functools.partial(nn.gelu, approximate=False),
}


def orthogonal(scale: float = 1.0, iterations: int = 48) -> Callable[..., Array]:
    """An initialiser of (semi-)orthogonal matrices, uniformly distributed, by matrix products only.

    The polar factor of a Gaussian matrix is Haar-distributed, and Newton-Schulz iterations find it.
    The usual way, a QR factorisation, can block XLA's CPU pool for good when several run at once,
    as they do under ``vmap`` over seeds.
    """

    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        wide = rows < columns
        x = jax.random.normal(key, (columns, rows) if wide else (rows, columns))
        x = x / jnp.linalg.norm(x)

        def newton_schulz(_: int, x: Array) -> Array:
            return 1.5 * x - 0.5 * x @ (x.T @ x)

        x = jax.lax.fori_loop(0, iterations, newton_schulz, x)
        return (scale * (x.T if wide else x)).reshape(shape).astype(dtype)

    return init


def kernel_init(kind: Init, scale: float) -> Callable[..., Array]:
    """``orthogonal`` times ``scale``; of the others, which know no scale, LeCun uniform or torch's.

    Torch's default is uniform within ``1 / sqrt(inputs)``, for weights as for biases: a third of
    LeCun's variance.
    """
    if kind == "torch":
        return nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
    return orthogonal(scale) if kind == "orthogonal" else nn.initializers.lecun_uniform()


def bias_init(kind: Init, inputs: int) -> Callable[..., Array]:
    """Zeros, but for torch's initialisation of a layer with so many inputs."""
    if kind != "torch":
        return nn.initializers.zeros

    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class MLP(nn.Module):
    """Hidden layers and a linear head: ``[..., *I] -> [..., outputs]``.

    A network reads its sizes off its own parameters: ``outputs`` is needed by ``init`` alone (which
    takes a flat input), and ``apply`` flattens as many trailing axes as the first layer asks for.
    So an agent's state, which is arrays and nothing else, is all that acting needs.
    With orthogonal initialisation the hidden layers have gain sqrt(2) and the head ``head_scale``.
    ``layer_norm`` normalises the hidden layers before their activation. ``outputs`` None: no head.
    """

    hidden: tuple[int, ...]
    outputs: int | None = 0
    activation: Activation = "tanh"
    init_kind: Init = "orthogonal"
    head_scale: float = 1.0
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        known = self.variables.get("params", {})
        widths = {f"layer_{i}": width for i, width in enumerate(self.hidden)}
        if self.outputs is not None:
            widths["head"] = known["head"]["bias"].shape[-1] if known else self.outputs
        x = flatten_to(x, known[next(iter(widths))]["kernel"].shape[-2]) if known else x
        for name, width in widths.items():
            head = name == "head"
            scale = self.head_scale if head else 2.0**0.5
            kernel = kernel_init(self.init_kind, scale)
            bias = bias_init(self.init_kind, x.shape[-1])
            x = nn.Dense(width, kernel_init=kernel, bias_init=bias, name=name)(x)
            if self.layer_norm and not head:
                x = nn.LayerNorm(name=f"norm_{name}")(x)
            x = x if head else ACTIVATIONS[self.activation](x)
        return x


class Dueling(MLP):
    """Values of discrete actions as ``V + A - mean A``: ``[..., *I] -> [..., outputs]``.

    ``V`` and ``A`` are streams with a last hidden layer each; they share the ones before. (Wang et
    al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", eq. 9.)
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kinds = (self.activation, self.init_kind, self.head_scale, self.layer_norm)
        shared, own = self.hidden[:-1], self.hidden[-1:]
        if shared:
            x = MLP(shared, None, *kinds, name="shared")(x)
        value = MLP(own, 1, *kinds, name="value")(x)
        advantage = MLP(own, self.outputs, *kinds, name="advantage")(x)
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


class Ensemble(nn.Module):
    """``size`` networks of the same input, as batched products: ``[..., I] -> [E, ..., outputs]``.

    Its sizes are read off its parameters, as an ``MLP``'s are.
    """

    mlp: MLP
    size: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        several = nn.vmap(_apply, variable_axes={"params": 0}, split_rngs={"params": True})
        # With an axis of its own for each, XLA has no transposes to make between the layers.
        out: Array = several(self.mlp, jnp.broadcast_to(x, (self._members(), *x.shape)))
        return out

    def _members(self) -> int:
        known = self.variables.get("params", {})
        leaves = jax.tree.leaves(known)
        return leaves[0].shape[0] if leaves else self.size


def _apply(mlp: MLP, x: Array) -> Array:
    return mlp(x)


def flatten_to(x: Array, width: int) -> Array:
    """Merge the fewest trailing axes that make ``width``: ``[..., *I] -> [..., width]``.

    Raises:
        ValueError: if no number of trailing axes does.
    """
    for axes in range(1, x.ndim + 1):
        if math.prod(x.shape[-axes:]) == width:
            return x.reshape(*x.shape[:-axes], width)
    raise ValueError(f"observation of shape {x.shape} does not fit a network of {width} inputs")


def flat_input(space: Box) -> Array:
    """A zero observation ``[prod(O)]`` to initialise networks with.

    Raises:
        UsageError: if a leading axis of size 1 makes flattening ambiguous.
    """
    if len(space.shape) > 1 and space.shape[0] == 1:
        raise UsageError(
            f"observation shape {space.shape} has a leading axis of size 1; "
            f"drop it: {space.shape[1:]}"
        )
    return jnp.zeros((math.prod(space.shape),))


def policy_part(obs: PyTree, name: str) -> Any:
    """What a policy sees of an observation, or of its space: the part ``name``.

    An observation that is no dictionary is its own ``"state"``.

    Raises:
        UsageError: if there is no such part.
    """
    return _part(obs, "policy_obs", name)


def value_part(obs: PyTree, name: str, policy_name: str) -> Any:
    """What a value function sees: the part ``name``.

    Without ``"privileged_state"``, the default, it sees what the policy does.

    Raises:
        UsageError: if there is no such part.
    """
    if name == PRIVILEGED and name not in _parts(obs):
        return policy_part(obs, policy_name)
    return _part(obs, "value_obs", name)


def _parts(obs: PyTree) -> Mapping[str, Any]:
    return obs if isinstance(obs, Mapping) else {"state": obs}


def _part(obs: PyTree, option: str, name: str) -> Any:
    parts = _parts(obs)
    if name not in parts:
        raise UsageError(
            f"{option} is {name!r}, which this environment does not observe; {nearest(name, parts)}"
        )
    return parts[name]


class Policy(nn.Module):
    """A stochastic policy ``[..., *I] -> Distribution[...]``.

    ``action`` (needed by ``init`` alone) decides between a ``Categorical`` and a normal. For
    normals: ``std``: ``"independent"`` is one learnt log-std per action element, whatever the
    observation (initially ``initial_std``); ``"dependent"`` is a second output of the network,
    through a softplus that gives ``initial_std`` for a zero output, kept above 1e-3; ``"clipped"``
    is the exponential of such an output within ``log_std_range``.
    ``squash``: whether continuous actions pass through ``tanh``.
    """

    hidden: tuple[int, ...]
    action: Box | Discrete | None = None
    activation: Activation = "tanh"
    init_kind: Init = "orthogonal"
    std: Std = "independent"
    squash: bool = False
    initial_std: float = 1.0
    log_std_range: tuple[float, float] = (-20.0, 2.0)
    head_scale: float = 0.01

    @nn.compact
    def __call__(self, x: Array) -> Distribution:
        known = self.variables.get("params", {})
        discrete = "logits" in known if known else isinstance(self.action, Discrete)
        size = 0 if self.action is None else action_size(self.action)

        def mlp(name: str, outputs: int) -> Array:
            kinds = (self.activation, self.init_kind, self.head_scale)
            return MLP(self.hidden, outputs, *kinds, name=name)(x)

        if discrete:
            return Categorical(mlp("logits", size))
        if self.std != "independent":
            mean, spread = jnp.split(mlp("normal", 2 * size), 2, axis=-1)
            if self.std == "clipped":
                std = jnp.exp(jnp.clip(spread, *self.log_std_range))
            else:
                std = nn.softplus(spread + math.log(math.expm1(self.initial_std))) + 1e-3
        else:
            mean = mlp("normal", size)
            start = nn.initializers.constant(math.log(self.initial_std))
            std = jnp.exp(self.param("log_std", start, mean.shape[-1:]))
        kind = TanhNormal if self.squash else Normal
        return kind(mean, jnp.broadcast_to(std, mean.shape))


def action_size(space: Box | Discrete) -> int:
    """The number of outputs that a policy needs: choices or action elements.

    Raises:
        UsageError: for continuous actions that are not vectors.
    """
    if isinstance(space, Discrete):
        return space.n
    if len(space.shape) != 1:
        raise UsageError(
            f"continuous actions of shape {space.shape}; policies emit vectors, as (3,)"
        )
    return space.shape[0]
