"""Policy families: the distribution of a policy's actions, and the network that computes it.

    policy.bind(spec) -> policy
    policy.init(key) -> params
    policy.sample(params, obs, key) -> action, trace
    policy.mode(params, obs, key) -> action
    policy.fit_loss(params, obs, action, key) -> [B]     # to imitate given actions
    policy.errors(params, obs, action, key) -> [B, A]    # the same, element by element
    policy.dist(params, obs) -> Distribution             # families with a density

``dist`` evaluates the network, so a loss that needs a sample and its density calls it only once.
Actions are in [-1, 1] or an index.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.hyper import choice, flag, interval, number
from jaxrl.nn import distributions
from jaxrl.nn.distributions import Distribution, Trace
from jaxrl.nn.encoders import POLICY_KEYS
from jaxrl.nn.part import DropoutPart
from jaxrl.require import require
from jaxrl.types import Array, Box, Discrete, Key, PyTree, Spec

Std = Literal["independent", "clipped", "softplus", "exp"]
STD_HELP = (
    "independent: does not depend on the observation; clipped: the same, with its logarithm "
    "clipped to log_std_range; softplus: a second network output through a softplus, plus 0.001; "
    "exp: a second network output through an exponential, with its logarithm clipped to "
    "log_std_range; with softplus and exp, an output of 0 stands for initial_std"
)


@hyper.dataclass
class _Policy(DropoutPart):
    """A network from observations to action elements, or to parameters of their distribution."""

    head_scale: float = number(1.0, above=0, help="gain of an orthogonal head")

    @property
    def squashes(self) -> bool:
        """Whether its actions never leave [-1, 1]."""
        return False

    @property
    def outputs(self) -> int:
        """The number of the network's outputs."""
        return self.action_dim

    def bind(self, spec: Spec) -> Any:
        """Return the policy for ``spec``.

        A squashing family warns of action elements without two finite bounds.

        Raises:
            UsageError: for actions or observations that the family cannot handle.
        """
        if self.squashes:
            check_reach(self, spec)
        encoder = self.encoder.bind(spec.observation, POLICY_KEYS)
        return dataclasses.replace(self, encoder=encoder, action_dim=vector_size(self, spec))


@hyper.dataclass
class _Density(_Policy):
    """A family that defines ``dist``."""

    def dist(self, params: PyTree, obs: PyTree) -> Any:
        """Return the distribution at ``obs[..., *O]``."""
        raise AssertionError("a family with a density defines its distribution")

    def sample(self, params: PyTree, obs: PyTree, key: Key) -> tuple[Array, Trace]:
        """Return an action ``[..., *A]`` and its trace."""
        dist: Distribution = self.dist(params, obs)
        return dist.sample(key)

    def mode(self, params: PyTree, obs: PyTree, key: Key | None = None) -> Array:
        """Return the most likely action ``[..., *A]``."""
        dist: Distribution = self.dist(params, obs)
        return dist.mode()

    def fit_loss(self, params: PyTree, obs: PyTree, action: Array, key: Key) -> Array:
        """Return ``-log pi(a | s)`` for given actions: ``[B]``."""
        log_prob: Array = self.dropping(key).dist(params, obs).trace(action).log_prob
        return -log_prob


@hyper.dataclass
class Categorical(_Density):
    """A distribution over discrete actions, from logits."""

    def bind(self, spec: Spec) -> Categorical:
        """Return the policy for ``spec``. Raises UsageError for continuous actions."""
        if not isinstance(spec.action, Discrete):
            raise UsageError(
                "Categorical needs discrete actions, and the environment has continuous ones; "
                "choose another policy, such as Gaussian or TanhGaussian"
            )
        encoder = self.encoder.bind(spec.observation, POLICY_KEYS)
        return dataclasses.replace(self, encoder=encoder, action_dim=spec.action.n)

    def dist(self, params: PyTree, obs: PyTree) -> distributions.Categorical:
        """Return the distribution at ``obs[..., *O]``."""
        return distributions.Categorical(self.output(params, obs))

    def errors(self, params: PyTree, obs: PyTree, action: Array, key: Key) -> Array:
        """Return ``-log pi(a | s)`` of given actions, as one element: ``[B, 1]``."""
        return self.fit_loss(params, obs, action, key)[..., None]


