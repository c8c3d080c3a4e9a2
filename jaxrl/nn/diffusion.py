"""Diffusion policies with discrete noise levels: DDPM and DDIM."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import hyper
from jaxrl.errors import UsageError
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
from jaxrl.types import Array, Key, PyTree, Spec

Schedule = Literal["vp", "cosine", "linear"]
Prediction = Literal["epsilon", "x0", "v"]
Clip = Literal["denoised", "samples", "last"]
Variance = Literal["posterior", "forward"]
MOST_LEFT = 0.1  # largest share of the action's variance at the last noise level


def betas(schedule: Schedule, steps: int) -> np.ndarray:
    """Return the variance ``beta_k`` added in each of ``steps`` steps: ``[K]``.

    - ``vp``: Wang et al. 2022 (Diffusion-QL), appendix B; ``prod (1 - beta)`` ends at 0.0064 for
      any number of steps.
    - ``cosine``: Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models".
    - ``linear``: Ho et al. 2020, "Denoising Diffusion Probabilistic Models"; for 1,000 steps.
      With 100, 36 % of the action's variance is left at the last level.
    """
    if schedule == "vp":
        t = np.arange(1, steps + 1)
        return 1.0 - np.exp(-0.1 / steps - 0.5 * (10.0 - 0.1) * (2 * t - 1) / steps**2)
    if schedule == "linear":
        return np.linspace(1e-4, 2e-2, steps)
    u = np.linspace(0.0, 1.0, steps + 1)
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0, 0.999)


class Step(NamedTuple):
    """One step of a chain, from noise level ``alpha_bar`` to ``next_alpha_bar``: each ``[K]``."""

    time: Any  # index of the training step
    alpha_bar: Any
    next_alpha_bar: Any
    std: Any  # of the posterior, times eta
    noise_std: Any  # of the added noise


@hyper.dataclass
class Diffusion(Denoiser):
    """Actions denoised in K steps (Ho et al. 2020; Song et al. 2021, "DDIM").

    ``eta`` is 1 for DDPM's ancestral sampler and 0 for DDIM, which is deterministic after the
    initial noise. The defaults are Diffusion-QL's; IDQL's sampler has ``clip="samples"`` and
    ``variance="forward"``. Clipping is to [-1, 1], the range of actions.
    """

    changeable: ClassVar[tuple[str, ...]] = (
        *Denoiser.changeable, "sample_steps", "clip", "variance",
    )  # fmt: skip

    num_steps: int = size(5, help="denoising steps K of training")
    sample_steps: int | None = size(None, help="denoising steps when acting; None: all")
    schedule: Schedule = choice("vp", Schedule, help="noise schedule")
    prediction: Prediction = choice("epsilon", Prediction, help="what the network predicts")
    clip: Clip = choice(
        "denoised", Clip, help="clip each predicted action, each sample, or only the last sample"
    )
    eta: float = number(1.0, 0, 1, help="noise when acting: 1 is DDPM, 0 is DDIM")
    variance: Variance = choice(
        "posterior", Variance, help="variance of each step's noise: the posterior's, or beta"
    )
    min_std: float = number(
        0.0, 0, help="minimum standard deviation of each step when exploring, as fine-tuning needs"
    )

    def bind(self, spec: Spec) -> Diffusion:
        """Return the policy for ``spec``.

        Raises:
            UsageError: for more steps when acting than in training, for a schedule that leaves much
                of the action at the last level, or if ``Denoiser`` raises it.
        """
        if (left := self.alpha_bars[-1]) > MOST_LEFT:
            raise UsageError(
                f"schedule is {self.schedule}, whose last of {self.num_steps} levels keeps "
                f"{left:.0%} of the action's variance, and samples start from pure noise; give "
                "cosine, or num_steps 1000"
            )
        if self.sample_steps is not None and self.sample_steps > self.num_steps:
            raise UsageError(
                f"sample_steps is {self.sample_steps}, and num_steps, the levels of training, is "
                f"{self.num_steps}; give at most {self.num_steps}"
            )
        bound: Diffusion = super().bind(spec)
        return bound

    # The process

    @property
    def alpha_bars(self) -> np.ndarray:
        """``prod_{j <= k} (1 - beta_j)``: ``[K]``."""
        return np.cumprod(1.0 - betas(self.schedule, self.num_steps))

    def noised_errors(self, predict: Predict, time: Array, action: Array, noise: Array) -> Array:
        """Return squared errors ``[M, B, A]`` of predictions from noised actions."""
        alpha_bar = jnp.asarray(self.alpha_bars, jnp.float32)[time][..., None]
        signal, spread = jnp.sqrt(alpha_bar), jnp.sqrt(1.0 - alpha_bar)
        out = predict(signal * action + spread * noise, time.astype(jnp.float32))
        target = {"epsilon": noise, "x0": action, "v": signal * noise - spread * action}
        return jnp.square(out - target[self.prediction])

    def times(self, key: Key, uniform: Array) -> Array:
        """Return uniform step indices."""
        index = (uniform * self.num_steps).astype(jnp.int32)
        return jnp.minimum(index, self.num_steps - 1)

    # Sampling

    @property
    def chain_steps(self) -> int:
        """The number K of steps in a chain when acting."""
        return self.sample_steps or self.num_steps

    def steps(self, exploring: bool = False) -> Step:
        """Return the steps of a chain, noisiest first: each ``[K]``.

        With ``exploring``, standard deviations are at least ``min_std``.
        """
        count = self.chain_steps
        index = (np.arange(count) + 1) * self.num_steps // count - 1
        alpha_bar = self.alpha_bars[index][::-1].copy()
        following = np.append(alpha_bar[1:], 1.0)
        beta = 1.0 - alpha_bar / following
        posterior = np.sqrt(beta * (1.0 - following) / (1.0 - alpha_bar))
        std = jnp.asarray(self.eta) * jnp.asarray(posterior, jnp.float32)
        noise = std
        if self.variance == "forward":
            noise = self.eta * jnp.asarray(np.sqrt(beta) * (posterior > 0), jnp.float32)
        if exploring:
            noise = jnp.maximum(noise, self.min_std)
        tables = [jnp.asarray(x, jnp.float32) for x in (index[::-1], alpha_bar, following)]
        return Step(tables[0], tables[1], tables[2], std, noise)

    def denoised(self, predict: Predict, x: Array, step: Step) -> Array:
        """Return the action ``[..., A]`` that the network predicts from ``x[..., A]``."""
        signal, spread = jnp.sqrt(step.alpha_bar), jnp.sqrt(1.0 - step.alpha_bar)
        out = predict(x, time_of(step.time))
        if self.prediction == "epsilon":
            out = (x - spread * out) / signal
        elif self.prediction == "v":
            out = signal * x - spread * out
        return jnp.clip(out, -1.0, 1.0) if self.clip == "denoised" else out

    def mean(self, predict: Predict, x: Array, step: Step) -> Array:
        """Return the mean ``[..., A]`` of the next point: the posterior mean if ``eta`` is 1."""
        action = self.denoised(predict, x, step)
        noise = (x - jnp.sqrt(step.alpha_bar) * action) / jnp.sqrt(1.0 - step.alpha_bar)
        spread = jnp.sqrt(jnp.maximum(1.0 - step.next_alpha_bar - jnp.square(step.std), 0.0))
        return jnp.sqrt(step.next_alpha_bar) * action + spread * noise

    def chain(
        self,
        predict: Predict,
        first: Array,
        noise: Array,
        exploring: bool,
        part: slice = slice(None),
    ) -> Array:
        """Return all points ``[..., K + 1, A]`` from noise ``[..., A]`` and ``[K, ..., A]``.

        With ``part``, run only those steps, from the point ``first[..., A]`` before them.
        """

        def step(x: Array, row: tuple[Step, Array]) -> Array:
            table, z = row
            x = self.mean(predict, x, table) + table.noise_std * z
            return jnp.clip(x, -1.0, 1.0) if self.clip == "samples" else x

        steps = jax.tree.map(lambda table: table[part], self.steps(exploring))
        return run_chain(step, first, (steps, noise[part]), self.checkpoint)

    def generate(self, predict: Predict, key: Key, shape: tuple[int, ...]) -> Array:
        """Return actions ``[..., A]``, without the noise that exploring adds (``min_std``)."""
        return self._ends(self._points(predict, key, shape, exploring=False))

    def generate_from(self, predict: Predict, first: Array) -> Array:
        """Return the actions ``[..., A]`` that DDIM generates from initial noise ``[..., A]``."""
        plain = dataclasses.replace(self, eta=0.0)
        zeros = jnp.zeros((self.chain_steps, *first.shape))
        return self._ends(plain.chain(predict, first, zeros, exploring=False))

    def sample(self, params: PyTree, obs: PyTree, key: Key) -> tuple[Array, Chain]:
        """Return an action ``[..., A]``, and the chain that led to it."""
        shape = (*batch_shape(self, obs), self.action_dim)
        points = self._points(self.predictor(params, obs), key, shape, exploring=True)
        log_prob = jnp.sum(self.step_log_probs(params, obs, points), axis=(-2, -1))
        return self._ends(points), Chain(points, log_prob)

    def _points(self, predict: Predict, key: Key, shape: tuple[int, ...], exploring: bool) -> Array:
        first, noise = normals(key, self.chain_steps, shape)
        return self.chain(predict, first, noise, exploring)

    def _ends(self, points: Array) -> Array:
        return jnp.clip(points[..., -1, :], -1.0, 1.0)

    # The chain as a policy of K actions

    def step_log_probs(self, params: PyTree, obs: PyTree, points: Array) -> Array:
        """Return log-densities of the steps between ``points[..., K + 1, A]``: ``[..., K, A]``."""
        mean, std = self.step_normals(params, obs, points)
        return Normal(mean, std).log_probs(points[..., 1:, :])

    def step_normals(
        self, params: PyTree, obs: PyTree, points: Array, part: slice = slice(None)
    ) -> tuple[Array, Array]:
        """Return means ``[..., K, A]`` and deviations ``[K, 1]`` of the steps along ``points``.

        These are exploring steps: their deviations are at least ``min_std``. With ``part``, only
        those steps; ``points[..., K + 1, A]`` are then the points before and after these steps.
        """
        x = jnp.moveaxis(points[..., :-1, :], -2, 0)
        tables = jax.tree.map(lambda table: table[part], self.steps(exploring=True))
        steps = jax.tree.map(lambda table: over(table, x[0]), tables)
        mean = self.mean(self.predictor(params, obs), x, steps)
        return jnp.moveaxis(mean, 0, -2), tables.noise_std[:, None]
