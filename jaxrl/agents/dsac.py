"""DSAC (Duan et al. 2021, "Distributional Soft Actor-Critic") and DSAC-T (Duan et al. 2025,
"Distributional Soft Actor-Critic with Three Refinements")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.errors import UsageError
from jaxrl.hyper import bound, flag, number, part, size
from jaxrl.losses import huber
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import TanhGaussian
from jaxrl.optim import Adam, Trained
from jaxrl.rng import row_key
from jaxrl.sharding import shard_mean
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec

VARIANCE_FLOOR = 0.1  # added to variances and deviations in denominators
NOISE_CLIP = 3.0  # sampled returns stay within this many standard deviations
HUBER_WIDTH = 50.0

_SIZES: dict[str, Any] = {"hidden_dims": (256, 256, 256), "activation": "gelu"}


class DSACState(NamedTuple):
    """The trained networks, the temperature, target networks, and running statistics."""

    actor: Trained
    critic: Trained
    log_alpha: Trained
    target_actor: PyTree
    target_critic: PyTree
    running: dict[str, Array]  # DSAC-T's running means over batches, one per critic [E]


class Targets(NamedTuple):
    """Targets of the return distributions, both ``[B]`` or both ``[E, B]``."""

    mean: Array  # for the mean
    sample: Array  # for the standard deviation


@hyper.dataclass
class DSAC:
    """DSAC, version 1: a critic that learns the mean Q and standard deviation sigma of the return.

    The target is a sample of the next state's return; in the loss of sigma, it is clipped to within
    ``td_bound`` of Q. Rewards must be scaled; DSAC-T does not need this.

    The defaults follow the authors' code: the actor, temperature and target networks are updated on
    every second step, next actions come from a target policy, and all gradients of a step are taken
    at the same parameters. With n-step returns, targets omit the entropy of the intermediate
    actions.

    As in that code, densities and entropies refer to actions in the environment's units: in the
    target entropy, in the soft rewards and in the metric. ``log pi`` is lower than for actions in
    [-1, 1] by ``sum log((high - low) / 2)``. (SAC uses actions in [-1, 1].)
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("actor.params", "target_actor")

    policy: Any = part(TanhGaussian(log_std_range=(-20.0, 0.5), **_SIZES), help="policy family")
    critic: Any = part(Critic(num_critics=1, **_SIZES), help="return distribution")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(1e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(1e-4, above=0, help="step size of the critics")
    alpha_learning_rate: float = number(3e-4, 0, help="step size of log alpha; 0 keeps alpha")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target networks")
    initial_alpha: float = number(2.718281828, above=0, help="initial temperature")
    target_entropy: float = number(
        -1.0, help="entropy per action element, in nats, of actions in the environment's units"
    )
    td_bound: float = number(
        20.0,
        above=0,
        help="targets of sigma are clipped to within this of Q, in units of the scaled return",
    )
    policy_delay: int = size(2, help="gradient steps from one update of the actor to the next")
    log_scale: float = bound(0.0)  # sum log((high - low) / 2)

    most_critics: ClassVar = 1

    def bind(self, spec: Spec) -> Any:
        """Return the agent for ``spec``. Raises UsageError for discrete actions."""
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["dist"], "TanhGaussian")
        critic = dataclasses.replace(self.critic.bind(spec), num_outputs=2)
        scale = log_scale(spec.action)
        return dataclasses.replace(
            self, policy=self.policy.bind(spec), critic=critic, log_scale=scale
        )

    def check(self, rows: int) -> None:
        """Raise UsageError for more critics than the algorithm supports."""
        found, most = self.critic.num_critics, self.most_critics
        if found > most:
            raise UsageError(
                f"critic.num_critics is {found}; {type(self).__name__} has at most {most}"
            )

    def init(self, key: Key) -> DSACState:
        """Return fresh networks."""
        actor_key, critic_key = jax.random.split(key)
        actor, critic = self.policy.init(actor_key), self.critic.init(critic_key)
        return DSACState(
            actor=self.optimizer.start(actor),
            critic=self.optimizer.start(critic),
            log_alpha=self.optimizer.start(jnp.log(jnp.float32(self.initial_alpha))),
            target_actor=jax.tree.map(jnp.copy, actor),
            target_critic=jax.tree.map(jnp.copy, critic),
            running={},
        )

    # Losses

    def distribution(self, params: PyTree, obs: PyTree, action: Array) -> tuple[Array, Array]:
        """Return each critic's mean and standard deviation of the return: both ``[E, ...]``."""
        out = self.critic(params, obs, action)
        return out[..., 0], jax.nn.softplus(out[..., 1])

    def targets(self, state: DSACState, batch: Batch, key: Key) -> Targets:
        """``y = r + discount (Z'(s', a') - alpha log pi'(a' | s'))``, ``a' ~ pi'``."""
        next_mean, next_sample, log_prob = self.next_returns(state, batch, key)
        y = self.soft_target(state, batch, next_sample, log_prob)
        return Targets(y, y)

    def next_returns(self, state: DSACState, batch: Batch, key: Key) -> tuple[Array, Array, Array]:
        """Return the target critics' mean and a sample ``[E, B]``, and ``log pi'(a' | s')``."""
        action_key, return_key = jax.random.split(key)
        dist = self.policy.dist(state.target_actor, batch.next_obs)
        action, trace = dist.sample(action_key)
        mean, std = self.distribution(state.target_critic, batch.next_obs, action)
        noise = jax.random.normal(row_key(return_key), std.shape)
        sample = mean + std * jnp.clip(noise, -NOISE_CLIP, NOISE_CLIP)
        return mean, sample, self.log_prob(trace)

    def log_prob(self, trace: Any) -> Array:
        """Return ``log pi(a | s)`` of a traced action, in the environment's units: ``[B]``."""
        log_prob: Array = trace.log_prob - self.log_scale
        return log_prob

    def soft_target(
        self, state: DSACState, batch: Batch, next_value: Array, log_prob: Array
    ) -> Array:
        """``r + discount (next_value - alpha log_prob)``."""
        alpha = jnp.exp(state.log_alpha.params)
        return batch.reward + batch.discount * (next_value - alpha * log_prob)

    def critic_loss(
        self, params: PyTree, state: DSACState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """A loss with the gradients of the authors' code, summed over critics.

        The gradients are ``-(y - Q) / (sigma^2 + 0.1)`` for Q and, with
        ``C = Q + clip(y - Q, -b, b)``,
        ``-((C - Q)^2 - sigma^2) / (sigma^3 + 0.1)`` for sigma.
        """
        target = self.targets(state, batch, key)
        q, std = self.distribution(params, batch.obs, batch.action)
        error = jnp.clip(target.sample - stop_gradient(q), -self.td_bound, self.td_bound)
        loss = _likelihood_loss(q, std, target.mean, error)
        return jnp.sum(jnp.mean(loss, axis=-1)), {"q": mean_of(q), "q_std": mean_of(std)}

    def actor_loss(
        self, params: PyTree, state: DSACState, batch: Batch, key: Key
    ) -> tuple[Array, Array]:
        """``mean (alpha log pi(a | s) - min_i Q_i(s, a))``, ``a ~ pi``; and the entropy."""
        action, trace = self.policy.dist(params, batch.obs).sample(key)
        q, _ = self.distribution(state.critic.params, batch.obs, action)
        alpha = jnp.exp(state.log_alpha.params)
        log_prob = self.log_prob(trace)
        return jnp.mean(alpha * log_prob - jnp.min(q, axis=0)), -jnp.mean(log_prob)

    def alpha_loss(self, log_alpha: Array, entropy: Array) -> tuple[Array, None]:
        """``log alpha (H - H_target)``."""
        return log_alpha * (entropy - self.target_entropy * self.policy.action_dim), None

    # Update

    def update(
        self, state: DSACState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[DSACState, Metrics]:
        """One gradient step on ``[B]``, all gradients at the same parameters.

        The critics are always updated; the actor, temperature and targets only if ``update_actor``.
        """
        critic_key, actor_key = jax.random.split(key)
        minimize = self.optimizer.minimize
        before = state = self.update_running(state, batch)
        critic, aux, metrics = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, before, batch, critic_key
        )
        metrics |= aux
        state = state._replace(critic=critic)
        if not update_actor:
            return state, metrics
        actor, entropy, more = minimize(
            self.actor_loss, state.actor, self.actor_learning_rate, before, batch, actor_key
        )
        log_alpha, _, last = minimize(
            self.alpha_loss, state.log_alpha, self.alpha_learning_rate, entropy
        )
        metrics = merged(merged(metrics, more), last)
        alpha = mean_of(jnp.exp(log_alpha.params))
        state = state._replace(
            actor=actor,
            log_alpha=log_alpha,
            target_actor=optim.polyak(state.target_actor, actor.params, self.tau),
            target_critic=optim.polyak(state.target_critic, critic.params, self.tau),
        )
        return state, metrics | {"entropy": mean_of(entropy), "alpha": alpha}

    def update_running(self, state: DSACState, batch: Batch) -> DSACState:
        """Return the state with updated running statistics of its critics; version 1 has none."""
        return state

    # Acting

    def act(
        self, state: DSACState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an action ``[..., A]`` (a sample, or the mode if ``greedy``), carry and extras."""
        if mode == "greedy":
            return self.policy.mode(state.actor.params, obs, key), carry, {}
        return self.policy.sample(state.actor.params, obs, key)[0], carry, {}


@hyper.dataclass
class DSACT(DSAC):
    """DSAC-T, also known as DSAC-v2: DSAC with three refinements, each of which is optional.

    - Expected-value substitution (``expected_value``): the mean learns from the next state's mean
      instead of a sample.
    - Twin critics: the target comes from the critic with the smaller mean. To disable this, use one
      critic (``critic.num_critics=1``).
    - Variance-based scaling (``variance_scaling``): the sample is clipped to within three running
      standard deviations ``b`` of Q, and gradients are weighted by ``b^2 / (sigma^2 + 0.1)``, so
      that rewards may have any scale.

    Without all three it is ``DSAC``. The paper and the authors' code differ in the third. The
    default follows the code, which clips the weight to [0.1, 10] and replaces squared errors with a
    Huber loss with threshold 50. That loss halves the square, so sigma settles at the
    root-mean-square error divided by sqrt(2). ``likelihood=True`` is the paper's form: gradients of
    the normal log-likelihood, times the running mean of ``sigma^2``.
    """

    critic: Any = part(Critic(num_critics=2, **_SIZES), help="return distributions")
    running_tau: float = number(0.005, 0, 1, help="step of the running statistics")
    expected_value: bool = flag(True, help="expected-value substitution")
    variance_scaling: bool = flag(True, help="variance-based scaling")
    likelihood: bool = flag(False, help="variance-based scaling in the paper's form")

    most_critics: ClassVar = 2

    def init(self, key: Key) -> DSACState:
        """Return fresh networks and empty running statistics."""
        running = {}
        if self.variance_scaling:
            names = ("std", "variance") if self.likelihood else ("std",)
            running = {name: jnp.zeros(self.critic.num_critics) for name in names}
        return DSAC.init(self, key)._replace(running=running)

    def targets(self, state: DSACState, batch: Batch, key: Key) -> Targets:
        """Q learns from Q', sigma from a sample Z' of the critic with the smaller mean."""
        mean, sample, log_prob = self.next_returns(state, batch, key)
        least = jnp.argmin(mean, axis=0, keepdims=True)
        mean, sample = (jnp.take_along_axis(x, least, axis=0) for x in (mean, sample))
        y_sample = self.soft_target(state, batch, sample, log_prob)
        y_mean = self.soft_target(state, batch, mean, log_prob)
        return Targets(y_mean if self.expected_value else y_sample, y_sample)

    def update_running(self, state: DSACState, batch: Batch) -> DSACState:
        """Return the state with updated running means over batches, one per critic ``[E]``.

        The first finite batch initialises them. A mean that is not finite is skipped, just as
        ``optim.Adam`` skips its gradient.
        """
        if not self.variance_scaling:
            return state
        _, std = self.distribution(state.critic.params, batch.obs, batch.action)
        means = {"std": jnp.mean(std, axis=-1), "variance": jnp.mean(std**2, axis=-1)}

        def averaged(name: str, old: Array) -> Array:
            new = shard_mean(means[name])
            step = jnp.where(old > 0, self.running_tau, 1.0)  # deviations are positive
            return jnp.where(jnp.isfinite(new), optim.polyak(old, new, step), old)

        return state._replace(
            running={name: averaged(name, x) for name, x in state.running.items()}
        )

    def critic_loss(
        self, params: PyTree, state: DSACState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """A loss with the refined gradients. Before weighting, these are

        ``h'(Q - y_q)`` for Q and ``(sigma^2 - h(Q - C)) / (sigma + 0.1)`` for sigma, where h is the
        Huber loss and ``C = Q + clip(y_z - Q, -3 b, 3 b)``.
        """
        if not self.variance_scaling:
            return DSAC.critic_loss(self, params, state, batch, key)
        target = self.targets(state, batch, key)
        q, std = self.distribution(params, batch.obs, batch.action)
        bound = NOISE_CLIP * state.running["std"][:, None]
        error = jnp.clip(target.sample - stop_gradient(q), -bound, bound)
        if self.likelihood:
            weight = state.running["variance"][:, None]
            loss = weight * _likelihood_loss(q, std, target.mean, error)
        else:
            variance = stop_gradient(std) ** 2
            weight = state.running["std"][:, None] ** 2 / (variance + VARIANCE_FLOOR)
            slope = (variance - huber(error, HUBER_WIDTH)) / (stop_gradient(std) + VARIANCE_FLOOR)
            q_loss = huber(q - target.mean, HUBER_WIDTH)
            loss = jnp.clip(weight, 0.1, 10.0) * (q_loss + slope * std)
        return jnp.sum(jnp.mean(loss, axis=-1)), {"q": mean_of(q), "q_std": mean_of(std)}


def log_scale(space: Any) -> float:
    """Return ``sum log((high - low) / 2)`` over the action elements that are scaled."""
    scaled = space.bounded & (space.low < space.high)
    half = (space.high.astype(float) - space.low.astype(float)) / 2
    return float(np.sum(np.log(half[scaled])))


def _likelihood_loss(q: Array, std: Array, target_mean: Array, error: Array) -> Array:
    """A loss with the gradients of the normal log-likelihood, with floored divisors: ``[E, B]``.

    ``error`` is the clipped error of the sample, without gradient.
    """
    still_q, still_std = stop_gradient((q, std))
    q_slope = -(target_mean - still_q) / (still_std**2 + VARIANCE_FLOOR)
    std_slope = -(error**2 - still_std**2) / (still_std**3 + VARIANCE_FLOOR)
    return q_slope * q + std_slope * std
