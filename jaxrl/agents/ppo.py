"""PPO (Schulman et al. 2017, "Proximal Policy Optimization Algorithms")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, losses, optim
from jaxrl.agents import minibatches, protocol
from jaxrl.hyper import flag, number, part, size
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition

_SIZES: dict[str, Any] = {
    "hidden_dims": (64, 64),
    "activation": "tanh",
    "initializer": "orthogonal",
}


class PPOState(NamedTuple):
    """Policy and value function, trained together, and the number of updates."""

    networks: Trained  # {"policy", "critic"}
    updates: Array  # int32, calls of ``update``


class Minibatch(NamedTuple):
    """Rows of a rollout ``[T, N, ...]``, or ``[B, ...]`` of them."""

    obs: PyTree
    trace: Any  # of the actions, with their log-probabilities at acting time
    value: Array
    advantage: Array
    target: Array


@hyper.dataclass
class PPO:
    """PPO with a clipped surrogate, for discrete and continuous actions.

    The defaults are the common continuous-control variant: separate tanh networks with
    orthogonal initialisation, a normal whose log-std does not depend on the observation,
    minibatches of single transitions, advantages normalised per minibatch, Adam with eps 1e-5, and
    the global norm of the gradient clipped at 0.5. Departures from it: GAE is computed once per
    rollout, time limits bootstrap from the *true* next state, and the value loss is not clipped.
    Options cover Brax's variant (``policy.squash``, ``std="softplus"``, ``initializer="lecun"``,
    swish), except for its advantages, whose first step lacks the factor lambda.
    """

    learns_from: ClassVar = "rollouts"
    policy_at: ClassVar = ("networks.params.policy",)

    policy: Any = part(AutoPolicy(head_scale=0.01, std="independent", **_SIZES), help="policy")
    critic: Any = part(ValueFunction(**_SIZES), help="value function")
    optimizer: Any = part(Adam(max_grad_norm=0.5, eps=1e-5), help="optimiser of both networks")
    learning_rate: float = number(3e-4, above=0, help="step size")
    lr_decay_steps: float = number(
        0.0, 0, help="updates over which the learning rate falls linearly to 0; 0: constant rate"
    )
    gamma: float = number(0.99, 0, 1, help="discount")
    gae_lambda: float = number(0.95, 0, 1, help="lambda of the advantage estimates")
    clip_eps: float = number(0.2, above=0, help="clipping range of the probability ratio")
    entropy_coef: float = number(0.0, 0, help="weight of the entropy bonus")
    value_coef: float = number(0.5, 0, help="weight of the value loss, half the squared error")
    target_kl: float | None = number(
        None,
        above=0,
        help="stop an update once a minibatch's KL divergence from the acting policy exceeds this",
    )
    update_epochs: int = size(4, help="passes over a rollout")
    num_minibatches: int = size(
        4, help="minibatches per pass; must divide the transitions, with at least two in each"
    )
    clip_value: bool = flag(
        False, help="clip the value loss by clip_eps, in units of the scaled reward"
    )

    @property
    def gradient_steps_per_update(self) -> int:
        """``update_epochs * num_minibatches``."""
        return self.update_epochs * self.num_minibatches

    def bind(self, spec: Spec) -> PPO:
        """Return the agent for ``spec``. Raises UsageError for policies without a density."""
        protocol.require_methods(self, "policy", ["dist"], "Gaussian")
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def check(self, rows: int) -> None:
        """Raise UsageError unless the transitions of an update divide into minibatches.

        Each needs at least two transitions: a single normalised advantage is 0.
        """
        minibatches.check_divides(self.num_minibatches, rows, least=2)

    def init(self, key: Key) -> PPOState:
        """Return fresh networks."""
        policy_key, critic_key = jax.random.split(key)
        params = {"policy": self.policy.init(policy_key), "critic": self.critic.init(critic_key)}
        return PPOState(self.optimizer.start(params), jnp.int32(0))

    # Losses

    def policy_loss(self, dist: Any, batch: Minibatch) -> tuple[Array, Metrics]:
        """``-mean min(r A, clip(r, 1 - eps, 1 + eps) A)`` over ``[B]``."""
        log_ratio = dist.log_prob(batch.trace) - batch.trace.log_prob
        ratio = jnp.exp(log_ratio)
        advantage = losses.normalised(batch.advantage)
        loss = jnp.mean(losses.clipped_surrogate(ratio, advantage, self.clip_eps))
        metrics: Metrics = {
            "policy_loss": mean_of(loss),
            "kl": mean_of(ratio - 1.0 - log_ratio),
            "clip_fraction": mean_of(jnp.abs(ratio - 1.0) > self.clip_eps),
        }
        return loss, metrics

    def value_loss(self, value: Array, batch: Minibatch) -> Array:
        """``mean (R - V)^2 / 2`` over ``[B]``, clipped with ``clip_value``."""
        if self.clip_value:
            error = losses.clipped_value_loss(value, batch.value, batch.target, self.clip_eps)
        else:
            error = jnp.square(value - batch.target)
        return 0.5 * jnp.mean(error)

    def loss(self, params: PyTree, batch: Minibatch, key: Key) -> tuple[Array, Metrics]:
        """``L = L_policy + c_v L_value - c_e H`` on a minibatch."""
        dist = self.policy.dist(params["policy"], batch.obs)
        policy_loss, metrics = self.policy_loss(dist, batch)
        value_loss = self.value_loss(self.critic(params["critic"], batch.obs), batch)
        entropy = jnp.mean(dist.entropy(key))
        metrics |= {"value_loss": mean_of(value_loss), "entropy": mean_of(entropy)}
        return policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy, metrics

    # Update

    def advantages(self, state: PPOState, rollout: Transition) -> Minibatch:
        """Return a rollout ``[T, N]`` with advantages and value targets."""
        params = state.networks.params["critic"]
        value, next_value = (self.critic(params, x) for x in (rollout.obs, rollout.next_obs))
        ends = (rollout.terminated, rollout.truncated)
        advantage = losses.gae(
            rollout.reward, value, next_value, *ends, self.gamma, self.gae_lambda
        )
        trace = rollout.extras["trace"]
        return Minibatch(rollout.obs, trace, value, advantage, advantage + value)

    def update(self, state: PPOState, rollout: Transition, key: Key) -> tuple[PPOState, Metrics]:
        """Epochs of minibatch steps on a rollout ``[T, N]``. Each shard shuffles its own rows."""
        rows = self.advantages(state, rollout)
        rate = self.learning_rate * optim.linear_decay(state.updates, self.lr_decay_steps)

        def step(key: Key, networks: Trained, batch: Minibatch) -> tuple[Trained, Metrics]:
            networks, aux, metrics = self.optimizer.minimize(self.loss, networks, rate, batch, key)
            return networks, metrics | aux

        networks, metrics = minibatches.minibatch_epochs(
            step,
            state.networks,
            rows,
            key,
            self.update_epochs,
            self.num_minibatches,
            None if self.target_kl is None else self.too_far,
        )
        unexplained = losses.variance(rows.target - rows.value)
        explained = 1.0 - unexplained / (losses.variance(rows.target) + 1e-8)
        metrics["explained_variance"] = mean_of(explained)
        return PPOState(networks, state.updates + 1), metrics

    def too_far(self, metrics: dict[str, Array]) -> Array:
        """Whether a minibatch's KL divergence ends the update; the optimiser skips a NaN."""
        return metrics["kl"] > jnp.asarray(self.target_kl)

    # Acting

    def act(
        self, state: PPOState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return a sampled action with its trace in the extras; if ``greedy``, the mode."""
        params = state.networks.params["policy"]
        if mode == "greedy":
            return self.policy.mode(params, obs, key), carry, {}
        action, trace = self.policy.sample(params, obs, key)
        return action, carry, {"trace": trace}
