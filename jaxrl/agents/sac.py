"""SAC (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.hyper import choice, flag, number, part, size
from jaxrl.losses import min_over_critics
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import TanhGaussian
from jaxrl.optim import Adam, Trained
from jaxrl.rng import split_if
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec

ActorQ = Literal["min", "mean"]


class SACState(NamedTuple):
    """The trained networks, the temperature, and the target critics."""

    actor: Trained
    critic: Trained
    log_alpha: Trained
    target_critic: PyTree


@hyper.dataclass
class SAC:
    """Soft actor-critic with an ensemble of critics and a learned temperature.

    The defaults are the paper's. Options cover three published variants: half the target entropy
    (``target_entropy=-0.5``), an actor that is updated on every second step (``policy_delay=2``),
    and REDQ (Chen et al. 2021, "Randomized Ensembled Double Q-Learning": ten critics,
    ``num_min_critics=2``, ``actor_q="mean"``, ``policy_delay=20`` and 20 gradient steps per
    environment step; RLPD adds ``critic.layer_norm``, ``xavier`` initialisation and offline data).
    With n-step returns, targets omit the entropy of the intermediate actions.

    Entropy refers to actions in [-1, 1]. It differs by ``sum log((high - low) / 2)`` from the
    entropy in the environment's units.
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("actor.params",)

    policy: Any = part(TanhGaussian(), help="policy family")
    critic: Any = part(Critic(), help="ensemble of critics")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(3e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of the critics")
    alpha_learning_rate: float = number(3e-4, 0, help="step size of log alpha; 0 keeps alpha")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    initial_alpha: float = number(1.0, above=0, help="initial temperature")
    target_entropy: float = number(-1.0, help="entropy per action element, in nats")
    policy_delay: int = size(1, help="gradient steps from one update of the actor to the next")
    num_min_critics: int | None = size(
        None, help="targets use the minimum over this many critics, drawn for each step; None: all"
    )
    actor_q: ActorQ = choice("min", ActorQ, help="how the actor's loss combines the critics")
    backup_entropy: bool = flag(True, help="include the next action's entropy in targets")

    def bind(self, spec: Spec) -> SAC:
        """Return the agent for ``spec``. Raises UsageError for discrete actions."""
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["dist"], "TanhGaussian")
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def check(self, rows: int) -> None:
        """Raise UsageError for inconsistent sizes."""
        protocol.require_enough_critics(self)

    def init(self, key: Key) -> SACState:
        """Return fresh networks."""
        actor_key, critic_key = jax.random.split(key)
        critic = self.critic.init(critic_key)
        return SACState(
            actor=self.optimizer.start(self.policy.init(actor_key)),
            critic=self.optimizer.start(critic),
            log_alpha=self.optimizer.start(jnp.log(jnp.float32(self.initial_alpha))),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: SACState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where ``a' ~ pi`` and

        ``y = r + discount (min_j Q'_j(s', a') - alpha log pi(a' | s'))``, if ``backup_entropy``.
        """
        next_key, subset_key = split_if(self.num_min_critics is not None, key)
        next_action, trace = self.policy.dist(state.actor.params, batch.next_obs).sample(next_key)
        next_q = self.critic(state.target_critic, batch.next_obs, next_action)
        next_q = min_over_critics(next_q, self.num_min_critics, subset_key)
        if self.backup_entropy:
            next_q -= jnp.exp(state.log_alpha.params) * trace.log_prob
        target = batch.reward + batch.discount * next_q
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    def actor_loss(
        self, params: PyTree, state: SACState, batch: Batch, key: Key
    ) -> tuple[Array, Array]:
        """``mean (alpha log pi(a | s) - min_i Q_i(s, a))`` (or mean over i); and the entropy."""
        action, trace = self.policy.dist(params, batch.obs).sample(key)
        q = self.critic(state.critic.params, batch.obs, action)
        q = jnp.min(q, axis=0) if self.actor_q == "min" else jnp.mean(q, axis=0)
        alpha = jnp.exp(state.log_alpha.params)
        return jnp.mean(alpha * trace.log_prob - q), -jnp.mean(trace.log_prob)

    def alpha_loss(self, log_alpha: Array, entropy: Array) -> tuple[Array, None]:
        """``alpha (H - H_target)``."""
        target = self.target_entropy * self.policy.action_dim
        return jnp.exp(log_alpha) * (entropy - target), None

    # Update

    def update(
        self, state: SACState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[SACState, Metrics]:
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
        self, state: SACState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an action ``[..., A]`` (a sample, or the mode if ``greedy``), carry and extras."""
        if mode == "greedy":
            return self.policy.mode(state.actor.params, obs, key), carry, {}
        return self.policy.sample(state.actor.params, obs, key)[0], carry, {}
