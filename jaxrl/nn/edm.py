"""Diffusion policies with continuous noise levels and EDM's preconditioning."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.hyper import choice, number, size
from jaxrl.nn.denoisers import Denoiser, Predict, normals, run_chain
from jaxrl.require import require
from jaxrl.types import Array, Key

SigmaSchedule = Literal["exponential", "linear", "karras"]
Solver = Literal["euler", "heun", "ancestral"]
KARRAS_RHO = 7.0


class Level(NamedTuple):
    """One step of EDM's samplers, from noise level ``sigma`` to ``next_sigma``: each ``[K]``."""

    sigma: Any
    next_sigma: Any


@hyper.dataclass
class EDM(Denoiser):
    """A denoiser with the preconditioning of Karras et al. 2022, as BESO uses it.

    ("Elucidating the Design Space of Diffusion-Based Generative Models"; Reuss et al. 2023,
    "Goal-Conditioned Imitation Learning using Score-based Diffusion Policies".) The defaults are
    BESO's, with an MLP instead of its transformer. Noise levels for learning are log-logistic
    between ``sigma_min`` and ``sigma_max``. The solvers are Euler (which is DDIM), Heun (two
    evaluations per step), and ancestral Euler (which adds noise).
    """

    changeable: ClassVar[tuple[str, ...]] = (
        *Denoiser.changeable, "sample_steps", "solver", "sigma_schedule",
    )  # fmt: skip
    unchangeable: ClassVar[tuple[str, ...]] = ("sigma_data",)

    sample_steps: int = size(3, help="denoising steps when acting")
    solver: Solver = choice("euler", Solver, help="euler (DDIM), heun, or ancestral Euler")
    sigma_schedule: SigmaSchedule = choice(
        "exponential", SigmaSchedule, help="how noise levels fall from sigma_max to sigma_min"
    )
    sigma_min: float = number(0.005, above=0, help="smallest noise level")
    sigma_max: float = number(1.0, above=0, help="largest noise level")
    sigma_data: float = number(0.5, above=0, help="standard deviation of the data's actions")
    sigma_loc: float = number(-0.6, help="location of the logarithm of training noise levels")
    sigma_scale: float = number(1.6, above=0, help="scale of the logarithm of these noise levels")

    def check_numbers(self) -> None:
        """Raise UsageError for levels that rise, or guidance by no entry."""
        super().check_numbers()
        require("sigma_max", self.sigma_max, self.sigma_min)

    def scales(self, sigma: Array) -> tuple[Array, Array, Array]:
        """Return ``c_skip``, ``c_out``, ``c_in`` (Karras et al. 2022, table 1)."""
        total = jnp.square(sigma) + self.sigma_data**2
        root = jnp.sqrt(total)
        return self.sigma_data**2 / total, sigma * self.sigma_data / root, 1.0 / root

    def noised_errors(self, predict: Predict, time: Array, action: Array, noise: Array) -> Array:
        """Return squared errors ``[M, B, A]`` of the network's outputs from noised actions."""
        sigma = time[..., None]
        skip, out, into = self.scales(sigma)
        x = action + sigma * noise
        return jnp.square(predict(into * x, jnp.log(time) / 4.0) - (action - skip * x) / out)

    def times(self, key: Key, uniform: Array) -> Array:
        """Return noise levels: log-logistic, within ``[sigma_min, sigma_max]``."""

        def share(sigma: Array | float) -> Array:
            return jax.nn.sigmoid((jnp.log(sigma) - self.sigma_loc) / self.sigma_scale)

        low, high = share(self.sigma_min), share(self.sigma_max)
        p = low + uniform * (high - low)
        return jnp.exp(self.sigma_loc + self.sigma_scale * (jnp.log(p) - jnp.log1p(-p)))

    def levels(self) -> Level:
        """Return the steps of a chain, noisiest first; the last goes to noise level 0."""
        u = jnp.linspace(0.0, 1.0, self.sample_steps)

        def between(f: Any, inverse: Any) -> Array:
            high, low = f(jnp.asarray(self.sigma_max)), f(jnp.asarray(self.sigma_min))
            found: Array = inverse(high + u * (low - high))
            return found

        if self.sigma_schedule == "linear":
            sigma = between(lambda x: x, lambda x: x)
        elif self.sigma_schedule == "exponential":
            sigma = between(jnp.log, jnp.exp)
        else:
            sigma = between(lambda x: x ** (1 / KARRAS_RHO), lambda x: x**KARRAS_RHO)
        return Level(sigma, jnp.append(sigma[1:], 0.0))

    def denoised(self, predict: Predict, x: Array, sigma: Array) -> Array:
        """Return the action ``[..., A]`` that the network predicts from ``x[..., A]``."""
        skip, out, into = self.scales(sigma)
        return skip * x + out * predict(into * x, jnp.log(sigma) / 4.0)

    def chain(self, predict: Predict, first: Array, noise: Array) -> Array:
        """Return all points ``[..., K + 1, A]``, from noise ``[..., A]`` and ``[K, ..., A]``."""

        def slope(x: Array, sigma: Array) -> Array:
            return (x - self.denoised(predict, x, sigma)) / sigma

        def step(x: Array, row: tuple[Level, Array]) -> Array:
            (sigma, following), z = row
            down, up = following, jnp.float32(0.0)
            if self.solver == "ancestral":
                up = following * jnp.sqrt(1.0 - jnp.square(following / sigma))
                down = jnp.square(following) / sigma
            at_x = slope(x, sigma)
            moved = x + (down - sigma) * at_x
            if self.solver != "heun":
                return moved + up * z
            # The last step, to noise level 0, is an Euler step: there is no slope at 0.
            at_moved = slope(moved, jnp.where(following > 0, following, sigma))
            at_moved = jnp.where(following > 0, at_moved, at_x)
            return x + (following - sigma) * 0.5 * (at_x + at_moved)

        rows = (self.levels(), noise)
        return run_chain(step, self.sigma_max * first, rows, self.checkpoint)

    def generate(self, predict: Predict, key: Key, shape: tuple[int, ...]) -> Array:
        """Return actions ``[..., A]`` of the given shape."""
        points = self.chain(predict, *normals(key, self.sample_steps, shape))
        return jnp.clip(points[..., -1, :], -1.0, 1.0)

    def generate_from(self, predict: Predict, first: Array) -> Array:
        """Return actions ``[..., A]`` from initial noise ``[..., A]``, without further noise.

        Ancestral steps become Euler steps: they remove the noise that they would add.
        """
        solver: Solver = "euler" if self.solver == "ancestral" else self.solver
        quiet = dataclasses.replace(self, solver=solver)
        points = quiet.chain(predict, first, jnp.zeros((self.sample_steps, *first.shape)))
        return jnp.clip(points[..., -1, :], -1.0, 1.0)
