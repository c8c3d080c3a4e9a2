"""DQN (Mnih et al. 2015, "Human-level control through deep reinforcement learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, losses, optim
from jaxrl.agents import protocol
from jaxrl.agents.exploration import epsilon_greedy, linear_schedule
from jaxrl.hyper import flag, number, part, size
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn.critics import QNetwork
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class DQNState(NamedTuple):
    """The Q-network, its target network, and the number of gradient steps."""

    q: Trained
    target_q: PyTree
    gradient_steps: Array  # int32


@hyper.dataclass
class DQN:
    """Deep Q-learning with a replay buffer and a target network; discrete actions only.

    With ``double`` the Q-network chooses the next action and the target network values it (van
    Hasselt et al. 2016, "Deep Reinforcement Learning with Double Q-learning");
    ``q_network.dueling`` separates state values from advantages (Wang et al. 2016, "Dueling Network
    Architectures for Deep Reinforcement Learning").

    ``huber`` is the paper's clipping of errors to [-1, 1]; the paper also clips rewards to [-1, 1].
    It biases values wherever returns from one state differ by more than ``huber``. With rewards of
    1, random termination with probability 0.1, and gamma 0.9, the fixed point is 8.9, but the true
    value is 5.3. With ``huber=None`` values are expected returns. Scaling rewards down reduces the
    bias.

    Departures from the paper: ``double`` is on, Adam replaces RMSProp, rewards are not clipped
    (scale them with ``ScaleReward``), time limits bootstrap from the true next state, and the
    default network is an MLP on the flattened observation.
    """

    learns_from: ClassVar = "batches"

    q_network: Any = part(QNetwork(), help="values of all actions")
    optimizer: Any = part(Adam(), help="optimiser")
    learning_rate: float = number(1e-4, above=0, help="step size")
    lr_decay_steps: float = number(
        0.0, 0, help="gradient steps over which the learning rate falls linearly to 0; 0: constant"
    )
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(
        1.0, 0, 1, help="Polyak averaging rate of the target network; 1 copies the Q-network"
    )
    target_every: int = size(1_000, help="gradient steps between updates of the target network")
    huber: float | None = number(
        1.0,
        above=0,
        optional=True,
        help="threshold of the Huber loss, in units of the scaled return; it biases values where "
        "targets differ by more; None: squared loss, without this bias",
    )
    epsilon_start: float = number(1.0, 0, 1, help="initial probability of a random action")
    epsilon_end: float = number(0.05, 0, 1, help="final probability of a random action")
    epsilon_decay_steps: float = number(
        0.0, 0, help="gradient steps from epsilon_start to epsilon_end; 0 stays at epsilon_start"
    )
    double: bool = flag(True, help="double Q-learning")

    def bind(self, spec: Spec) -> DQN:
        """Return the agent for ``spec``. Raises UsageError for continuous actions."""
        protocol.require_discrete(self, spec)
        return dataclasses.replace(self, q_network=self.q_network.bind(spec))

    def init(self, key: Key) -> DQNState:
        """Return a fresh network."""
        params = self.q_network.init(key)
        target = jax.tree.map(jnp.copy, params)
        return DQNState(self.optimizer.start(params), target, jnp.int32(0))

    # Losses

    def q_loss(self, params: PyTree, state: DQNState, batch: Batch) -> tuple[Array, Metrics]:
        """``mean huber(Q(s, a) - y)``, or ``mean (Q(s, a) - y)^2 / 2``, where

        ``y = r + discount Q'(s', argmax_a Q(s', a))``, or ``r + discount max_a Q'(s', a)``.
        """
        next_q = self.q_network(state.target_q, batch.next_obs)
        chooser = self.q_network(state.q.params, batch.next_obs) if self.double else next_q
        next_value = losses.value_of_action(next_q, jnp.argmax(chooser, axis=-1))
        target = batch.reward + batch.discount * next_value
        q = losses.value_of_action(self.q_network(params, batch.obs), batch.action)
        if self.huber is None:
            return 0.5 * jnp.mean(jnp.square(q - target)), {"q": mean_of(q)}
        return jnp.mean(losses.huber(q - target, self.huber)), {"q": mean_of(q)}

    # Update

    def update(self, state: DQNState, batch: Batch, key: Key) -> tuple[DQNState, Metrics]:
        """One gradient step on ``[B]``; updates the target network every ``target_every`` steps."""
        done = state.gradient_steps
        rate = self.learning_rate * optim.linear_decay(done, self.lr_decay_steps)
        q, aux, metrics = self.optimizer.minimize(self.q_loss, state.q, rate, state, batch)
        closer = optim.polyak(state.target_q, q.params, self.tau)
        due = (done + 1) % self.target_every == 0
        target = jax.tree.map(lambda a, b: jnp.where(due, a, b), closer, state.target_q)
        metrics |= aux | {"epsilon": mean_of(self.epsilon(state))}
        return DQNState(q, target, done + 1), metrics

    # Acting

    def epsilon(self, state: DQNState) -> Array:
        """Return the probability of a random action: ``[]``."""
        ends = (self.epsilon_start, self.epsilon_end)
        return linear_schedule(state.gradient_steps, *ends, self.epsilon_decay_steps)

    def act(
        self, state: DQNState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an epsilon-greedy action ``[...]`` (the best if ``greedy``), carry and extras."""
        q = self.q_network(state.q.params, obs)
        return epsilon_greedy(q, self.epsilon(state), key, mode), carry, {}
