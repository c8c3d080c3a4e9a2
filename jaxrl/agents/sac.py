"""SAC (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications")."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.agents.actor_critic import Stochastic
from jaxrl.agents.replayed import ReplayedState
from jaxrl.errors import UsageError
from jaxrl.hyper import require, require_choice
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.types import Array, Key, PyTree, Spec, Transition

Reduction = Literal["min", "mean"]


@struct.dataclass
class SAC(Stochastic):
    """Soft actor-critic with an ensemble of critics and automatic temperature.

    The defaults are the paper's: two critics and the smaller of their values, entropy ``-|A|`` per
    action, a gradient step of critics, actor and temperature in this order, then of the slow
    copies. Three departures of others are options: half that entropy (``target_entropy=-0.5``), an
    actor on every second step (``delay=2``), and larger ensembles of which the target takes a
    random ``subset`` (REDQ: Chen et al. 2021, "Randomized Ensembled Double Q-Learning", with
    ``ensemble=10, subset=2, policy_value="mean"``; RLPD adds ``layer_norm=True``). The loss of the
    critics is the squared error, not its half, summed over them. That of the temperature is in
    ``alpha``, whose fixed point is that of the loss in ``log alpha``.

    Attributes:
        ensemble: critics.
        subset: so many of them, drawn for each gradient step, make the target; None: all.
        policy_value: the policy climbs the critics' "min" or "mean".
    """

    ensemble: int = struct.field(pytree_node=False, default=2)
    subset: int | None = struct.field(pytree_node=False, default=None)
    policy_value: Reduction = struct.field(pytree_node=False, default="min")

    @property
    def critics(self) -> int:
        """``ensemble``."""
        return self.ensemble

    def init(self, key: Key, spec: Spec) -> ReplayedState:
        """Fresh networks for ``spec``."""
        return self.fresh(self.init_params(key, spec), ("critic",))

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        Stochastic.check(self, transitions)
        require("ensemble", self.ensemble, 1)
        require_choice("policy_value", self.policy_value, Reduction)
        if self.subset is not None and not 1 <= self.subset <= self.ensemble:
            raise UsageError(
                f"subset is {self.subset}; of an ensemble of {self.ensemble} it must be at least 1 "
                f"and at most {self.ensemble}"
            )

    # Losses

    def target(self, state: ReplayedState, batch: Transition, noise: PyTree) -> Array:
        """``y = r + gamma (1 - d) (min_i Q'_i(s', a') - alpha log pi(a' | s'))``: ``[B]``."""
        dist = self.policy(state.params["actor"], batch.next_obs)
        action, log_prob = dist.sample_and_log_prob(noise["next"])
        q = self.q(state.targets["critic"], batch.next_obs, action)
        if self.subset is not None:
            chosen = jnp.argsort(noise["critics"])[: self.subset]
            q = q[chosen]
        value = jnp.min(q, axis=0) - self.temperature(state) * log_prob
        return batch.reward + self.discount(batch) * value

    def critic_loss(self, params: PyTree, batch: Transition, target: Array) -> tuple[Array, Array]:
        """``sum_i mean (Q_i(s, a) - y)^2``, and the values ``[E, B]``."""
        q = self.q(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), q

    def actor_loss(
        self, params: PyTree, state: ReplayedState, obs: PyTree, noise: Array
    ) -> tuple[Array, Array]:
        """``mean (alpha log pi(a | s) - min_i Q_i(s, a))``, and the entropy's estimate."""
        action, log_prob = self.policy(params, obs).sample_and_log_prob(noise)
        q = self.q(state.params["critic"], obs, action)
        value = jnp.min(q, axis=0) if self.policy_value == "min" else jnp.mean(q, axis=0)
        return jnp.mean(self.temperature(state) * log_prob - value), -jnp.mean(log_prob)

    # Update

    def draw_update(self, state: ReplayedState, key: Key, shape: tuple[int, ...]) -> PyTree:
        """Normal noise of the successors' actions and of the policy's: ``[..., B, A]`` each."""
        next_key, policy_key, subset_key = jax.random.split(key, 3)
        size = (*shape, self.action_width(state))
        noise = {
            "next": jax.random.normal(next_key, size),
            "policy": jax.random.normal(policy_key, size),
        }
        if self.subset is not None:
            order = jax.random.bits(subset_key, (*shape[:-1], self.ensemble))
            noise["critics"] = order
        return noise

    def gradient_step(
        self, state: ReplayedState, batch: Transition, noise: PyTree, actor: bool
    ) -> tuple[ReplayedState, Metrics]:
        """Critics; policy and temperature if ``actor``; then the slow copies."""
        target = self.target(state, batch, noise)
        gradient: Any = jax.value_and_grad(self.critic_loss, has_aux=True)
        (loss, q), grads = gradient(state.params["critic"], batch, target)
        state, metrics = self.stepped(state, "critic", grads, self.learning_rate)
        metrics |= {"critic_loss": mean_of(loss), "q": mean_of(q)}
        if actor:
            state, more = self.actor_step(state, batch, noise["policy"])
            metrics = merged(metrics, more)
        return self.followed(state)._replace(updates=state.updates + 1), metrics

    def actor_step(
        self, state: ReplayedState, batch: Transition, noise: Array
    ) -> tuple[ReplayedState, Metrics]:
        """The policy, then the temperature: ``L = alpha (H - H_target)``."""
        gradient: Any = jax.value_and_grad(self.actor_loss, has_aux=True)
        (loss, entropy), grads = gradient(state.params["actor"], state, batch.obs, noise)
        surplus = entropy - self.entropy_goal(noise)
        by_log_alpha = self.temperature(state) * surplus
        state, metrics = self.stepped(state, "actor", grads, self.actor_learning_rate)
        state, more = self.stepped(state, "log_alpha", by_log_alpha, self.alpha_learning_rate)
        metrics = merged(metrics, more) | {
            "actor_loss": mean_of(loss),
            "entropy": mean_of(entropy),
            "alpha": mean_of(self.temperature(state)),
        }
        return state, metrics
