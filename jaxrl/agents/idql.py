"""IDQL (Hansen-Estruch et al. 2023, "IDQL: Implicit Q-Learning as an Actor-Critic Method with
Diffusion Policies") and IFQL, its variant with a flow (Park et al. 2025, "Flow Q-Learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.agents.improvement import BestOf, candidates
from jaxrl.hyper import choice, number, part, size
from jaxrl.losses import OverCritics, expectile_loss, over_critics
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic, ValueFunction
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.flow import Flow
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class IDQLState(NamedTuple):
    """The trained networks, moving averages of policy and critics, and number of gradient steps."""

    actor: Trained
    critic: Trained
    value: Trained
    target_actor: PyTree
    target_critic: PyTree
    gradient_steps: Array  # int32


_XAVIER: dict[str, Any] = {"initializer": "xavier"}
_RESIDUAL: dict[str, Any] = {
    "hidden_dims": (256, 256, 256),
    "activation": "mish",
    "initializer": "lecun",
    "residual": True,
    "time_embedding": "fourier",
    "time_features": 64,
}
_FLOW: dict[str, Any] = {
    "hidden_dims": (512, 512, 512, 512),
    "activation": "gelu",
    "initializer": "xavier",
}


@hyper.dataclass
class IDQL:
    """Implicit Q-learning whose policy clones the data; the critics choose among its samples.

    ``V`` is an expectile of Q over the data's actions, as in IQL. To act, the moving average of the
    policy draws samples, and ``improver`` chooses among them by the target critics. The defaults
    follow the authors' code, which also decays the policy's step size over the length of a run
    (``lr_decay_steps``) and uses an expectile of 0.9 for mazes. Departure: the critics' losses are
    summed, not averaged; Adam is invariant to this.
    """

    learns_from: ClassVar = "batches"
    imitates: ClassVar = ("policy",)
    policy_at: ClassVar = ("target_actor", "actor.params")  # the average acts
    at_once: ClassVar[bool] = False  # whether all losses see the networks before the update
    acts_with_target: ClassVar[bool] = True  # whether the target critics choose actions

    policy: Any = part(
        Diffusion(clip="samples", variance="forward", dropout=0.1, **_RESIDUAL),
        help="policy family",
    )
    critic: Any = part(Critic(**_XAVIER), help="ensemble of critics")
    value: Any = part(ValueFunction(**_XAVIER), help="value function")
    improver: Any = part(BestOf(), help="how an action is chosen by the critics")
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
    ema_decay: float = number(0.999, 0, 1, help="decay of the policy's moving average, which acts")
    expectile: float = number(
        0.7, 0, 1, help="expectile of Q over the data's actions: 0.5 is the mean, near 1 the best"
    )
    target_q: OverCritics = choice("min", OverCritics, help="how V's target combines the critics")
    pessimism: float = number(0.0, 0, help="standard deviations over critics subtracted in targets")
    policy_delay: int = size(1, help="gradient steps from one update of the actor to the next")

    def bind(self, spec: Spec) -> Any:
        """Return the agent for ``spec``. Raises UsageError for discrete actions."""
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["sample", "fit_loss"], "Diffusion")
        protocol.require_methods(self, "improver", ["improve"], "BestOf")
        parts = {name: getattr(self, name).bind(spec) for name in ("policy", "critic", "value")}
        return dataclasses.replace(self, **parts)

    def init(self, key: Key) -> IDQLState:
        """Return fresh networks."""
        actor_key, critic_key, value_key = jax.random.split(key, 3)
        actor, critic = self.policy.init(actor_key), self.critic.init(critic_key)
        return IDQLState(
            actor=self.optimizer.start(actor),
            critic=self.optimizer.start(critic),
            value=self.optimizer.start(self.value.init(value_key)),
            target_actor=jax.tree.map(jnp.copy, actor),
            target_critic=jax.tree.map(jnp.copy, critic),
            gradient_steps=jnp.int32(0),
        )

    # Losses

    def actor_loss(self, params: PyTree, batch: Batch, key: Key) -> tuple[Array, None]:
        """The mean of the family's ``fit_loss`` on the data's actions."""
        return jnp.mean(self.policy.fit_loss(params, batch.obs, batch.action, key)), None

    def value_loss(self, params: PyTree, state: IDQLState, batch: Batch) -> tuple[Array, Metrics]:
        """``mean |expectile - 1(u < 0)| u^2``, where ``u = min_i Q'_i(s, a) - V(s)``.

        ``target_q`` can replace the minimum with the mean over critics; ``pessimism`` standard
        deviations over critics are subtracted.
        """
        q = self.critic(state.target_critic, batch.obs, batch.action)
        value = self.value(params, batch.obs)
        advantage = over_critics(q, self.target_q, self.pessimism) - value
        metrics: Metrics = {"value": mean_of(value), "advantage": mean_of(advantage)}
        return jnp.mean(expectile_loss(advantage, self.expectile)), metrics

    def critic_loss(self, params: PyTree, state: IDQLState, batch: Batch) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where ``y = r + discount V(s')``."""
        next_value = self.value(state.value.params, batch.next_obs)
        target = batch.reward + batch.discount * next_value
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    # Update

    def update(
        self, state: IDQLState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[IDQLState, Metrics]:
        """One gradient step on ``[B]``: policy and its average, value function, critics; targets.

        The critics use the new value function, and the target critics follow the new critics. In
        IFQL, both use the networks before the step.
        """
        minimize, new, metrics = self.optimizer.minimize, state, {}
        if update_actor:
            decay = optim.cosine_decay(state.gradient_steps, self.lr_decay_steps)
            rate = self.actor_learning_rate * decay
            actor, _, metrics = minimize(self.actor_loss, state.actor, rate, batch, key)
            average = optim.polyak(state.target_actor, actor.params, 1.0 - self.ema_decay)
            new = state._replace(actor=actor, target_actor=average)
        value, aux, more = minimize(
            self.value_loss, state.value, self.value_learning_rate, state, batch
        )
        metrics = merged(metrics, more | aux)
        new = new._replace(value=value)
        seen = state if self.at_once else new
        critic, aux, more = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, seen, batch
        )
        followed = state.critic if self.at_once else critic
        target = optim.polyak(state.target_critic, followed.params, self.tau)
        done = state.gradient_steps + 1
        new = new._replace(critic=critic, target_critic=target, gradient_steps=done)
        return new, merged(metrics, more | aux)

    # Acting

    def act(
        self, state: IDQLState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return a sample ``[..., A]`` of the averaged policy in every mode, and the carry.

        ``improver`` chooses it by ``min_i Q_i`` over the target critics (IFQL: over the critics).
        """
        sample_key, choice_key = jax.random.split(key)
        count = self.improver.num_candidates
        actions = candidates(self.policy, state.target_actor, obs, sample_key, count)
        params = state.target_critic if self.acts_with_target else state.critic.params

        def q(actions: Array) -> Array:
            return jnp.min(self.critic(params, obs, actions), axis=0)

        return self.improver.improve(q, actions, choice_key), carry, {}


@hyper.dataclass
class IFQL(IDQL):
    """IDQL with a flow instead of the diffusion policy, as in the code of the FQL authors.

    All losses use the networks before the step, and the target critics follow the critics before
    it. The policy acts without a moving average (``ema_decay`` is 0), and the critics choose the
    action, not the target critics.
    """

    at_once: ClassVar[bool] = True
    acts_with_target: ClassVar[bool] = False

    policy: Any = part(Flow(**_FLOW), help="policy family")
    critic: Any = part(Critic(post_norm=True, **_FLOW), help="ensemble of critics")
    value: Any = part(ValueFunction(post_norm=True, **_FLOW), help="value function")
    improver: Any = part(BestOf(32), help="how an action is chosen by the critics")
    ema_decay: float = number(0.0, 0, 1, help="decay of the policy's moving average, which acts")
    expectile: float = number(
        0.9, 0, 1, help="expectile of Q over the data's actions: 0.5 is the mean, near 1 the best"
    )
