"""DPPO (Ren et al. 2024, "Diffusion Policy Policy Optimization")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, losses
from jaxrl.agents import chains, minibatches, protocol
from jaxrl.agents.chains import Minibatch
from jaxrl.errors import UsageError
from jaxrl.hyper import flag, number, part, size
from jaxrl.metrics import Metrics
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.denoisers import batch_shape, normals
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.distributions import Normal
from jaxrl.optim import Adam, Trained
from jaxrl.require import require
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition

CLIP_GROWTH = 3.0  # exponent of the clipping range's growth over the denoising steps


class DPPOState(NamedTuple):
    """The fine-tuned policy, value function, pre-trained policy, and number of updates."""

    actor: Trained
    critic: Trained
    pretrained: PyTree  # for the steps that are not fine-tuned; () if all are
    updates: Array  # int32, calls of ``update``


@hyper.dataclass
class DPPO:
    """PPO on the denoising steps of a diffusion policy; each step counts as an action.

    A step is ``x_{k+1} ~ N(mu(x_k, k, s), std_k^2)`` with a standard deviation of at least
    ``policy.min_std``. All fine-tuned steps of an action share its advantage, discounted towards
    the noisier steps. Log-densities are means over the action's elements, so clipping ranges are
    small. The value function depends only on the state. Pre-train the policy with ``BC`` and pass
    it in with ``run(..., policy_from=RUN)``.

    With ``normalize_ratio`` the ratio follows "GRPO-Guard" (2025): its logarithm is
    ``mean (x - mu_old) (mu - mu_old) / std``, with mean zero and the same scale at all noise
    levels.

    Defaults follow the authors' code for locomotion, except for the policy's (theirs: K 20 with the
    last 10 fine-tuned, a cosine schedule, blocks of 512). Departures: minibatches contain
    environment steps with all their denoising steps, where theirs draw pairs of an environment step
    and a denoising step; densities use the noise as it is, neither clipped nor bounded; rewards are
    not scaled by a running standard deviation; the value function is not a residual network; and
    ``target_kl`` is None (theirs, 1, is never reached).
    """

    learns_from: ClassVar = "rollouts"
    policy_at: ClassVar = ("actor.params", "pretrained")

    policy: Any = part(Diffusion(min_std=0.1), help="diffusion policy, with noise in every step")
    critic: Any = part(
        ValueFunction(hidden_dims=(256, 256, 256), activation="mish"), help="value function"
    )
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(1e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(1e-3, above=0, help="step size of the value function")
    lr_decay_steps: float = number(
        0.0, 0, help="updates over which the learning rates fall linearly to 0; 0: constant rates"
    )
    gamma: float = number(0.99, 0, 1, help="discount")
    gamma_denoising: float = number(
        0.99, 0, 1, help="discount of the advantage for each denoising step before the last"
    )
    gae_lambda: float = number(0.95, 0, 1, help="lambda of the advantage estimates")
    clip_eps: float = number(
        0.01, above=0, help="clipping range of the probability ratio at the last denoising step"
    )
    first_clip_eps: float | None = number(
        None,
        above=0,
        help="clipping range at the first fine-tuned step, growing to clip_eps at the last; None: "
        "clip_eps at all steps",
    )
    normalize_ratio: bool = flag(
        False, help="use GRPO-Guard's ratio, which has the same scale at all denoising steps"
    )
    fine_tuned_steps: int | None = size(
        None, help="number of denoising steps to fine-tune, counted from the last; None: all"
    )
    target_kl: float | None = number(
        None,
        above=0,
        help="stop an update once a minibatch's KL divergence from the acting policy exceeds this",
    )
    update_epochs: int = size(5, help="passes over a rollout")
    num_minibatches: int = size(
        4, help="minibatches per pass; must divide the transitions, with at least two in each"
    )

    @property
    def gradient_steps_per_update(self) -> int:
        """``update_epochs * num_minibatches``."""
        return self.update_epochs * self.num_minibatches

    @property
    def frozen_steps(self) -> int:
        """The number of denoising steps before the fine-tuned ones."""
        return self.policy.chain_steps - (self.fine_tuned_steps or self.policy.chain_steps)

    def bind(self, spec: Spec) -> DPPO:
        """Return the agent for ``spec``.

        Raises:
            UsageError: for discrete actions, and unless the policy is a diffusion with at least
                ``fine_tuned_steps`` steps.
        """
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["chain_steps", "step_normals"], "Diffusion")
        if self.frozen_steps < 0:
            raise UsageError(
                f"fine_tuned_steps is {self.fine_tuned_steps}, and the policy has "
                f"{self.policy.chain_steps} steps; give at most {self.policy.chain_steps}"
            )
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def check(self, rows: int) -> None:
        """Raise UsageError for chains without a density, or unless minibatches divide the rollout.

        Steps without noise have none, nor have points that are clipped.
        """
        require("policy.min_std", self.policy.min_std, 0, above=True)
        if self.policy.clip == "samples":
            raise UsageError(
                "policy.clip is 'samples', and points that are clipped have no density; give "
                "'denoised' or 'last'"
            )
        minibatches.check_divides(self.num_minibatches, rows, least=2)

    def init(self, key: Key) -> DPPOState:
        """Return fresh networks."""
        policy_key, critic_key = jax.random.split(key)
        actor = self.policy.init(policy_key)
        return DPPOState(
            actor=self.optimizer.start(actor),
            critic=self.optimizer.start(self.critic.init(critic_key)),
            pretrained=jax.tree.map(jnp.copy, actor) if self.frozen_steps else (),
            updates=jnp.int32(0),
        )

    # Losses

    def step_normals(self, params: PyTree, obs: PyTree, points: Array) -> tuple[Array, Array]:
        """Return means ``[..., K', A]`` and deviations ``[K', 1]`` of the fine-tuned steps."""
        part = slice(self.frozen_steps, None)
        normals: tuple[Array, Array] = self.policy.step_normals(params, obs, points, part)
        return normals

    def log_ratio(self, params: PyTree, batch: Minibatch) -> Array:
        """Return each step's log probability ratio ``[B, K']``, averaged over A."""
        mean, std = self.step_normals(params, batch.obs, batch.points)
        x, old = batch.points[..., 1:, :], batch.old
        if self.normalize_ratio:
            return jnp.mean((x - old) / std * (mean - old), axis=-1)
        new, before = (Normal(each, std).log_probs(x) for each in (mean, old))
        return jnp.mean(new - before, axis=-1)

    def clip_ranges(self) -> Array:
        """``e_1 + (e - e_1) (exp(3 u) - 1) / (exp(3) - 1)``, u from 0 to 1 over steps: ``[K']``."""
        steps = self.policy.chain_steps - self.frozen_steps
        first = self.clip_eps if self.first_clip_eps is None else self.first_clip_eps
        u = jnp.linspace(0.0, 1.0, steps) if steps > 1 else jnp.ones(1)
        growth = jnp.expm1(CLIP_GROWTH * u) / jnp.expm1(CLIP_GROWTH)
        return first + (self.clip_eps - first) * growth

    def actor_loss(self, params: PyTree, batch: Minibatch) -> tuple[Array, Metrics]:
        """``-mean min(r_k A_k, clip(r_k, 1 - e_k, 1 + e_k) A_k)`` over ``[B, K']``.

        ``A_k`` is the advantage times ``gamma_denoising`` to the power of the steps that follow.
        """
        log_ratio = self.log_ratio(params, batch)
        following = jnp.arange(log_ratio.shape[-1])[::-1]
        advantage = losses.normalised(batch.advantage)[:, None] * self.gamma_denoising**following
        return chains.clipped_loss(log_ratio, advantage, self.clip_ranges())

    # Update

    def update(self, state: DPPOState, rollout: Transition, key: Key) -> tuple[DPPOState, Metrics]:
        """Epochs of minibatch steps on a rollout ``[T, N]``.

        The means of the acting policy are recomputed from its parameters, so that the ratio is 1
        before the first step.
        """
        points = rollout.extras["trace"]
        old, _ = self.step_normals(state.actor.params, rollout.obs, points)
        updated: tuple[DPPOState, Metrics] = chains.update(self, state, rollout, points, old, key)
        return updated

    # Acting

    def points(self, state: DPPOState, obs: PyTree, key: Key, exploring: bool) -> Array:
        """Return the points before, between and after the fine-tuned steps ``[..., K' + 1, A]``.

        The pre-trained policy takes the steps before these.
        """
        policy, frozen = self.policy, self.frozen_steps
        shape = (*batch_shape(policy, obs), policy.action_dim)
        first, noise = normals(key, policy.chain_steps, shape)
        if frozen:
            predict = policy.predictor(state.pretrained, obs)
            before = policy.chain(predict, first, noise, exploring, slice(0, frozen))
            first = before[..., -1, :]
        predict = policy.predictor(state.actor.params, obs)
        points: Array = policy.chain(predict, first, noise, exploring, slice(frozen, None))
        return points

    def act(
        self, state: DPPOState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return a sampled action with its chain in the extras.

        If ``greedy``, the steps have the policy's own noise, without ``min_std``.
        """
        greedy = mode == "greedy"
        points = self.points(state, obs, key, not greedy)
        action = jnp.clip(points[..., -1, :], -1.0, 1.0)
        return action, carry, {} if greedy else {"trace": points}
