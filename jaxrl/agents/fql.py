"""FQL (Park et al. 2025, "Flow Q-Learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.hyper import choice, flag, number, part
from jaxrl.losses import OverCritics, over_critics
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn.critics import Critic
from jaxrl.nn.flow import Flow, OneStep
from jaxrl.optim import Adam, Trained
from jaxrl.rng import row_key
from jaxrl.sharding import shard_mean
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class FQLState(NamedTuple):
    """The networks ``policy``, ``one_step`` and ``critic``, trained together; target critics."""

    networks: Trained
    target_critic: PyTree


_SIZES: dict[str, Any] = {
    "hidden_dims": (512, 512, 512, 512),
    "activation": "gelu",
    "initializer": "xavier",
}


@hyper.dataclass
class FQL:
    """A one-step policy that maximises Q and stays near a flow that imitates the data.

    No gradient runs through the steps of the flow. The acting policy maps noise to an action in one
    step, and is regularised towards the flow's action for the same noise. ``alpha`` weights this
    distance against Q; a large ``alpha`` gives a distilled clone. The defaults follow the authors'
    code, except that Q is divided by its mean absolute value (``normalize_q_loss``). With this,
    good values of ``alpha`` are between 0.03 and 10. The authors' results on OGBench and D4RL are
    without it, with ``alpha`` between 3 and 30,000.
    """

    learns_from: ClassVar = "batches"
    imitates: ClassVar = ("policy",)
    acts_with: ClassVar = "one_step"
    policy_at: ClassVar = ("networks.params.policy",)

    policy: Any = part(Flow(**_SIZES), help="flow that imitates the data")
    one_step: Any = part(OneStep(**_SIZES), help="policy that acts, from noise to action")
    critic: Any = part(Critic(post_norm=True, **_SIZES), help="ensemble of critics")
    optimizer: Any = part(Adam(), help="optimiser of all networks together")
    learning_rate: float = number(3e-4, above=0, help="step size")
    alpha: float = number(1.0, 0, help="weight of the distance from the flow, relative to Q")
    normalize_q_loss: bool = flag(
        True, help="divide Q by its mean absolute value in the loss of the one-step policy"
    )
    target_q: OverCritics = choice("mean", OverCritics, help="how targets combine the critics")
    pessimism: float = number(0.0, 0, help="standard deviations over critics subtracted in targets")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")

    def bind(self, spec: Spec) -> FQL:
        """Return the agent for ``spec``. Raises UsageError for discrete actions."""
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["errors", "from_noise"], "Flow")
        protocol.require_methods(self, "one_step", ["sample", "__call__"], "OneStep")
        parts = {name: getattr(self, name).bind(spec) for name in ("policy", "one_step", "critic")}
        return dataclasses.replace(self, **parts)

    def init(self, key: Key) -> FQLState:
        """Return fresh networks."""
        policy_key, one_step_key, critic_key = jax.random.split(key, 3)
        params = {
            "policy": self.policy.init(policy_key),
            "one_step": self.one_step.init(one_step_key),
            "critic": self.critic.init(critic_key),
        }
        target_critic = jax.tree.map(jnp.copy, params["critic"])
        return FQLState(self.optimizer.start(params), target_critic)

    # Losses

    def critic_loss(
        self, params: PyTree, state: FQLState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``mean (Q_i(s, a) - y)^2`` over batch and critics, where

        ``y = r + discount (mean_j Q'_j(s', a') - pessimism std_j Q'_j(s', a'))`` and
        ``a' = clip(mu(s', z'))``. ``target_q`` can replace the mean with the minimum.
        """
        one_step = state.networks.params["one_step"]
        next_action, _ = self.one_step.sample(one_step, batch.next_obs, key)
        next_q = self.critic(state.target_critic, batch.next_obs, next_action)
        next_value = over_critics(next_q, self.target_q, self.pessimism)
        target = batch.reward + batch.discount * next_value
        q = self.critic(params["critic"], batch.obs, batch.action)
        return jnp.mean(jnp.square(q - target)), {"q": mean_of(q)}

    def actor_loss(
        self, params: PyTree, state: FQLState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``L_flow + alpha mean (mu(s, z) - flow(s, z))^2 - lambda mean Q_i(s, clip(mu(s, z)))``.

        ``L_flow`` is the flow's imitation loss, averaged over action elements like the second term.
        The second term has no gradient to the flow, and the third none to the critics. ``lambda``
        is ``1 / mean |mean_i Q_i|``, or 1 without ``normalize_q_loss``.
        """
        flow_key, noise_key = jax.random.split(key)
        known = state.networks.params
        flow = jnp.mean(self.policy.errors(params["policy"], batch.obs, batch.action, flow_key))
        noise = jax.random.normal(row_key(noise_key), batch.action.shape)
        target = self.policy.from_noise(known["policy"], batch.obs, noise)
        action = self.one_step(params["one_step"], batch.obs, noise)
        distillation = jnp.mean(jnp.square(action - target))
        action = jnp.clip(action, -1.0, 1.0)
        q = jnp.mean(self.critic(known["critic"], batch.obs, action), axis=0)
        size = stop_gradient(shard_mean(jnp.mean(jnp.abs(q)))) if self.normalize_q_loss else 1.0
        loss = flow + self.alpha * distillation - jnp.mean(q) / size
        return loss, {"flow_loss": mean_of(flow), "distillation_loss": mean_of(distillation)}

    def loss(
        self, params: PyTree, state: FQLState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """The sum of both losses."""
        critic_key, actor_key = jax.random.split(key)
        critic_loss, metrics = self.critic_loss(params, state, batch, critic_key)
        actor_loss, more = self.actor_loss(params, state, batch, actor_key)
        both: Metrics = {"critic_loss": mean_of(critic_loss), "actor_loss": mean_of(actor_loss)}
        return critic_loss + actor_loss, metrics | more | both

    # Update

    def update(self, state: FQLState, batch: Batch, key: Key) -> tuple[FQLState, Metrics]:
        """One gradient step of all networks on ``[B]``.

        As in the authors' code, target critics follow the critics from before the step.
        """
        networks, aux, metrics = self.optimizer.minimize(
            self.loss, state.networks, self.learning_rate, state, batch, key
        )
        before = state.networks.params["critic"]
        target = optim.polyak(state.target_critic, before, self.tau)
        return FQLState(networks, target), metrics | aux

    # Acting

    def act(
        self, state: FQLState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return a sample ``[..., A]`` of the one-step policy in every mode, and the carry."""
        params = state.networks.params["one_step"]
        return self.one_step.sample(params, obs, key)[0], carry, {}
