"""Diffusion-QL (Wang et al. 2022, "Diffusion Policies as an Expressive Policy Class for Offline
Reinforcement Learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.agents.improvement import Softmax, candidates
from jaxrl.errors import UsageError
from jaxrl.hyper import choice, number, part, size
from jaxrl.losses import OverCritics, over_critics
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.diffusion import Diffusion
from jaxrl.optim import Adam, Trained
from jaxrl.sharding import shard_mean
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class DiffusionQLState(NamedTuple):
    """The trained networks, their moving averages, and the number of gradient steps."""

    actor: Trained
    critic: Trained
    target_actor: PyTree
    target_critic: PyTree
    gradient_steps: Array  # int32


_SIZES: dict[str, Any] = {"hidden_dims": (256, 256, 256), "activation": "mish"}


@hyper.dataclass
class DiffusionQL:
    """A diffusion policy that imitates the data and maximises Q through all denoising steps.

    To act, it draws one of 50 samples according to their values. The moving average of the policy
    gives next actions in targets; the policy itself acts. The defaults follow the authors' code,
    where ``eta``, ``num_next_actions`` (10 where they use max-Q backup) and
    ``optimizer.max_grad_norm`` depend on the data, as in the presets.
    """

    learns_from: ClassVar = "batches"
    imitates: ClassVar = ("policy",)
    policy_at: ClassVar = ("actor.params", "target_actor")

    policy: Any = part(Diffusion(**_SIZES), help="policy family")
    critic: Any = part(Critic(**_SIZES), help="ensemble of critics")
    improver: Any = part(Softmax(), help="how an action is chosen by the target critics")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(3e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of the critics")
    eta: float = number(1.0, 0, help="weight of values against imitation; 0 only imitates")
    num_next_actions: int = size(
        1, help="next actions per target, which uses the largest Q of each critic over them"
    )
    target_q: OverCritics = choice("min", OverCritics, help="how targets combine the critics")
    pessimism: float = number(0.0, 0, help="standard deviations over critics subtracted in targets")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    ema_decay: float = number(
        0.995, 0, 1, help="decay of the policy's moving average, each time it is updated"
    )
    ema_every: int = size(5, help="gradient steps between updates of the moving average")
    ema_start: int = size(1_000, 0, help="gradient steps before the moving average is updated")
    policy_delay: int = size(1, help="gradient steps from one update of the actor to the next")

    def bind(self, spec: Spec) -> DiffusionQL:
        """Return the agent for ``spec``. Raises UsageError for discrete actions."""
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["sample", "errors"], "Diffusion")
        protocol.require_methods(self, "improver", ["improve"], "Softmax")
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def check(self, rows: int) -> None:
        """Raise UsageError for a single critic: the actor's loss scales one critic by another."""
        if self.critic.num_critics < 2:
            found = self.critic.num_critics
            raise UsageError(f"critic.num_critics is {found}; DiffusionQL needs at least 2")

    def init(self, key: Key) -> DiffusionQLState:
        """Return fresh networks."""
        actor_key, critic_key = jax.random.split(key)
        actor, critic = self.policy.init(actor_key), self.critic.init(critic_key)
        return DiffusionQLState(
            actor=self.optimizer.start(actor),
            critic=self.optimizer.start(critic),
            target_actor=jax.tree.map(jnp.copy, actor),
            target_critic=jax.tree.map(jnp.copy, critic),
            gradient_steps=jnp.int32(0),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: DiffusionQLState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where

        ``y = r + discount min_j max_k Q'_j(s', a'_k)`` for ``num_next_actions`` samples ``a'_k`` of
        the averaged policy. ``target_q`` can replace the minimum with the mean over critics;
        ``pessimism`` standard deviations over critics are subtracted.
        """
        count = self.num_next_actions
        next_actions = candidates(self.policy, state.target_actor, batch.next_obs, key, count)
        next_q = self.critic(state.target_critic, batch.next_obs, next_actions)
        next_value = over_critics(jnp.max(next_q, axis=1), self.target_q, self.pessimism)
        target = batch.reward + batch.discount * next_value
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    def actor_loss(
        self, params: PyTree, state: DiffusionQLState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``L_bc - eta mean Q_c(s, a) / mean |Q_o(s, a)|``, ``a ~ pi``, for random critics c != o.

        ``L_bc`` is the family's imitation loss, averaged over action elements.
        """
        imitation_key, action_key, critic_key = jax.random.split(key, 3)
        errors = self.policy.errors(params, batch.obs, batch.action, imitation_key)
        action = jnp.clip(self.policy.sample(params, batch.obs, action_key)[0], -1.0, 1.0)
        chosen, other = jax.random.permutation(critic_key, self.critic.num_critics)[:2]
        # Gradients flow through one critic only.
        known = state.critic.params
        q = self.critic.one(known, batch.obs, action, chosen)
        scale = self.critic.one(known, batch.obs, stop_gradient(action), other)
        scale = shard_mean(jnp.mean(jnp.abs(scale)))
        imitation = jnp.mean(errors)
        return imitation - self.eta * jnp.mean(q) / scale, {"bc_loss": mean_of(imitation)}

    # Update

    def update(
        self, state: DiffusionQLState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[DiffusionQLState, Metrics]:
        """One gradient step on ``[B]``: critics, policy and its average, target critics."""
        critic_key, actor_key = jax.random.split(key)
        minimize = self.optimizer.minimize
        critic, aux, metrics = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, state, batch, critic_key
        )
        metrics |= aux
        state = state._replace(critic=critic)
        if update_actor:
            actor, aux, more = minimize(
                self.actor_loss, state.actor, self.actor_learning_rate, state, batch, actor_key
            )
            state, metrics = state._replace(actor=actor), merged(metrics, more | aux)
        averaging = state.gradient_steps % self.ema_every == 0
        averaging &= state.gradient_steps >= self.ema_start
        step = jnp.where(averaging, 1.0 - self.ema_decay, 0.0)
        state = state._replace(
            target_actor=optim.polyak(state.target_actor, state.actor.params, step),
            target_critic=optim.polyak(state.target_critic, critic.params, self.tau),
            gradient_steps=state.gradient_steps + 1,
        )
        return state, metrics

    # Acting

    def act(
        self, state: DiffusionQLState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return a sample ``[..., A]`` of the policy in every mode, and the carry.

        ``improver`` chooses it by ``min_i Q'_i``.
        """
        sample_key, choice_key = jax.random.split(key)
        count = self.improver.num_candidates
        actions = candidates(self.policy, state.actor.params, obs, sample_key, count)

        def q(actions: Array) -> Array:
            return jnp.min(self.critic(state.target_critic, obs, actions), axis=0)

        return self.improver.improve(q, actions, choice_key), carry, {}
