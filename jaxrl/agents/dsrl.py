"""DSRL (Wagenmaker et al. 2025, "Steering Your Diffusion Policy with Latent Space Reinforcement
Learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.hyper import choice, number, part, size
from jaxrl.losses import OverCritics, over_critics
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.flow import Flow, first_noise
from jaxrl.nn.policies import TanhGaussian
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Box, Extras, Key, Mode, PyTree, Spec

_SIZES: dict[str, Any] = {"hidden_dims": (512, 512, 512, 512), "activation": "gelu"}


class DSRLState(NamedTuple):
    """The frozen policy, the trained networks, the temperature, and the target critics."""

    policy: PyTree
    actor: Trained
    critic: Trained
    noise_critic: Trained
    log_alpha: Trained
    target_critic: PyTree


@hyper.dataclass
class DSRL:
    """Soft actor-critic in the noise space of a frozen policy, which it steers.

    The policy maps an initial noise ``z`` deterministically to an action ``pi(s, z)``. An actor
    chooses ``z`` within +- ``noise_scale``. Action critics learn by TD. Noise critics are distilled
    from them on noise from N(0, 1), and train the actor, so that no gradient runs through the
    policy. This is the paper's noise-aliased variant, which learns from any actions.

    The policy's parameters come from an earlier run (``policy_from``) and never change; without
    one, the policy is untrained. The defaults follow the code of Li and Levine 2026 ("Q-learning
    with Adjoint Matching"), where targets are pessimistic over ten critics, entropy counts only in
    the actor's loss, and the target entropy is half of SAC's. Departure: in that code the policy
    continues to imitate, and a moving average of it is steered.
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("policy",)

    policy: Any = part(Flow(**_SIZES), help="frozen policy, which maps noise to actions")
    actor: Any = part(TanhGaussian(**_SIZES), help="policy family that chooses the noise")
    critic: Any = part(
        Critic(**_SIZES, layer_norm=True, num_critics=10),
        help="ensemble of action critics, and another ensemble of noise critics",
    )
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(3e-4, above=0, help="step size of the actor")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of both kinds of critics")
    alpha_learning_rate: float = number(3e-4, 0, help="step size of log alpha; 0 keeps alpha")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    noise_scale: float = number(1.0, 0, help="bound of each noise element; 0: always zero noise")
    target_q: OverCritics = choice("mean", OverCritics, help="how targets combine the critics")
    pessimism: float = number(0.5, 0, help="standard deviations over critics subtracted in targets")
    initial_alpha: float = number(1.0, above=0, help="initial temperature")
    target_entropy: float = number(
        -0.5, help="entropy per element, in nats, of noises within [-1, 1]"
    )
    policy_delay: int = size(1, help="gradient steps from one update of the actor to the next")

    def bind(self, spec: Spec) -> DSRL:
        """Return the agent for ``spec``.

        Raises:
            UsageError: for discrete actions, or a policy that does not start from noise.
        """
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["from_noise"], "Flow")
        protocol.require_methods(self, "actor", ["dist"], "TanhGaussian")
        policy = self.policy.bind(spec)
        noises = dataclasses.replace(spec, action=Box(-1.0, 1.0, (policy.action_dim,)))
        actor, critic = self.actor.bind(noises), self.critic.bind(spec)
        protocol.require_bounded(actor, "actor")
        return dataclasses.replace(self, policy=policy, actor=actor, critic=critic)

    def init(self, key: Key) -> DSRLState:
        """Return fresh networks."""
        policy_key, actor_key, critic_key, noise_key = jax.random.split(key, 4)
        critic, start = self.critic.init(critic_key), self.optimizer.start
        return DSRLState(
            policy=self.policy.init(policy_key),
            actor=start(self.actor.init(actor_key)),
            critic=start(critic),
            noise_critic=start(self.critic.init(noise_key)),
            log_alpha=start(jnp.log(jnp.float32(self.initial_alpha))),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: DSRLState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2``, where ``y = r + discount Q'(s', pi(s', z'))``.

        ``z' = noise_scale actor(s')``, and ``Q'`` is pessimistic over the target critics.
        """
        next_noise, _ = self.actor.dist(state.actor.params, batch.next_obs).sample(key)
        next_action = self.steered(state, batch.next_obs, next_noise)
        next_q = self.critic(state.target_critic, batch.next_obs, next_action)
        next_value = over_critics(next_q, self.target_q, self.pessimism)
        target = batch.reward + batch.discount * next_value
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    def noise_critic_loss(
        self, params: PyTree, state: DSRLState, batch: Batch, key: Key
    ) -> tuple[Array, None]:
        """``sum_i mean (Z_i(s, z) - Q_i(s, pi(s, z)))^2``, ``z ~ N(0, 1)``."""
        noise = first_noise(self.policy, batch.obs, key)
        action = self.policy.from_noise(state.policy, batch.obs, noise)
        q = self.critic(state.critic.params, batch.obs, action)
        found = self.critic(params, batch.obs, noise)
        return jnp.sum(jnp.mean(jnp.square(found - q), axis=-1)), None

    def actor_loss(
        self, params: PyTree, state: DSRLState, batch: Batch, key: Key
    ) -> tuple[Array, Array]:
        """``mean (alpha log p(u | s) - mean_i Z_i(s, noise_scale u))``, ``u ~ actor``.

        Also returns the entropy of ``u``.
        """
        noise, trace = self.actor.dist(params, batch.obs).sample(key)
        q = self.critic(state.noise_critic.params, batch.obs, self.noise_scale * noise)
        alpha = jnp.exp(state.log_alpha.params)
        loss = jnp.mean(alpha * trace.log_prob - jnp.mean(q, axis=0))
        return loss, -jnp.mean(trace.log_prob)

    def alpha_loss(self, log_alpha: Array, entropy: Array) -> tuple[Array, None]:
        """``alpha (H - H_target)``."""
        target = self.target_entropy * self.actor.action_dim
        return jnp.exp(log_alpha) * (entropy - target), None

    def steered(self, state: DSRLState, obs: PyTree, u: Array) -> Array:
        """Return the policy's actions ``[..., A]`` for the actor's ``u[..., A]`` in [-1, 1]."""
        action: Array = self.policy.from_noise(state.policy, obs, self.noise_scale * u)
        return action

    # Update

    def update(
        self, state: DSRLState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[DSRLState, Metrics]:
        """One gradient step on ``[B]``: action and noise critics; actor, temperature; targets.

        Each step uses the networks updated before it.
        """
        critic_key, noise_key, actor_key = jax.random.split(key, 3)
        minimize, rate = self.optimizer.minimize, self.critic_learning_rate
        critic, aux, metrics = minimize(
            self.critic_loss, state.critic, rate, state, batch, critic_key
        )
        state, metrics = state._replace(critic=critic), metrics | aux
        noise_critic, _, more = minimize(
            self.noise_critic_loss, state.noise_critic, rate, state, batch, noise_key
        )
        state, metrics = state._replace(noise_critic=noise_critic), merged(metrics, more)
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
        self, state: DSRLState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return the action ``[..., A]`` for a sampled noise; if ``greedy``, for the mode."""
        dist = self.actor.dist(state.actor.params, obs)
        noise = dist.mode() if mode == "greedy" else dist.sample(key)[0]
        return self.steered(state, obs, noise), carry, {}
