"""Flow policies: an ordinary differential equation from noise to action (``Flow``).

``NoisyFlow`` adds noise to its steps, so that a chain has a density. ``OneStep`` is a network from
noise to action, used to distil a flow.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.hyper import choice, number, size
from jaxrl.nn.denoisers import (
    Chain,
    Denoiser,
    Predict,
    batch_shape,
    normals,
    over,
    run_chain,
    time_of,
)
from jaxrl.nn.distributions import Normal
from jaxrl.nn.encoders import POLICY_KEYS
from jaxrl.nn.networks import MLP, TimeEmbedding, apply_network, init_network
from jaxrl.nn.part import NetworkPart, split_key
from jaxrl.nn.policies import check_reach, vector_size
from jaxrl.rng import row_key
from jaxrl.types import Array, Key, PyTree, Spec

Solver = Literal["euler", "midpoint"]
Times = Literal["uniform", "logit_normal", "beta"]
LAST_TIME = 0.999  # of Beta-distributed times


@hyper.dataclass
class Flow(Denoiser):
    """A velocity field that transports normal noise at time 0 to actions at time 1.

    It learns by conditional flow matching (Lipman et al. 2023, "Flow Matching for Generative
    Modeling"): on the straight path ``x_t = (1 - t) x_0 + t a`` from noise to an action in the
    data, the velocity is ``a - x_0``. The defaults follow the code of Park et al. 2025 ("Flow
    Q-Learning"): ten Euler steps, at times ``i / K`` that enter the network unchanged.
    """

    changeable: ClassVar[tuple[str, ...]] = (
        *Denoiser.changeable, "sample_steps", "solver", "time_distribution",
    )  # fmt: skip

    time_embedding: TimeEmbedding = choice(
        "raw", TimeEmbedding, help="time input: raw, or fixed or learnt sinusoids"
    )
    sample_steps: int = size(10, help="steps K from noise to action")
    solver: Solver = choice("euler", Solver, help="euler, or midpoint with two evaluations a step")
    time_distribution: Times = choice(
        "uniform", Times, help="distribution of training times: uniform, logit-normal, Beta(1.5, 1)"
    )

    def noised_errors(self, predict: Predict, time: Array, action: Array, noise: Array) -> Array:
        """Return squared errors ``[M, B, A]`` of velocities on the paths from noise to actions."""
        t = time[..., None]
        return jnp.square(predict((1.0 - t) * noise + t * action, time) - (action - noise))

    def times(self, key: Key, uniform: Array) -> Array:
        """Return times in [0, 1)."""
        if self.time_distribution == "logit_normal":
            return jax.nn.sigmoid(jax.scipy.stats.norm.ppf(uniform))
        if self.time_distribution == "beta":
            return LAST_TIME * (1.0 - uniform ** (2.0 / 3.0))  # more often near the noise
        return uniform

    def step_times(self) -> Array:
        """Return the times ``i / K`` at which steps begin."""
        return jnp.arange(self.sample_steps) / self.sample_steps

    def step(self, predict: Predict, x: Array, time: Array) -> Array:
        """Return the point ``[..., A]`` at time ``1 / K`` after ``x[..., A]``."""
        length, time = 1.0 / self.sample_steps, time_of(time)
        velocity = predict(x, time)
        if self.solver == "midpoint":
            velocity = predict(x + 0.5 * length * velocity, time + 0.5 * length)
        return x + length * velocity

    def chain(self, predict: Predict, first: Array) -> Array:
        """Return all points ``[..., K + 1, A]``, from noise ``[..., A]``."""
        times = self.step_times()
        return run_chain(lambda x, t: self.step(predict, x, t), first, times, self.checkpoint)

    def generate(self, predict: Predict, key: Key, shape: tuple[int, ...]) -> Array:
        """Return actions ``[..., A]`` of the given shape."""
        return self.generate_from(predict, jax.random.normal(row_key(key), shape))

    def generate_from(self, predict: Predict, first: Array) -> Array:
        """Return the actions at the end of the flow from noise ``[..., A]``: ``[..., A]``."""
        return jnp.clip(self.chain(predict, first)[..., -1, :], -1.0, 1.0)


@hyper.dataclass
class NoisyFlow(Flow):
    """A flow whose steps add noise with a learnt standard deviation, so that PPO can fine-tune it.

    (Zhang et al. 2025, "ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement
    Learning".) A chain is ``x_{i+1} ~ N(x_i + v(s, x_i, t_i) / K, std(s, t_i)^2)``; ``mode`` is the
    flow without this noise. The network of standard deviations sees the observation's features and
    the time, and bounds its outputs between ``std_min`` and ``std_max``. The authors also clip
    points and noise in the chain; here only the final action is clipped, so the density is exact.
    """

    starts_from: ClassVar[type] = Flow  # a Flow has all parameters but the deviations'

    sample_steps: int = size(4, help="steps K from noise to action")
    std_min: float = number(0.1, above=0, help="smallest standard deviation of a step")
    std_max: float = number(0.24, above=0, help="largest standard deviation of a step")
    std_hidden_dims: tuple[int, ...] = size((64, 64), help="hidden layers of the std network")

    @property
    def std_network(self) -> MLP:
        """The network from features and time to one number per action element."""
        return MLP(self.std_hidden_dims, self.action_dim, "tanh", "lecun")

    def init(self, key: Key) -> PyTree:
        """Return fresh parameters."""
        flow_key, std_key = jax.random.split(key)
        std = init_network(self.std_network, std_key, self.encoder.features + 1)
        return super().init(flow_key) | {"std": std}

    def stds(self, params: PyTree, obs: PyTree) -> Array:
        """Return the deviations of all steps ``[K, ..., A]`` at ``obs[..., *O]``."""
        features = self.encoder(params["encoder"], obs)
        features = jnp.broadcast_to(features, (self.sample_steps, *features.shape))
        times = jnp.broadcast_to(over(self.step_times(), features[0]), (*features.shape[:-1], 1))
        out = apply_network(self.std_network, params["std"], jnp.concatenate([features, times], -1))
        low, high = jnp.log(self.std_min), jnp.log(self.std_max)
        return jnp.exp(low + 0.5 * (jnp.tanh(out) + 1.0) * (high - low))

    def sample(self, params: PyTree, obs: PyTree, key: Key) -> tuple[Array, Chain]:
        """Return an action ``[..., A]``, and the noisy chain that led to it."""
        first, noise = normals(key, self.sample_steps, (*batch_shape(self, obs), self.action_dim))
        predict, stds = self.predictor(params, obs), self.stds(params, obs)

        def step(x: Array, row: tuple[Array, Array]) -> Array:
            time, added = row
            return self.step(predict, x, time) + added

        points = run_chain(step, first, (self.step_times(), stds * noise), self.checkpoint)
        each = Normal(jnp.zeros_like(stds), stds).log_probs(stds * noise)
        log_prob = jnp.sum(each, axis=(0, -1))
        return jnp.clip(points[..., -1, :], -1.0, 1.0), Chain(points, log_prob)

    def step_log_probs(self, params: PyTree, obs: PyTree, points: Array) -> Array:
        """Return log-densities of the steps between ``points[..., K + 1, A]``: ``[..., K, A]``."""
        mean, std = self.step_normals(params, obs, points)
        return Normal(mean, std).log_probs(points[..., 1:, :])

    def step_normals(self, params: PyTree, obs: PyTree, points: Array) -> tuple[Array, Array]:
        """Return means and deviations of the steps along ``points``: both ``[..., K, A]``."""
        x = jnp.moveaxis(points[..., :-1, :], -2, 0)
        mean = self.step(self.predictor(params, obs), x, over(self.step_times(), x[0]))
        return jnp.moveaxis(mean, 0, -2), jnp.moveaxis(self.stds(params, obs), 0, -2)


@hyper.dataclass
class OneStep(NetworkPart):
    """A network from noise to action, into which a chain of steps is distilled."""

    def bind(self, spec: Spec) -> OneStep:
        """Return the policy for ``spec``. Raises UsageError for discrete actions."""
        check_reach(self, spec)
        encoder = self.encoder.bind(spec.observation, POLICY_KEYS)
        return dataclasses.replace(self, encoder=encoder, action_dim=vector_size(self, spec))

    @property
    def outputs(self) -> int:
        """The number of outputs: one for each action element."""
        return self.action_dim

    def init(self, key: Key) -> PyTree:
        """Return fresh parameters."""
        encoder_key, network_key = split_key(self.encoder, key)
        inputs = self.encoder.features + self.action_dim
        network = init_network(self.network, network_key, inputs)
        return {"encoder": self.encoder.init(encoder_key), "network": network}

    def __call__(self, params: PyTree, obs: PyTree, noise: Array) -> Array:
        """Return the network's unclipped output ``[..., A]`` at ``noise[..., A]``."""
        features = self.encoder(params["encoder"], obs)
        features = jnp.broadcast_to(features, (*noise.shape[:-1], features.shape[-1]))
        x = jnp.concatenate([features, noise], axis=-1)
        return apply_network(self.network, params["network"], x)

    def from_noise(self, params: PyTree, obs: PyTree, noise: Array) -> Array:
        """Return the action ``[..., A]`` at ``noise[..., A]``."""
        return jnp.clip(self(params, obs, noise), -1.0, 1.0)

    def sample(self, params: PyTree, obs: PyTree, key: Key) -> tuple[Array, Any]:
        """Return an action ``[..., A]``, and an empty trace."""
        return self.mode(params, obs, key), ()

    def mode(self, params: PyTree, obs: PyTree, key: Key) -> Array:
        """Return a sample ``[..., A]``."""
        return self.from_noise(params, obs, first_noise(self, obs, key))


def first_noise(policy: Any, obs: PyTree, key: Key) -> Array:
    """Return normal noise ``[..., A]``, independent for each observation."""
    return jax.random.normal(row_key(key), (*batch_shape(policy, obs), policy.action_dim))
