"""IQL (Kostrikov et al. 2022, "Offline Reinforcement Learning with Implicit Q-Learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.hyper import number, part, size
from jaxrl.losses import expectile_loss
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import AutoCritic, ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec

WEIGHT_CLIP = 100.0  # the largest weight of an action in the actor's loss

_ORTHOGONAL: dict[str, Any] = {"initializer": "orthogonal"}
_NORMAL: dict[str, Any] = {"squash_mean": True, "std": "clipped", "log_std_range": (-5.0, 2.0)}


class IQLState(NamedTuple):
    """The trained networks, the target critics, and the number of gradient steps."""

    actor: Trained
    critic: Trained
    value: Trained
    target_critic: PyTree
    gradient_steps: Array  # int32


@hyper.dataclass
class IQL:
    """Implicit Q-learning: it never evaluates actions outside the data.

    ``V`` is an expectile of Q over the data's actions: their mean at 0.5, and the best of them
    near 1. The policy imitates the data's actions, with weights that grow with their advantage. Any
    policy family works: its ``fit_loss`` is ``-log pi(a | s)`` if it has a density. Discrete
    actions work too. Scale rewards so that advantages are of order 1.

    The defaults follow the authors' code for locomotion. The policy is a normal with a squashed
    mean, so that its density needs no correction near the bounds, and a standard deviation that
    does not depend on the observation. Their code also decays the actor's step size over the length
    of a run (``lr_decay_steps``), uses an expectile of 0.9 and a temperature of 10 for mazes, and
    uses actor dropout of 0.1 for hands and kitchens (``policy.dropout``). Departure: the heads of
    the critics and the value function start with gain 1 instead of sqrt(2).
    """

    learns_from: ClassVar = "batches"
    imitates: ClassVar = ("policy",)
    policy_at: ClassVar = ("actor.params",)

    policy: Any = part(
        AutoPolicy(head_scale=2.0**0.5, **_ORTHOGONAL, **_NORMAL), help="policy family"
    )
    critic: Any = part(AutoCritic(**_ORTHOGONAL), help="ensemble of critics")
    value: Any = part(ValueFunction(**_ORTHOGONAL), help="value function")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(3e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of the critics")
    value_learning_rate: float = number(3e-4, above=0, help="step size of the value function")
    lr_decay_steps: float = number(
        0.0,
        0,
        help="gradient steps of the cosine decay of the policy's step size to 0; 0: constant",
    )
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    expectile: float = number(
        0.7, 0, 1, help="expectile of Q over the data's actions: 0.5 is the mean, near 1 the best"
    )
    temperature: float = number(
        3.0, 0, help="weights are exp(temperature * advantage), at most 100; 0 is behaviour cloning"
    )
    policy_delay: int = size(1, help="gradient steps from one update of the actor to the next")

    def bind(self, spec: Spec) -> IQL:
        """Return the agent for ``spec``. Raises UsageError if a part does."""
        protocol.require_methods(self, "policy", ["sample", "mode", "fit_loss"], "Gaussian")
        parts = {name: getattr(self, name).bind(spec) for name in ("policy", "critic", "value")}
        return dataclasses.replace(self, **parts)

    def init(self, key: Key) -> IQLState:
        """Return fresh networks."""
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        critic = self.critic.init(critic_key)
        return IQLState(
            actor=self.optimizer.start(self.policy.init(actor_key)),
            critic=self.optimizer.start(critic),
            value=self.optimizer.start(self.value.init(value_key)),
            target_critic=jax.tree.map(jnp.copy, critic),
            gradient_steps=jnp.int32(0),
        )

    # Losses

    def value_loss(self, params: PyTree, batch: Batch, q: Array) -> tuple[Array, Metrics]:
        """``mean |expectile - 1(u < 0)| u^2``, where ``u = min_i Q'_i(s, a) - V(s)``.

        ``q`` is that minimum: ``[B]``.
        """
        value = self.value(params, batch.obs)
        return jnp.mean(expectile_loss(q - value, self.expectile)), {"value": mean_of(value)}

    def actor_loss(
        self, params: PyTree, state: IQLState, batch: Batch, q: Array, key: Key
    ) -> tuple[Array, Metrics]:
        """``-mean w log pi(a | s)``, where ``w = min(exp(temperature (q - V(s))), 100)``.

        ``q`` is as in ``value_loss``.
        """
        advantage = q - self.value(state.value.params, batch.obs)
        weight = jnp.minimum(jnp.exp(self.temperature * advantage), WEIGHT_CLIP)
        loss = self.policy.fit_loss(params, batch.obs, batch.action, key)
        metrics: Metrics = {"advantage": mean_of(advantage), "weight": mean_of(weight)}
        return jnp.mean(weight * loss), metrics

    def critic_loss(self, params: PyTree, state: IQLState, batch: Batch) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where ``y = r + discount V(s')``."""
        next_value = self.value(state.value.params, batch.next_obs)
        target = batch.reward + batch.discount * next_value
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    # Update

    def update(
        self, state: IQLState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[IQLState, Metrics]:
        """One gradient step on ``[B]``: value function, actor, critics; target critics.

        Each step uses the networks updated before it.
        """
        minimize = self.optimizer.minimize
        q = jnp.min(self.critic(state.target_critic, batch.obs, batch.action), axis=0)
        value, aux, metrics = minimize(
            self.value_loss, state.value, self.value_learning_rate, batch, q
        )
        metrics |= aux
        state = state._replace(value=value)
        if update_actor:
            decay = optim.cosine_decay(state.gradient_steps, self.lr_decay_steps)
            rate = self.actor_learning_rate * decay
            actor, aux, more = minimize(self.actor_loss, state.actor, rate, state, batch, q, key)
            state, metrics = state._replace(actor=actor), merged(metrics, more | aux)
        critic, aux, more = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, state, batch
        )
        target = optim.polyak(state.target_critic, critic.params, self.tau)
        done = state.gradient_steps + 1
        state = state._replace(critic=critic, target_critic=target, gradient_steps=done)
        return state, merged(metrics, more | aux)

    # Acting

    def act(
        self, state: IQLState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an action ``[..., *A]`` (a sample; the mode if ``greedy``), carry and extras."""
        if mode == "greedy":
            return self.policy.mode(state.actor.params, obs, key), carry, {}
        return self.policy.sample(state.actor.params, obs, key)[0], carry, {}