@hyper.dataclass
class Gaussian(_Density):
    """Independent normals, one for each action element; ``VectorEnv`` clips the samples.

    With ``squash_mean`` the policy itself clips samples to [-1, 1]. Densities then refer to samples
    before clipping.
    """

    std: Std = choice("independent", Std, help=STD_HELP)
    initial_std: float = number(1.0, above=0, help="initial standard deviation")
    log_std_range: tuple[float, float] = interval((-20.0, 2.0), help="log std bounds; see std")
    squash_mean: bool = flag(False, help="pass the mean through tanh, and clip samples to [-1, 1]")

    def check_numbers(self) -> None:
        """Raise UsageError if ``initial_std`` is outside the bounds to which it is clipped."""
        if self.std in ("clipped", "exp"):
            low, high = map(math.exp, self.log_std_range)
            require("initial_std", self.initial_std, low, high)

    @property
    def squashes(self) -> bool:
        """Whether its actions never leave [-1, 1]."""
        return self.squash_mean

    @property
    def unchangeable(self) -> tuple[str, ...]:
        """The numbers that must not change, since they define what the parameters mean."""
        return () if self.independent else ("initial_std",)

    @property
    def independent(self) -> bool:
        """Whether the standard deviations do not depend on the observation."""
        return self.std in ("independent", "clipped")

    @property
    def outputs(self) -> int:
        """The number of outputs: means, and standard deviations if they depend on observations."""
        return self.action_dim * (1 if self.independent else 2)

    def init(self, key: Key) -> PyTree:
        """Return fresh parameters."""
        params = super().init(key)
        if self.independent:
            params["log_std"] = jnp.full(self.action_dim, jnp.log(jnp.float32(self.initial_std)))
        return params

    def mean_and_std(self, params: PyTree, obs: PyTree) -> tuple[Array, Array]:
        """Return mean and standard deviation before squashing, both ``[..., A]``."""
        out = self.output(params, obs)
        mean, spread = (out, params["log_std"]) if self.independent else jnp.split(out, 2, axis=-1)
        if self.squash_mean:
            mean = jnp.tanh(mean)
        if self.std == "softplus":
            start = self.initial_std + jnp.log(-jnp.expm1(-self.initial_std))  # softplus undone
            return mean, jax.nn.softplus(spread + start) + 1e-3
        if self.std == "exp":
            spread = spread + jnp.log(self.initial_std)
        if self.std != "independent":
            spread = jnp.clip(spread, *self.log_std_range)
        return mean, jnp.broadcast_to(jnp.exp(spread), mean.shape)

    def dist(self, params: PyTree, obs: PyTree) -> Any:
        """Return the distribution at ``obs[..., *O]``."""
        family = distributions.ClippedNormal if self.squash_mean else distributions.Normal
        return family(*self.mean_and_std(params, obs))

    def errors(self, params: PyTree, obs: PyTree, action: Array, key: Key) -> Array:
        """Return ``-log pi(a_i | s)`` for each element of given actions: ``[B, A]``."""
        log_probs: Array = self.dropping(key).dist(params, obs).log_probs(action)
        return -log_probs


@hyper.dataclass
class TanhGaussian(Gaussian):
    """``tanh`` of independent normals: actions in (-1, 1). The entropy has no closed form."""

    std: Std = choice("exp", Std, help=STD_HELP)

    def bind(self, spec: Spec) -> Any:
        """Return the policy for ``spec``. Raises UsageError for a mean that is squashed twice."""
        if self.squash_mean:
            raise UsageError(
                "squash_mean is True, and TanhGaussian passes its samples through tanh; leave it "
                "False, or give a Gaussian"
            )
        return super().bind(spec)

    @property
    def squashes(self) -> bool:
        """Whether its actions never leave [-1, 1]."""
        return True

    def dist(self, params: PyTree, obs: PyTree) -> Any:
        """Return the distribution at ``obs[..., *O]``."""
        return distributions.TanhNormal(*self.mean_and_std(params, obs))


