"""ReBRAC (Tarasov et al. 2023, "Revisiting the Minimalist Approach to Offline Reinforcement
Learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.hyper import flag, number, part, size
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import Deterministic
from jaxrl.optim import Adam, Trained
from jaxrl.rng import clipped_normal, row_key
from jaxrl.sharding import shard_mean
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class ReBRACState(NamedTuple):
    """The trained networks and their target networks."""

    actor: Trained
    critic: Trained
    target_actor: PyTree
    target_critic: PyTree


_ACTOR: dict[str, Any] = {"hidden_dims": (256, 256, 256), "initializer": "small_head"}
_CRITIC: dict[str, Any] = _ACTOR | {"post_norm": True}


@hyper.dataclass
class ReBRAC:
    """TD3 with behaviour cloning in both the actor's and the critics' losses, and larger networks.

    ``actor_bc`` and ``critic_bc`` depend on the data; the presets have the authors' values. For
    locomotion, batches have 1,024 rows and learning rates are 1e-3; elsewhere batches have 256.
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("actor.params", "target_actor")
    batch_extras: ClassVar = ("next_action", "has_next_action")

    policy: Any = part(Deterministic(head_scale=1 / 3, **_ACTOR), help="policy family")
    critic: Any = part(Critic(**_CRITIC), help="ensemble of critics")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(1e-3, above=0, help="step size of the policy")
    critic_learning_rate: float = number(1e-3, above=0, help="step size of the critics")
    actor_bc: float = number(0.01, 0, help="weight of imitation in the actor's loss")
    critic_bc: float = number(
        0.01, 0, help="weight of the targets' penalty on next actions that differ from the data's"
    )
    normalize_q: bool = flag(True, help="divide Q in the actor's loss by its mean absolute value")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target networks")
    exploration_noise: float = number(
        0.1, 0, help="standard deviation of the noise on actions, in units of [-1, 1]"
    )
    policy_noise: float = number(0.2, 0, help="standard deviation of the noise on next actions")
    noise_clip: float = number(0.5, 0, help="next actions' noise is clipped to +- this")
    policy_delay: int = size(2, help="gradient steps from one update of the actor to the next")

    def bind(self, spec: Spec) -> ReBRAC:
        """Return the agent for ``spec``.

        Raises:
            UsageError: for discrete actions, or a policy whose best action may leave [-1, 1].
        """
        protocol.require_continuous(self, spec)
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        protocol.require_squashing(self, policy)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def init(self, key: Key) -> ReBRACState:
        """Return fresh networks."""
        actor_key, critic_key = jax.random.split(key)
        actor, critic = self.policy.init(actor_key), self.critic.init(critic_key)
        return ReBRACState(
            actor=self.optimizer.start(actor),
            critic=self.optimizer.start(critic),
            target_actor=jax.tree.map(jnp.copy, actor),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: ReBRACState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where

        ``y = r + discount (min_j Q'_j(s', a') - critic_bc |a' - a'_data|^2)`` and
        ``a' = clip(pi'(s') + clip(epsilon))``. There is no penalty where the data have no next
        action, for example at the end of a truncated episode.
        """
        next_action = self.policy.mode(state.target_actor, batch.next_obs)
        noise = clipped_normal(key, next_action.shape, self.policy_noise, self.noise_clip)
        next_action = jnp.clip(next_action + noise, -1.0, 1.0)
        next_q = jnp.min(self.critic(state.target_critic, batch.next_obs, next_action), axis=0)
        distance = jnp.sum(jnp.square(next_action - batch.extras["next_action"]), axis=-1)
        penalty = self.critic_bc * jnp.where(batch.extras["has_next_action"], distance, 0.0)
        target = batch.reward + batch.discount * (next_q - penalty)
        q = self.critic(params, batch.obs, batch.action)
        metrics: Metrics = {"q": mean_of(q), "critic_bc_loss": mean_of(penalty)}
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), metrics

    def actor_loss(self, params: PyTree, state: ReBRACState, batch: Batch) -> tuple[Array, Metrics]:
        """``mean (actor_bc |pi(s) - a|^2 - lambda min_i Q_i(s, pi(s)))``.

        ``lambda = 1 / mean |min_i Q_i|``, or 1 without ``normalize_q``.
        """
        action = self.policy.mode(params, batch.obs)
        q = jnp.min(self.critic(state.critic.params, batch.obs, action), axis=0)
        scale = stop_gradient(shard_mean(jnp.mean(jnp.abs(q)))) if self.normalize_q else 1.0
        imitation = jnp.mean(jnp.sum(jnp.square(action - batch.action), axis=-1))
        loss = self.actor_bc * imitation - jnp.mean(q) / scale
        return loss, {"bc_loss": mean_of(imitation)}

    # Update

    def update(
        self, state: ReBRACState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[ReBRACState, Metrics]:
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
        state = ReBRACState(
            actor=actor,
            critic=critic,
            target_actor=optim.polyak(state.target_actor, actor.params, self.tau),
            target_critic=optim.polyak(state.target_critic, critic.params, self.tau),
        )
        return state, merged(metrics, more | aux)

    # Acting

    def act(
        self, state: ReBRACState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return the policy's action ``[..., A]``, with noise unless ``greedy``, and the carry."""
        action = self.policy.mode(state.actor.params, obs)
        if mode == "greedy":
            return action, carry, {}
        noise = self.exploration_noise * jax.random.normal(row_key(key), action.shape)
        return jnp.clip(action + noise, -1.0, 1.0), carry, {}
