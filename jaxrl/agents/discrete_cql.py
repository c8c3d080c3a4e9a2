"""CQL for discrete actions (Kumar et al. 2020, "Conservative Q-Learning for Offline Reinforcement
Learning", section 6, the Atari experiments)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, losses, optim
from jaxrl.agents import protocol
from jaxrl.agents.exploration import epsilon_greedy
from jaxrl.hyper import number, part
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn.critics import QNetwork
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class DiscreteCQLState(NamedTuple):
    """The Q-network and its target network."""

    q: Trained
    target_q: PyTree


@hyper.dataclass
class DiscreteCQL:
    """Double deep Q-learning that lowers Q-values of actions outside the data.

    The loss has a term ``cql_alpha (logsumexp_b Q(s, b) - Q(s, a))``: the cross-entropy of the
    data's actions under the policy ``softmax Q``. Departures from the paper: expected values
    instead of quantiles, and a target network that is updated at every step.
    """

    learns_from: ClassVar = "batches"

    q_network: Any = part(QNetwork(), help="values of all actions")
    optimizer: Any = part(Adam(), help="optimiser")
    learning_rate: float = number(3e-4, above=0, help="step size")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target network")
    cql_alpha: float = number(1.0, 0, help="weight of the conservative term; 0 leaves it out")
    epsilon: float = number(0.05, 0, 1, help="probability of a random action, online")

    def bind(self, spec: Spec) -> DiscreteCQL:
        """Return the agent for ``spec``. Raises UsageError for continuous actions."""
        protocol.require_discrete(self, spec)
        return dataclasses.replace(self, q_network=self.q_network.bind(spec))

    def init(self, key: Key) -> DiscreteCQLState:
        """Return a fresh network."""
        params = self.q_network.init(key)
        return DiscreteCQLState(self.optimizer.start(params), jax.tree.map(jnp.copy, params))

    # Losses

    def q_loss(
        self, params: PyTree, state: DiscreteCQLState, batch: Batch
    ) -> tuple[Array, Metrics]:
        """``mean (Q(s, a) - y)^2 / 2 + cql_alpha (logsumexp_b Q(s, b) - Q(s, a))``, where

        ``y = r + discount Q'(s', argmax_b Q(s', b))``.
        """
        chosen = jnp.argmax(self.q_network(state.q.params, batch.next_obs), axis=-1)
        next_q = self.q_network(state.target_q, batch.next_obs)
        target = batch.reward + batch.discount * losses.value_of_action(next_q, chosen)
        values = self.q_network(params, batch.obs)
        q = losses.value_of_action(values, batch.action)
        gap = jax.nn.logsumexp(values, axis=-1) - q
        loss = jnp.mean(0.5 * jnp.square(q - target) + self.cql_alpha * gap)
        return loss, {"q": mean_of(q), "gap": mean_of(gap)}

    # Update

    def update(
        self, state: DiscreteCQLState, batch: Batch, key: Key
    ) -> tuple[DiscreteCQLState, Metrics]:
        """One gradient step on ``[B]``, and one of the target network."""
        q, aux, metrics = self.optimizer.minimize(
            self.q_loss, state.q, self.learning_rate, state, batch
        )
        target = optim.polyak(state.target_q, q.params, self.tau)
        return DiscreteCQLState(q, target), metrics | aux

    # Acting

    def act(
        self, state: DiscreteCQLState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an epsilon-greedy action ``[...]`` (the best if ``greedy``), carry and extras."""
        q = self.q_network(state.q.params, obs)
        return epsilon_greedy(q, jnp.asarray(self.epsilon), key, mode), carry, {}