@hyper.dataclass
class Deterministic(_Policy):
    """One action per observation: ``tanh`` of the network's output. It has no density."""

    @property
    def squashes(self) -> bool:
        """Whether its actions never leave [-1, 1]."""
        return True

    def action(self, params: PyTree, obs: PyTree) -> Array:
        """Return the action ``[..., A]`` in (-1, 1) at ``obs[..., *O]``."""
        return jnp.tanh(self.output(params, obs))

    def sample(self, params: PyTree, obs: PyTree, key: Key) -> tuple[Array, Any]:
        """Return the action, and an empty trace."""
        return self.action(params, obs), ()

    def mode(self, params: PyTree, obs: PyTree, key: Key | None = None) -> Array:
        """Return the action."""
        return self.action(params, obs)

    def fit_loss(self, params: PyTree, obs: PyTree, action: Array, key: Key) -> Array:
        """Return the squared error, summed over action elements: ``[B]``."""
        return jnp.sum(self.errors(params, obs, action, key), axis=-1)

    def errors(self, params: PyTree, obs: PyTree, action: Array, key: Key) -> Array:
        """Return the squared error of each action element: ``[B, A]``."""
        return jnp.square(self.dropping(key).action(params, obs) - action)


@hyper.dataclass
class AutoPolicy(Gaussian):
    """The usual family for the environment's actions.

    ``bind`` returns a ``Categorical`` for discrete actions, else a ``Gaussian``, or a
    ``TanhGaussian`` with ``squash``, which replaces ``squash_mean``.
    """

    squash: bool = flag(False, help="pass continuous actions through tanh")

    def bind(self, spec: Spec) -> Any:
        """Return the policy for ``spec``. Raises UsageError if the family does."""
        continuous = TanhGaussian if self.squash else Gaussian
        family = Categorical if isinstance(spec.action, Discrete) else continuous
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(family)}
        if self.squash:
            fields.pop("squash_mean", None)
        return family(**fields).bind(spec)


def check_reach(part: Any, spec: Spec) -> None:
    """Warn of action elements without two finite bounds, to which [-1, 1] cannot be scaled.

    Raises:
        UsageError: if all of [-1, 1] is outside an element's bounds, leaving a single value.
    """
    if not isinstance(spec.action, Box):
        return
    for index in map(tuple, np.argwhere(~spec.action.bounded)):
        low, high = spec.action.low[index], spec.action.high[index]
        least, most = np.clip((-1.0, 1.0), low, high)
        element = index[0] if len(index) == 1 else index
        text = (
            f"{type(part).__name__} acts in [-1, 1], and element {element} of the actions has the "
            f"bounds {low:g} and {high:g}, so it stays in [{least:g}, {most:g}]; give it finite "
            "bounds in the environment's spec, or a policy that does not squash, such as Gaussian"
        )
        if least == most:
            raise UsageError(text)
        warnings.warn(text, stacklevel=2)


def vector_size(part: Any, spec: Spec) -> int:
    """Return the number of action elements.

    Raises:
        UsageError: for discrete actions, and for continuous actions that are not vectors.
    """
    if isinstance(spec.action, Discrete):
        raise UsageError(
            f"{type(part).__name__} needs continuous actions, and the environment has "
            f"{spec.action.n} discrete ones; choose another policy, such as Categorical"
        )
    if len(spec.action.shape) != 1:
        raise UsageError(
            f"continuous actions have shape {spec.action.shape}; they must be vectors, as (3,)"
        )
    return spec.action.shape[0]
