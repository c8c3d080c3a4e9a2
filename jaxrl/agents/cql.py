"""CQL (Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement Learning") and Cal-QL
(Nakamoto et al. 2023, "Cal-QL: Calibrated Offline RL Pre-Training for Efficient Online
Fine-Tuning")."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.hyper import flag, number, part, size
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import TanhGaussian
from jaxrl.optim import Adam, Trained
from jaxrl.rng import row_key
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec

LARGEST_MULTIPLIER = 1e6

_SIZES: dict[str, Any] = {"hidden_dims": (256, 256, 256), "initializer": "orthogonal"}


class CQLState(NamedTuple):
    """The trained networks, temperature and Lagrange multiplier, and the target critics."""

    actor: Trained
    critic: Trained
    log_alpha: Trained
    log_multiplier: PyTree  # Trained; () without a multiplier
    target_critic: PyTree


@hyper.dataclass
class CQL:
    """Conservative Q-learning: SAC that lowers Q-values of actions outside the data.

    The critics' loss has a term ``cql_alpha (logsumexp Q(s, .) - Q(s, a))``. The log-sum-exp is
    estimated from ``num_actions`` actions each of the uniform distribution, ``pi(. | s)`` and
    ``pi(. | s')``, all valued at ``s``. The estimate uses importance sampling, or else these
    actions and the data's action, unweighted. Targets have no entropy.

    With ``lagrange_gap`` a multiplier also weights the term. It grows while the log-sum-exp exceeds
    Q of the data by more than ``lagrange_gap``, and falls otherwise.

    The defaults are the usual ones for locomotion; mazes use a ``cql_alpha`` of 5, a
    ``lagrange_gap`` of 0.8 and ``max_target_backup``. Departure from the authors' code: critics,
    actor and temperature are updated in SAC's order, and each step uses the networks updated before
    it. If a policy's actions leave [-1, 1], they are compared with uniform actions inside.
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("actor.params",)

    policy: Any = part(TanhGaussian(**_SIZES), help="policy family")
    critic: Any = part(Critic(**_SIZES), help="ensemble of critics")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    actor_learning_rate: float = number(3e-5, above=0, help="step size of the policy")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of the critics")
    alpha_learning_rate: float = number(3e-5, 0, help="step size of log alpha; 0 keeps alpha")
    multiplier_learning_rate: float = number(3e-4, 0, help="step size of the log multiplier")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    initial_alpha: float = number(1.0, above=0, help="initial temperature")
    target_entropy: float = number(-1.0, help="entropy per action element, in nats")
    cql_alpha: float = number(10.0, 0, help="weight of the conservative term; 0 leaves it out")
    lagrange_gap: float | None = number(
        None,
        help="the Lagrange multiplier of the conservative term grows while the gap exceeds this, "
        "in units of Q; log(3 num_actions) of the gap comes from the number of sampled actions; "
        "None: no multiplier",
    )
    initial_multiplier: float = number(math.e, above=0, help="initial Lagrange multiplier")
    num_actions: int = size(
        10, help="actions sampled from each of: uniform, the policy at s, the policy at s'"
    )
    importance_sampling: bool = flag(True, help="weight sampled actions by their densities")
    max_target_backup: bool = flag(
        False, help="targets use the best of num_actions next actions instead of one"
    )
    policy_delay: int = size(1, help="gradient steps from one update of the actor to the next")

    def bind(self, spec: Spec) -> Any:
        """Return the agent for ``spec``. Raises UsageError for discrete actions."""
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["dist"], "TanhGaussian")
        policy, critic = self.policy.bind(spec), self.critic.bind(spec)
        return dataclasses.replace(self, policy=policy, critic=critic)

    def init(self, key: Key) -> CQLState:
        """Return fresh networks."""
        actor_key, critic_key = jax.random.split(key)
        critic = self.critic.init(critic_key)
        start = self.optimizer.start
        multiplier = jnp.log(jnp.float32(self.initial_multiplier))
        return CQLState(
            actor=start(self.policy.init(actor_key)),
            critic=start(critic),
            log_alpha=start(jnp.log(jnp.float32(self.initial_alpha))),
            log_multiplier=() if self.lagrange_gap is None else start(multiplier),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: CQLState, batch: Batch, key: Key
    ) -> tuple[Array, tuple[Array, Metrics]]:
        """``sum_i mean (Q_i(s, a) - y)^2 + cql_alpha gap_i``; the gaps ``[E]``, and metrics.

        ``y = r + discount min_j Q'_j(s', a')``, where ``a' ~ pi``, and

        ``gap_i = mean (log sum_k exp(Q_i(s, a_k) - log p(a_k)) - Q_i(s, a))``, or without
        importance sampling, ``mean (log (exp Q_i(s, a) + sum_k exp Q_i(s, a_k)) - Q_i(s, a))``;
        with a multiplier ``m``, ``m cql_alpha (gap_i - lagrange_gap)``.
        """
        both = jax.tree.map(lambda *x: jnp.stack(x), batch.obs, batch.next_obs)
        dist = self.policy.dist(state.actor.params, both)  # [2, B]
        next_value = self.next_value(state, batch, jax.tree.map(lambda x: x[1], dist), key)
        target = batch.reward + batch.discount * next_value

        drawn, log_prob = self.proposals(dist, jax.random.fold_in(key, 1))
        q = self.critic(params, batch.obs, jnp.concatenate([batch.action[None], drawn]))
        q_data, q_uniform, q_policy = jnp.split(q, [1, 1 + self.num_actions], axis=1)
        q_policy, metrics = self.calibrated(q_policy, batch)
        if self.importance_sampling:
            values = jnp.concatenate([q_uniform, q_policy], axis=1) - log_prob
        else:
            values = jnp.concatenate([q_data, q_uniform, q_policy], axis=1)
        q_data = q_data[:, 0]
        gap = jnp.mean(jax.nn.logsumexp(values, axis=1) - q_data, axis=-1)

        penalty = self.cql_alpha * gap
        if self.lagrange_gap is not None:
            weight = self.cql_alpha * multiplier(state.log_multiplier.params)
            penalty = weight * (gap - self.lagrange_gap)
        error = jnp.mean(jnp.square(q_data - target), axis=-1)
        metrics |= {"q": mean_of(q_data), "gap": mean_of(gap)}
        return jnp.sum(error + penalty), (gap, metrics)

    def next_value(self, state: CQLState, batch: Batch, dist: Any, key: Key) -> Array:
        """``min_j Q'_j(s', a')``, or its maximum over ``num_actions`` draws: ``[B]``."""
        critic = state.target_critic
        if self.max_target_backup:
            action, _ = jax.vmap(dist.sample)(jax.random.split(key, self.num_actions))
            return jnp.max(jnp.min(self.critic(critic, batch.next_obs, action), axis=0), axis=0)
        action, _ = dist.sample(key)
        return jnp.min(self.critic(critic, batch.next_obs, action), axis=0)

    def proposals(self, dist: Any, key: Key) -> tuple[Array, Array]:
        """Return actions ``[3 K, B, A]`` and log-densities ``[3 K, B]``; K is ``num_actions``.

        The first K are uniform; the others come from ``dist[2, B]`` at ``s`` and at ``s'``.
        """
        uniform_key, policy_key = jax.random.split(key)
        action, trace = jax.vmap(dist.sample)(jax.random.split(policy_key, self.num_actions))
        action, log_prob = (
            jnp.moveaxis(x, 1, 0).reshape(2 * self.num_actions, *x.shape[2:])
            for x in (action, trace.log_prob)
        )
        shape = (self.num_actions, *action.shape[1:])
        uniform = jax.random.uniform(row_key(uniform_key), shape, minval=-1.0)
        density = jnp.full(shape[:-1], shape[-1] * math.log(0.5))
        return jnp.concatenate([uniform, action]), jnp.concatenate([density, log_prob])

    def calibrated(self, q: Array, batch: Batch) -> tuple[Array, Metrics]:
        """Return values ``[E, 2 K, B]`` of the policy's actions for the conservative term."""
        return q, {}

    def actor_loss(
        self, params: PyTree, state: CQLState, batch: Batch, key: Key
    ) -> tuple[Array, Array]:
        """``mean (alpha log pi(a | s) - min_i Q_i(s, a))``, ``a ~ pi``; and the entropy."""
        action, trace = self.policy.dist(params, batch.obs).sample(key)
        q = jnp.min(self.critic(state.critic.params, batch.obs, action), axis=0)
        alpha = jnp.exp(state.log_alpha.params)
        return jnp.mean(alpha * trace.log_prob - q), -jnp.mean(trace.log_prob)

    def alpha_loss(self, log_alpha: Array, entropy: Array) -> tuple[Array, None]:
        """``alpha (H - H_target)``."""
        target = self.target_entropy * self.policy.action_dim
        return jnp.exp(log_alpha) * (entropy - target), None

    def multiplier_loss(self, log_multiplier: Array, gap: Array) -> tuple[Array, None]:
        """``-m cql_alpha (mean_i gap_i - lagrange_gap)``."""
        excess = jnp.mean(gap) - jnp.asarray(self.lagrange_gap)
        return -multiplier(log_multiplier) * self.cql_alpha * excess, None

    # Update

    def update(
        self, state: CQLState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[CQLState, Metrics]:
        """One gradient step on ``[B]``: critics and multiplier; actor, temperature; targets."""
        critic_key, actor_key = jax.random.split(key)
        minimize = self.optimizer.minimize
        critic, (gap, aux), metrics = minimize(
            self.critic_loss, state.critic, self.critic_learning_rate, state, batch, critic_key
        )
        metrics |= aux
        state = state._replace(critic=critic)
        if self.lagrange_gap is not None:
            weight, _, more = minimize(
                self.multiplier_loss, state.log_multiplier, self.multiplier_learning_rate, gap
            )
            state, metrics = state._replace(log_multiplier=weight), merged(metrics, more)
            metrics["multiplier"] = mean_of(multiplier(weight.params))
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
        self, state: CQLState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an action ``[..., A]`` (a sample, or the mode if ``greedy``), carry and extras."""
        if mode == "greedy":
            return self.policy.mode(state.actor.params, obs, key), carry, {}
        return self.policy.sample(state.actor.params, obs, key)[0], carry, {}


@hyper.dataclass
class CalQL(CQL):
    """Cal-QL: CQL that does not push Q of the policy's actions below the behaviour's return.

    In the conservative term, the values of the policy's actions are bounded below by the discounted
    return-to-go in the data. So Q stays on the scale of returns, and is not unlearnt when training
    continues online. A bound of minus infinity means no bound.
    """

    cql_alpha: float = number(5.0, 0, help="weight of the conservative term; 0 leaves it out")
    max_target_backup: bool = flag(
        True, help="targets use the best of num_actions next actions instead of one"
    )

    batch_extras: ClassVar[tuple[str, ...]] = ("return_to_go",)

    def calibrated(self, q: Array, batch: Batch) -> tuple[Array, Metrics]:
        """Return ``max(q, G(s))`` for ``q[E, 2 K, B]``, and the share where the bound applies."""
        bound = batch.extras["return_to_go"]
        return jnp.maximum(q, bound), {"bounded": mean_of(q < bound)}


def multiplier(log_multiplier: Array) -> Array:
    """Return the Lagrange multiplier: ``[]``."""
    return jnp.clip(jnp.exp(log_multiplier), 0.0, LARGEST_MULTIPLIER)
