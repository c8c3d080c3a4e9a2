"""ReinFlow: PPO on the chains of a flow with noisy steps.

(Zhang et al. 2025, "ReinFlow: Fine-tuning Flow Matching Policy with Online Reinforcement
Learning".)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, losses
from jaxrl.agents import chains, minibatches, protocol
from jaxrl.agents.chains import Minibatch
from jaxrl.hyper import number, part, size
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.distributions import Normal
from jaxrl.nn.flow import NoisyFlow
from jaxrl.optim import Adam, Trained
from jaxrl.require import require
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition


class ReinFlowState(NamedTuple):
    """The policy, the value function, and the number of updates."""

    actor: Trained
    critic: Trained
    updates: Array  # int32, calls of ``update``


@hyper.dataclass
class ReinFlow:
    """PPO on a flow policy whose steps add noise with a learnt standard deviation.

    An action has one probability ratio, for its whole chain. Log-densities are means over steps
    and action elements, so the clipping range is small. The value function depends only on the
    state. In greedy mode, the fine-tuned flow acts without noise. Pre-train a ``Flow`` with ``BC``
    and pass it in with ``run(..., policy_from=RUN)``; the network of the standard deviations starts
    fresh.

    Defaults follow the authors' code for Hopper, except for the policy's sizes. Departures:
    log-densities are not bounded, and the noise is not clipped; the mean over steps excludes the
    initial noise, whose density is the same for all policies; an epoch has each row once instead of
    ten times, in as many minibatches of a tenth the size; the range of standard deviations does not
    shrink; learning rates either stay constant or fall linearly; and ``target_kl`` is None (theirs,
    1, is never reached).
    """

    learns_from: ClassVar = "rollouts"
    policy_at: ClassVar = ("actor.params",)

    policy: Any = part(NoisyFlow(), help="flow policy with noise in every step")
    critic: Any = part(
        ValueFunction(hidden_dims=(256, 256, 256), activation="mish"), help="value function"
    )
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(4.5e-5, above=0, help="step size of the policy")
    critic_learning_rate: float = number(6.5e-4, above=0, help="step size of the value function")
    lr_decay_steps: float = number(
        0.0, 0, help="updates over which the learning rates fall linearly to 0; 0: constant rates"
    )
    gamma: float = number(0.99, 0, 1, help="discount")
    gae_lambda: float = number(0.95, 0, 1, help="lambda of the advantage estimates")
    clip_eps: float = number(0.01, above=0, help="clipping range of the probability ratio")
    entropy_coef: float = number(
        0.03, 0, help="weight of the entropy bonus, a mean over steps and action elements"
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

    def bind(self, spec: Spec) -> ReinFlow:
        """Return the agent for ``spec``.

        Raises:
            UsageError: for discrete actions, and unless the policy is a noisy flow.
        """
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["stds", "step_normals"], "NoisyFlow")
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def check(self, rows: int) -> None:
        """Raise UsageError for sizes that do not divide, or ``std_min`` above ``std_max``."""
        minibatches.check_divides(self.num_minibatches, rows, least=2)
        require("policy.std_max", self.policy.std_max, self.policy.std_min)

    def init(self, key: Key) -> ReinFlowState:
        """Return fresh networks."""
        policy_key, critic_key = jax.random.split(key)
        return ReinFlowState(
            actor=self.optimizer.start(self.policy.init(policy_key)),
            critic=self.optimizer.start(self.critic.init(critic_key)),
            updates=jnp.int32(0),
        )

    # Losses

    def log_prob(self, params: PyTree, obs: PyTree, points: Array) -> tuple[Array, Array]:
        """Return the mean log-density ``[B]`` of a chain's steps, and their mean entropy ``[]``.

        Both are means over the K steps and A elements of ``points[B, K + 1, A]``.
        """
        mean, std = self.policy.step_normals(params, obs, points)
        entropy = jnp.mean(jnp.log(std)) + 0.5 * (1.0 + math.log(2.0 * math.pi))
        each = Normal(mean, std).log_probs(points[..., 1:, :])
        return jnp.mean(each, axis=(-2, -1)), entropy

    def actor_loss(self, params: PyTree, batch: Minibatch) -> tuple[Array, Metrics]:
        """``-mean min(r A, clip(r, 1 - eps, 1 + eps) A) - c_e H`` over ``[B]``."""
        log_prob, entropy = self.log_prob(params, batch.obs, batch.points)
        advantage = losses.normalised(batch.advantage)
        loss, metrics = chains.clipped_loss(log_prob - batch.old, advantage, self.clip_eps)
        return loss - self.entropy_coef * entropy, metrics | {"entropy": mean_of(entropy)}

    # Update

    def update(
        self, state: ReinFlowState, rollout: Transition, key: Key
    ) -> tuple[ReinFlowState, Metrics]:
        """Epochs of minibatch steps on a rollout ``[T, N]``.

        The log-density of the acting policy is recomputed from its parameters, so that the ratio
        is 1 before the first step.
        """
        points = rollout.extras["trace"]
        old, _ = self.log_prob(state.actor.params, rollout.obs, points)
        updated: tuple[ReinFlowState, Metrics] = chains.update(
            self, state, rollout, points, old, key
        )
        return updated

    # Acting

    def act(
        self, state: ReinFlowState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return a sampled action with its chain in the extras; if ``greedy``, the flow's."""
        if mode == "greedy":
            return self.policy.mode(state.actor.params, obs, key), carry, {}
        action, trace = self.policy.sample(state.actor.params, obs, key)
        return action, carry, {"trace": trace.points}
