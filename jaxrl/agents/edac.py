"""EDAC (An et al. 2021, "Uncertainty-Based Offline Reinforcement Learning with Diversified
Q-Ensemble")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.errors import UsageError
from jaxrl.hyper import number, part, size
from jaxrl.losses import safe_norm
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import TanhGaussian
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class EDACState(NamedTuple):
    """The trained networks, the temperature, and the target critics."""

    actor: Trained
    critic: Trained
    log_alpha: Trained
    target_critic: PyTree


_SIZES: dict[str, Any] = {"hidden_dims": (256, 256, 256), "initializer": "small_head"}


@hyper.dataclass
class EDAC:
    """SAC with an ensemble of critics whose gradients with respect to the action are diversified.

    The minimum over many critics penalises actions on which they disagree, which are those outside
    the data. ``diversity_coef`` pushes apart critics that agree around the data's actions, so that
    ten critics do the work of hundreds; with 0 this is SAC-N. The defaults follow the authors'
    code, whose sizes and coefficients depend on the data, as the presets do.
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("actor.params",)

    policy: Any = part(
        TanhGaussian(log_std_range=(-5.0, 2.0), head_scale=1 / 3, **_SIZES), help="policy family"
    )
    critic: Any = part(Critic(num_critics=10, **_SIZES), help="ensemble of critics")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(3e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of the critics")
    alpha_learning_rate: float = number(3e-4, 0, help="step size of log alpha; 0 keeps alpha")
    diversity_coef: float = number(1.0, 0, help="weight of the similarity of critics' gradients")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    initial_alpha: float = number(1.0, above=0, help="initial temperature")
    target_entropy: float = number(-1.0, help="entropy per action element, in nats")
    policy_delay: int = size(1, help="gradient steps from one update of the actor to the next")

    def bind(self, spec: Spec) -> EDAC:
        """Return the agent for ``spec``. Raises UsageError for discrete actions."""
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["dist"], "TanhGaussian")
        protocol.require_methods(self, "critic", ["with_gradients"], "Critic")
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def check(self, rows: int) -> None:
        """Raise UsageError for a single critic: diversity needs at least two."""
        if self.critic.num_critics < 2:
            found = self.critic.num_critics
            raise UsageError(f"critic.num_critics is {found}; EDAC needs at least 2, such as 10")

    def init(self, key: Key) -> EDACState:
        """Return fresh networks."""
        actor_key, critic_key = jax.random.split(key)
        critic = self.critic.init(critic_key)
        return EDACState(
            actor=self.optimizer.start(self.policy.init(actor_key)),
            critic=self.optimizer.start(critic),
            log_alpha=self.optimizer.start(jnp.log(jnp.float32(self.initial_alpha))),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: EDACState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2 + diversity_coef ES``, where ``a' ~ pi`` and

        ``y = r + discount (min_j Q'_j(s', a') - alpha log pi(a' | s'))``.
        """
        next_action, trace = self.policy.dist(state.actor.params, batch.next_obs).sample(key)
        next_q = self.critic(state.target_critic, batch.next_obs, next_action)
        alpha = jnp.exp(state.log_alpha.params)
        next_value = jnp.min(next_q, axis=0) - alpha * trace.log_prob
        target = batch.reward + batch.discount * next_value
        q, gradient = self.critic.with_gradients(params, batch.obs, batch.action)
        similarity = self.similarity(gradient)
        loss = jnp.sum(jnp.mean(jnp.square(q - target), axis=-1))
        metrics: Metrics = {"q": mean_of(q), "similarity": mean_of(similarity)}
        return loss + self.diversity_coef * similarity, metrics

    def similarity(self, gradient: Array) -> Array:
        """``ES = mean 1 / (E - 1) sum_{i != j} <g_i, g_j>``, where ``g_i`` is a unit gradient.

        ``gradient[E, B, A]`` is the gradient of each Q_i with respect to a. ES is E for identical
        critics, and smallest where the unit gradients sum to zero.
        """
        unit = gradient / (safe_norm(gradient) + 1e-10)
        pairs = jnp.sum(jnp.square(jnp.sum(unit, axis=0)), axis=-1)
        alone = jnp.sum(jnp.square(unit), axis=(0, -1))
        return jnp.mean(pairs - alone) / (self.critic.num_critics - 1)

    def actor_loss(
        self, params: PyTree, state: EDACState, batch: Batch, key: Key
    ) -> tuple[Array, Array]:
        """``mean (alpha log pi(a | s) - min_i Q_i(s, a))``, ``a ~ pi``; and the entropy."""
        action, trace = self.policy.dist(params, batch.obs).sample(key)
        q = self.critic(state.critic.params, batch.obs, action)
        alpha = jnp.exp(state.log_alpha.params)
        return jnp.mean(alpha * trace.log_prob - jnp.min(q, axis=0)), -jnp.mean(trace.log_prob)

    def alpha_loss(self, log_alpha: Array, entropy: Array) -> tuple[Array, None]:
        """``alpha (H - H_target)``."""
        target = self.target_entropy * self.policy.action_dim
        return jnp.exp(log_alpha) * (entropy - target), None

    # Update

    def update(
        self, state: EDACState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[EDACState, Metrics]:
        """One gradient step on ``[B]``: critics; actor and temperature; target critics."""
        critic_key, actor_key = jax.random.split(key)
        minimize = self.optimizer.minimize
        critic, aux, metrics = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, state, batch, critic_key
        )
        metrics |= aux
        state = state._replace(critic=critic)
        if update_actor:
            actor, entropy, more = minimize(
                self.actor_loss, state.actor, self.actor_learning_rate, state, batch, actor_key
            )
            log_alpha, _, last = minimize(
                self.alpha_loss, state.log_alpha, self.alpha_learning_rate, entropy
            )
            state = state._replace(actor=actor, log_alpha=log_alpha)
            alpha = mean_of(jnp.exp(log_alpha.params))
            metrics = merged(merged(metrics, more), last)
            metrics |= {"entropy": mean_of(entropy), "alpha": alpha}
        target = optim.polyak(state.target_critic, state.critic.params, self.tau)
        return state._replace(target_critic=target), metrics

    # Acting

    def act(
        self, state: EDACState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an action ``[..., A]`` (a sample, or the mode if ``greedy``), carry and extras."""
        if mode == "greedy":
            return self.policy.mode(state.actor.params, obs, key), carry, {}
        return self.policy.sample(state.actor.params, obs, key)[0], carry, {}
