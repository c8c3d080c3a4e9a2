"""PA-RL (Mark et al. 2024, "Policy Agnostic RL: Offline RL and Online RL Fine-Tuning of Any Class
and Backbone")."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.agents.improvement import Ascent, Values, ascended, candidates, drawn, kept
from jaxrl.errors import UsageError
from jaxrl.hyper import choice, number, part, size
from jaxrl.losses import expectile_loss, min_over_critics
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.nn.critics import Critic, ValueFunction
from jaxrl.nn.diffusion import Diffusion
from jaxrl.optim import Adam, Trained
from jaxrl.rng import row_key
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec

Learning = Literal["cal_ql", "iql"]

_NORMED: dict[str, Any] = {"layer_norm": True, "initializer": "orthogonal"}


class PARLState(NamedTuple):
    """The trained networks, and the target critics."""

    policy: Trained
    critic: Trained
    value: PyTree  # Trained; () without a value function
    target_critic: PyTree


@hyper.dataclass
class PARL:
    """Policy improvement as supervised learning on optimised actions, for any policy family.

    The mean over critics ranks ``improver.num_candidates`` samples of the policy. The best samples
    follow its gradient upwards, and each keeps the best action along its path. The data's action is
    optimised in the same way. The policy imitates one of these actions, drawn by
    ``softmax(Q / distill_temperature)``, with its own ``fit_loss``. Acting takes the best
    optimised action.

    Critics learn by Cal-QL or by IQL. Cal-QL uses optimised actions in the targets, and in place of
    policy samples in the conservative term. IQL uses only the data's actions.

    Defaults follow the authors' code. Departures: critics regress values, where theirs are
    distributions over fixed atoms, so ``cql_alpha`` is Cal-QL's; and the policy is distilled along
    with the critics, every ``policy_delay`` steps, where theirs alternates in epochs.
    """

    learns_from: ClassVar = "batches"
    imitates: ClassVar = ("policy",)
    policy_at: ClassVar = ("policy.params",)

    policy: Any = part(Diffusion(), help="policy family, one that samples and imitates")
    critic: Any = part(Critic(**_NORMED, num_critics=10), help="ensemble of critics")
    value: Any = part(ValueFunction(**_NORMED), help="value function, used only by IQL critics")
    improver: Any = part(Ascent(), help="how actions are optimised")
    optimizer: Any = part(Adam(), help="optimiser of each network")
    critic_learning: Learning = choice("cal_ql", Learning, help="how critics learn")
    actor_learning_rate: float = number(3e-4, above=0, help="step size of the policy")
    critic_learning_rate: float = number(3e-4, above=0, help="step size of critics and values")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    distill_temperature: float = number(
        1.0, 0, help="softmax temperature of the actions to imitate, in units of Q; 0: the best"
    )
    num_min_critics: int = size(
        2, help="targets use the minimum over this many critics, drawn for each step"
    )
    cql_alpha: float = number(5.0, 0, help="weight of Cal-QL's conservative term")
    num_actions: int = size(
        10, help="uniform actions in the conservative term, and copies of each optimised action"
    )
    expectile: float = number(
        0.7, 0, 1, help="IQL's expectile of Q over data actions: 0.5 is the mean, near 1 the best"
    )
    policy_delay: int = size(1, help="gradient steps from one update of the policy to the next")

    @property
    def batch_extras(self) -> tuple[str, ...]:
        """Return the names of the batch extras that the agent reads."""
        return ("return_to_go",) if self.critic_learning == "cal_ql" else ()

    def bind(self, spec: Spec) -> PARL:
        """Return the agent for ``spec``.

        Raises:
            UsageError: for discrete actions, parts that lack a method, or ``num_kept`` above
                ``num_candidates``.
        """
        protocol.require_continuous(self, spec)
        protocol.require_methods(self, "policy", ["sample", "fit_loss"], "Diffusion")
        protocol.require_methods(self, "improver", ["moved"], "Ascent")
        if self.improver.num_kept > self.improver.num_candidates:
            most = self.improver.num_candidates
            raise UsageError(
                f"num_kept is {self.improver.num_kept}, and there are {most} candidates; "
                f"give at most {most}"
            )
        parts = {name: getattr(self, name).bind(spec) for name in ("policy", "critic", "value")}
        return dataclasses.replace(self, **parts)

    def check(self, rows: int) -> None:
        """Raise UsageError for inconsistent sizes."""
        protocol.require_enough_critics(self)

    def init(self, key: Key) -> PARLState:
        """Return fresh networks."""
        policy_key, critic_key, value_key = jax.random.split(key, 3)
        critic, start = self.critic.init(critic_key), self.optimizer.start
        return PARLState(
            policy=start(self.policy.init(policy_key)),
            critic=start(critic),
            value=start(self.value.init(value_key)) if self.critic_learning == "iql" else (),
            target_critic=jax.tree.map(jnp.copy, critic),
        )

    # Losses

    def critic_loss(
        self, params: PyTree, state: PARLState, batch: Batch, optimised: Array | None, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y)^2 + cql_alpha gap_i``; only Cal-QL has the gap.

        ``y = r + discount V(s')`` with IQL, else ``r + discount min_j Q'_j(s', a')``, where ``a'``
        is the optimised action. ``optimised[2, B, A]`` holds the optimised actions at ``s`` and
        ``s'``, and

        ``gap_i = mean (log (exp Q_i(s, a) + sum_k exp Q_i(s, a_k)) - Q_i(s, a))``

        sums over ``num_actions`` uniform actions, and as many copies of each of the two optimised
        actions. The values of the optimised actions are bounded below by the data's return
        ``G(s)``.
        """
        uniform_key, subset_key = jax.random.split(key)
        if optimised is None:
            target = self.value(state.value.params, batch.next_obs)
            q = self.critic(params, batch.obs, batch.action)
            gap = jnp.zeros(q.shape[0])
            metrics: Metrics = {}
        else:
            target = self.critic(state.target_critic, batch.next_obs, optimised[1])
            target = min_over_critics(target, self.num_min_critics, subset_key)
            shape = (self.num_actions, *batch.action.shape)
            uniform = jax.random.uniform(row_key(uniform_key), shape, minval=-1.0)
            every = jnp.concatenate([batch.action[None], uniform, optimised])
            every_q = self.critic(params, batch.obs, every)  # [E, 1 + n + 2, B]
            bound = batch.extras["return_to_go"]
            known, policy_q = every_q[:, :-2], every_q[:, -2:]
            values = jnp.maximum(policy_q, bound) + math.log(self.num_actions)
            q = every_q[:, 0]
            log_sum = jax.nn.logsumexp(jnp.concatenate([known, values], axis=1), axis=1)
            gap = jnp.mean(log_sum - q, axis=-1)
            metrics = {"gap": mean_of(gap), "bounded": mean_of(policy_q < bound)}
        y = batch.reward + batch.discount * target
        error = jnp.mean(jnp.square(q - y), axis=-1)
        return jnp.sum(error + self.cql_alpha * gap), metrics | {"q": mean_of(q)}

    def value_loss(self, params: PyTree, batch: Batch, q: Array) -> tuple[Array, Metrics]:
        """``mean |expectile - 1(u < 0)| u^2``, where ``u = min_i Q'_i(s, a) - V(s)``.

        ``q`` is that minimum: ``[B]``.
        """
        value = self.value(params, batch.obs)
        return jnp.mean(expectile_loss(q - value, self.expectile)), {"value": mean_of(value)}

    def policy_loss(
        self, params: PyTree, batch: Batch, action: Array, key: Key
    ) -> tuple[Array, None]:
        """The mean of the family's ``fit_loss`` on optimised actions ``[B, A]``."""
        return jnp.mean(self.policy.fit_loss(params, batch.obs, action, key)), None

    # Optimised actions

    def values(self, state: PARLState, obs: PyTree) -> Values:
        """Return the mean over critics at ``obs[..., *O]``, as a function of actions."""
        return lambda action: jnp.mean(self.critic(state.critic.params, obs, action), axis=0)

    def candidates(self, state: PARLState, obs: PyTree, key: Key) -> Array:
        """Return samples ``[n, ..., A]`` of the policy at ``obs[..., *O]``."""
        count = self.improver.num_candidates
        return candidates(self.policy, state.policy.params, obs, key, count)

    def targets(self, state: PARLState, batch: Batch, actions: Array, key: Key) -> Array:
        """Return actions ``[B, A]`` to imitate, from candidates ``[n, B, A]``.

        The data's action replaces the worst kept candidate before the ascent.
        """
        q, improver = self.values(state, batch.obs), self.improver
        best = kept(actions, q(actions), improver.num_kept)
        best = jnp.concatenate([best[:-1], batch.action[None]])
        moved, values = ascended(q, best, improver.num_steps, improver.step_size)
        return drawn(moved, values, self.distill_temperature, key)

    # Update

    def update(
        self, state: PARLState, batch: Batch, key: Key, update_actor: bool = True
    ) -> tuple[PARLState, Metrics]:
        """One gradient step on ``[B]``: values and critics, the policy, target critics.

        Each step uses the networks updated before it.
        """
        sample_key, improve_key, critic_key, draw_key, fit_key = jax.random.split(key, 5)
        minimize, rate = self.optimizer.minimize, self.critic_learning_rate
        metrics: Metrics = {}
        if self.critic_learning == "iql":
            q = self.critic(state.target_critic, batch.obs, batch.action)
            q = min_over_critics(q, self.num_min_critics, improve_key)
            value, aux, more = minimize(self.value_loss, state.value, rate, batch, q)
            state, metrics = state._replace(value=value), more | aux
            actions, optimised = self.candidates(state, batch.obs, sample_key), None
        else:
            both = jax.tree.map(lambda *x: jnp.stack(x), batch.obs, batch.next_obs)
            every = self.candidates(state, both, sample_key)  # [n, 2, B, A]
            optimised = self.improver.improve(self.values(state, both), every, improve_key)
            actions = every[:, 0]
        critic, aux, more = minimize(
            self.critic_loss, state.critic, rate, state, batch, optimised, critic_key
        )
        state, metrics = state._replace(critic=critic), merged(metrics, more | aux)
        if update_actor:
            action = self.targets(state, batch, actions, draw_key)
            policy, _, more = minimize(
                self.policy_loss, state.policy, self.actor_learning_rate, batch, action, fit_key
            )
            gain = self.values(state, batch.obs)(jnp.stack([action, batch.action]))
            metrics = merged(metrics, more) | {"gain": mean_of(gain[0] - gain[1])}
            state = state._replace(policy=policy)
        target = optim.polyak(state.target_critic, state.critic.params, self.tau)
        return state._replace(target_critic=target), metrics

    # Acting

    def act(
        self, state: PARLState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an optimised action ``[..., A]`` in every mode, carry and extras."""
        sample_key, improve_key = jax.random.split(key)
        actions = self.candidates(state, obs, sample_key)
        return self.improver.improve(self.values(state, obs), actions, improve_key), carry, {}
