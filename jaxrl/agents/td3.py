"""TD3 (Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods")."""

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
from jaxrl.nn.policies import Deterministic
from jaxrl.optim import Adam, Trained
from jaxrl.require import require
from jaxrl.rng import clipped_normal, row_key, split_if
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec

ActorQ = Literal["first", "min", "mean"]


class TD3State(NamedTuple):
    """The trained networks and their target networks."""

    actor: Trained
    critic: Trained
    target_actor: PyTree  # () without a target actor
    target_critic: PyTree


@hyper.dataclass
class TD3:
    """Twin delayed deep deterministic policy gradient.

    The defaults follow the authors' code, which differs from the paper only in sizes and rates:
    targets use the minimum over two critics and noisy next actions, the actor maximises the first
    critic, and the actor and target networks are updated on every second step.

    For thousands of environments (Seo et al. 2025, "FastTD3"): ``exploration_noise_max`` gives
    each episode its own standard deviation, ``target_actor=False`` takes next actions from the
    learnt policy and updates target critics on every step, ``actor_q="min"``, ``tau=0.1``.
    FastTD3's critics are distributions over fixed atoms; these are not.
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("actor.params", "target_actor")

    policy: Any = part(Deterministic(), help="policy family")
    critic: Any = part(Critic(), help="ensemble of critics")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(3e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of the critics")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target networks")
    exploration_noise: float = number(
        0.1, 0, help="standard deviation of the noise on actions, in units of [-1, 1]"
    )
    exploration_noise_max: float | None = number(
        None, 0, help="draw each episode's noise std uniformly from exploration_noise to this"
    )
    policy_noise: float = number(0.2, 0, help="standard deviation of the noise on next actions")
    noise_clip: float = number(0.5, 0, help="next actions' noise is clipped to +- this")
    policy_delay: int = size(2, help="gradient steps from one update of the actor to the next")
    num_min_critics: int | None = size(
        None, help="targets use the minimum over this many critics, drawn for each step; None: all"
    )
    actor_q: ActorQ = choice("first", ActorQ, help="how the actor's loss combines the critics")
    target_actor: bool = flag(
        True, help="take next actions from a target policy, updated when the policy is"
    )

    def bind(self, spec: Spec) -> TD3:
        """Return the agent for ``spec``.

        Raises:
            UsageError: for discrete actions, or a policy whose best action may leave [-1, 1].
        """
        protocol.require_continuous(self, spec)
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        protocol.require_squashing(self, policy)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def check(self, rows: int) -> None:
        """Raise UsageError for inconsistent hyper-parameters."""
        protocol.require_enough_critics(self)
        require("exploration_noise_max", self.exploration_noise_max, self.exploration_noise)

    def init(self, key: Key) -> TD3State:
        """Return fresh networks."""
        actor_key, critic_key = jax.random.split(key)
        actor, critic = self.policy.init(actor_key), self.critic.init(critic_key)
        return TD3State(
            actor=self.optimizer.start(actor),
            critic=self.optimizer.start(critic),
            target_actor=jax.tree.map(jnp.copy, actor) if self.target_actor else (),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: TD3State, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where

        ``y = r + discount min_j Q'_j(s', clip(pi'(s') + clip(epsilon)))``.
        """
        noise_key, subset_key = split_if(self.num_min_critics is not None, key)
        actor = state.target_actor if self.target_actor else state.actor.params
        next_action = self.policy.mode(actor, batch.next_obs)
        noise = clipped_normal(noise_key, next_action.shape, self.policy_noise, self.noise_clip)
        next_action = jnp.clip(next_action + noise, -1.0, 1.0)
        next_q = self.critic(state.target_critic, batch.next_obs, next_action)
        next_q = min_over_critics(next_q, self.num_min_critics, subset_key)
        target = batch.reward + batch.discount * next_q
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    def actor_loss(self, params: PyTree, state: TD3State, batch: Batch) -> tuple[Array, None]:
        """``-mean Q_1(s, pi(s))``; ``actor_q`` may use the minimum or mean over critics instead."""
        action = self.policy.mode(params, batch.obs)
        if self.actor_q == "first":
            return -jnp.mean(self.critic.one(state.critic.params, batch.obs, action)), None
        q = self.critic(state.critic.params, batch.obs, action)
        return -jnp.mean(jnp.min(q, axis=0) if self.actor_q == "min" else q), None

    # Update

    def update(
        self, state: TD3State, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[TD3State, Metrics]:
        """One gradient step on ``[B]``: critics, then actor and target networks."""
        minimize = self.optimizer.minimize
        critic, aux, metrics = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, state, batch, key
        )
        metrics |= aux
        state = state._replace(critic=critic)
        if update_actor:
            actor, _, more = minimize(
                self.actor_loss, state.actor, self.actor_learning_rate, state, batch
            )
            state, metrics = state._replace(actor=actor), merged(metrics, more)
        if update_actor or not self.target_actor:
            state = self.update_targets(state)
        return state, metrics

    def update_targets(self, state: TD3State) -> TD3State:
        """Return the state with target networks moved a step of ``tau`` towards the networks."""
        critic = optim.polyak(state.target_critic, state.critic.params, self.tau)
        actor = state.target_actor
        if self.target_actor:
            actor = optim.polyak(actor, state.actor.params, self.tau)
        return state._replace(target_actor=actor, target_critic=critic)

    # Acting

    def init_carry(self, key: Key, n: int) -> PyTree:
        """Return the noise deviations ``[n, 1]`` of ``n`` new episodes; ``()`` if all are equal."""
        if self.exploration_noise_max is None:
            return ()
        low, high = self.exploration_noise, self.exploration_noise_max
        return low + (high - low) * jax.random.uniform(row_key(key), (n, 1))

    def act(
        self, state: TD3State, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return the policy's action ``[..., A]``, with noise unless ``greedy``, and the carry."""
        action = self.policy.mode(state.actor.params, obs)
        if mode == "greedy":
            return action, carry, {}
        std = self.exploration_noise if self.exploration_noise_max is None else carry
        noise = std * jax.random.normal(row_key(key), action.shape)
        return jnp.clip(action + noise, -1.0, 1.0), carry, {}
