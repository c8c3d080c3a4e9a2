"""TD3+BC (Fujimoto and Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.hyper import number, part, size
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import Deterministic
from jaxrl.optim import Adam, Trained
from jaxrl.rng import clipped_normal, row_key
from jaxrl.sharding import shard_mean
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class TD3BCState(NamedTuple):
    """The trained networks and their target networks."""

    actor: Trained
    critic: Trained
    target_actor: PyTree
    target_critic: PyTree


@hyper.dataclass
class TD3BC:
    """TD3 whose actor also imitates the data.

    ``bc_alpha`` weights the Q-values, divided by their mean absolute value, against squared errors
    of actions; with 0 the actor only clones. The paper normalises observations
    (``NormalizeObs(agent, frozen=True)``). The defaults follow the authors' code.
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("actor.params", "target_actor")

    policy: Any = part(Deterministic(), help="policy family")
    critic: Any = part(Critic(), help="ensemble of critics")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(3e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of the critics")
    bc_alpha: float = number(2.5, 0, help="weight of Q relative to imitation; 0 only imitates")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target networks")
    exploration_noise: float = number(
        0.1, 0, help="standard deviation of the noise on actions, in units of [-1, 1]"
    )
    policy_noise: float = number(0.2, 0, help="standard deviation of the noise on next actions")
    noise_clip: float = number(0.5, 0, help="next actions' noise is clipped to +- this")
    policy_delay: int = size(2, help="gradient steps from one update of the actor to the next")

    def bind(self, spec: Spec) -> TD3BC:
        """Return the agent for ``spec``.

        Raises:
            UsageError: for discrete actions, or a policy whose best action may leave [-1, 1].
        """
        protocol.require_continuous(self, spec)
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        protocol.require_squashing(self, policy)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def init(self, key: Key) -> TD3BCState:
        """Return fresh networks."""
        actor_key, critic_key = jax.random.split(key)
        actor, critic = self.policy.init(actor_key), self.critic.init(critic_key)
        return TD3BCState(
            actor=self.optimizer.start(actor),
            critic=self.optimizer.start(critic),
            target_actor=jax.tree.map(jnp.copy, actor),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: TD3BCState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where

        ``y = r + discount min_j Q'_j(s', clip(pi'(s') + clip(epsilon)))``.
        """
        next_action = self.policy.mode(state.target_actor, batch.next_obs)
        noise = clipped_normal(key, next_action.shape, self.policy_noise, self.noise_clip)
        next_action = jnp.clip(next_action + noise, -1.0, 1.0)
        next_q = jnp.min(self.critic(state.target_critic, batch.next_obs, next_action), axis=0)
        target = batch.reward + batch.discount * next_q
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    def actor_loss(self, params: PyTree, state: TD3BCState, batch: Batch) -> tuple[Array, Metrics]:
        """``-lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2``, ``lambda = alpha / mean |Q_1|``.

        The second mean is also over action elements.
        """
        action = self.policy.mode(params, batch.obs)
        q = self.critic.one(state.critic.params, batch.obs, action)
        weight = self.bc_alpha / stop_gradient(shard_mean(jnp.mean(jnp.abs(q))))
        imitation = jnp.mean(jnp.square(action - batch.action))
        return imitation - weight * jnp.mean(q), {"bc_loss": mean_of(imitation)}

    # Update

    def update(
        self, state: TD3BCState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[TD3BCState, Metrics]:
        """One gradient step on ``[B]``: critics, then actor and target networks."""
        minimize = self.optimizer.minimize
        critic, aux, metrics = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, state, batch, key
        )
        metrics |= aux
        state = state._replace(critic=critic)
        if not update_actor:
            return state, metrics
        actor, aux, more = minimize(
            self.actor_loss, state.actor, self.actor_learning_rate, state, batch
        )
        state = TD3BCState(
            actor=actor,
            critic=critic,
            target_actor=optim.polyak(state.target_actor, actor.params, self.tau),
            target_critic=optim.polyak(state.target_critic, critic.params, self.tau),
        )
        return state, merged(metrics, more | aux)

    # Acting

    def act(
        self, state: TD3BCState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return the policy's action ``[..., A]``, with noise unless ``greedy``, and the carry."""
        action = self.policy.mode(state.actor.params, obs)
        if mode == "greedy":
            return action, carry, {}
        noise = self.exploration_noise * jax.random.normal(row_key(key), action.shape)
        return jnp.clip(action + noise, -1.0, 1.0), carry, {}
