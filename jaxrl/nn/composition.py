"""General policy composition: one policy that denoises with the predictions of two policies."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.hyper import number, part
from jaxrl.nn.denoisers import Denoiser, Predict, batch_shape
from jaxrl.nn.flow import Flow
from jaxrl.require import plain
from jaxrl.types import Array, Key, PyTree, Spec

# Fields that matter only for learning and exploring; composed policies need not share them.
LEARNING = frozenset(
    {"time_distribution", "sigma_loc", "sigma_scale", "min_std", "std_min", "std_max"}
)


def composed(first: Predict, second: Predict, weight: Array | float) -> Predict:
    """Return the convex combination ``weight first + (1 - weight) second`` of two predictions."""

    def predict(x: Array, time: Array) -> Array:
        return weight * first(x, time) + (1.0 - weight) * second(x, time)

    return predict


@hyper.dataclass
class Composed:
    """Two policies of one family, whose predictions are mixed at every denoising step.

    (Cao et al. 2025, "Compose Your Policies! Improving Diffusion-based or Flow-based Robot Policies
    via Test-time Distribution-level Composition".) The networks and the observation entries that
    they see may differ. The process must be the same: noise levels, steps, sampler, and prediction
    target. A weight of 1 is the first policy, and 0 the second. The composition samples and does
    not learn: its parameters ``{"first": ..., "second": ...}`` come from trained policies.

    The result is the product of the densities only if their noisy scores come from the product, as
    for normals with equal standard deviations. Two mutually exclusive modes average to the middle.
    """

    first: Any = part(Flow(), help="a policy that denoises")
    second: Any = part(Flow(), help="another policy, with the same denoising process")
    weight: float = number(0.5, 0, 1, help="share of the first policy's predictions")

    def bind(self, spec: Spec) -> Composed:
        """Return the policy for ``spec``.

        Raises:
            UsageError: for families that do not denoise, or if the processes differ.
        """
        require_same_process(self.first, self.second)
        first, second = self.first.bind(spec), self.second.bind(spec)
        return dataclasses.replace(self, first=first, second=second)

    @property
    def action_dim(self) -> int:
        """The number of action elements."""
        return int(self.first.action_dim)

    @property
    def encoder(self) -> Any:
        """The first policy's encoder, which knows the shapes of observations."""
        return self.first.encoder

    @property
    def chain_steps(self) -> int:
        """The number of denoising steps."""
        return int(self.first.chain_steps)

    def chain(self, predict: Predict, first: Array, noise: Array, *args: Any) -> Array:
        """Return all points of a chain, as the first policy does, from its own ``predictor``."""
        points: Array = self.first.chain(predict, first, noise, *args)
        return points

    def init(self, key: Key) -> PyTree:
        """Return fresh parameters of both policies."""
        first, second = jax.random.split(key)
        return {"first": self.first.init(first), "second": self.second.init(second)}

    def predictor(self, params: PyTree, obs: PyTree) -> Predict:
        """Return the combination at ``obs[..., *O]`` as ``predict(x, time)``."""
        first = self.first.predictor(params["first"], obs)
        return composed(first, self.second.predictor(params["second"], obs), self.weight)

    def sample(self, params: PyTree, obs: PyTree, key: Key) -> tuple[Array, Any]:
        """Return an action ``[..., A]``, and an empty trace."""
        return self.mode(params, obs, key), ()

    def mode(self, params: PyTree, obs: PyTree, key: Key) -> Array:
        """Return a sample ``[..., A]``; the most likely action has no closed form."""
        shape = (*batch_shape(self, obs), self.action_dim)
        action: Array = self.first.generate(self.predictor(params, obs), key, shape)
        return action

    def from_noise(self, params: PyTree, obs: PyTree, noise: Array) -> Array:
        """Return the action ``[..., A]`` for initial noise ``[..., A]``, without further noise."""
        action: Array = self.first.generate_from(self.predictor(params, obs), noise)
        return action


def require_same_process(first: Any, second: Any) -> None:
    """Raise UsageError unless two policies denoise by the same process."""
    for name, each in (("first", first), ("second", second)):
        if not isinstance(each, Denoiser):
            raise UsageError(
                f"{name} is a {type(each).__name__}, which does not denoise; give a Flow, "
                "Diffusion or EDM"
            )
    kinds = [type(each).__name__ for each in (first, second)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"first is a {kinds[0]} and second a {kinds[1]}; policies are composed step by step, "
            "so give two of one family"
        )
    shared = {field.name for field in dataclasses.fields(Denoiser)} | LEARNING
    for field in filter(hyper.is_option, dataclasses.fields(first)):
        one, other = (plain(getattr(each, field.name)) for each in (first, second))
        known = all(isinstance(x, bool | int | float | str | None) for x in (one, other))
        if field.name not in shared and known and one != other:
            raise UsageError(
                f"first.{field.name} is {one} and second.{field.name} is {other}; policies are "
                "composed step by step, so give both the same"
            )
