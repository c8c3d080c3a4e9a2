"""PQN (Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from jaxrl import hyper, losses, optim
from jaxrl.agents import minibatches, protocol
from jaxrl.agents.exploration import epsilon_greedy, linear_schedule
from jaxrl.hyper import number, part, size
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn.critics import QNetwork
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition


class PQNState(NamedTuple):
    """The Q-network, and the number of updates."""

    q: Trained
    updates: Array  # int32, calls of ``update``


class Minibatch(NamedTuple):
    """Rows of a rollout ``[T, N, ...]``, or ``[B, ...]`` of them."""

    obs: PyTree
    action: Array
    target: Array


@hyper.dataclass
class PQN:
    """On-policy Q(lambda) with a normalised network: no replay buffer, no target network.

    All parallel environments act epsilon-greedily with the same epsilon. After each rollout, lambda
    returns are computed once from the acting network's largest Q-values. The network is then
    regressed on them over epochs of shuffled minibatches. Layer normalisation keeps this stable
    without a target network.

    The defaults follow the authors' code for MinAtar. Departures from it: the lambda return of the
    second-to-last step mixes in the value of its own next state, not of the rollout's last; time
    limits bootstrap from the true next state; and the default network is an MLP on the flattened
    observation. Discrete actions only.
    """

    learns_from: ClassVar = "rollouts"

    q_network: Any = part(
        QNetwork(hidden_dims=(128, 128), layer_norm=True, initializer="lecun"),
        help="values of all actions",
    )
    optimizer: Any = part(Adam(max_grad_norm=10.0, rectified=True), help="optimiser")
    learning_rate: float = number(5e-4, above=0, help="step size")
    lr_decay_steps: float = number(
        0.0, 0, help="updates over which the learning rate falls linearly to 0; 0: constant rate"
    )
    gamma: float = number(0.99, 0, 1, help="discount")
    q_lambda: float = number(
        0.65, 0, 1, help="lambda of the returns: 0 is one-step Q-learning, 1 is Monte Carlo"
    )
    epsilon_start: float = number(1.0, 0, 1, help="initial probability of a random action")
    epsilon_end: float = number(0.05, 0, 1, help="final probability of a random action")
    epsilon_decay_steps: float = number(
        0.0, 0, help="updates from epsilon_start to epsilon_end; 0 stays at epsilon_start"
    )
    update_epochs: int = size(2, help="passes over a rollout")
    num_minibatches: int = size(32, help="minibatches of each pass; divides the transitions")

    @property
    def gradient_steps_per_update(self) -> int:
        """``update_epochs * num_minibatches``."""
        return self.update_epochs * self.num_minibatches

    def bind(self, spec: Spec) -> PQN:
        """Return the agent for ``spec``. Raises UsageError for continuous actions."""
        protocol.require_discrete(self, spec)
        return dataclasses.replace(self, q_network=self.q_network.bind(spec))

    def check(self, rows: int) -> None:
        """Raise UsageError unless the transitions of an update divide into minibatches."""
        minibatches.check_divides(self.num_minibatches, rows)

    def init(self, key: Key) -> PQNState:
        """Return a fresh network."""
        return PQNState(self.optimizer.start(self.q_network.init(key)), jnp.int32(0))

    # Losses

    def targets(self, params: PyTree, rollout: Transition) -> Array:
        """Return the lambda returns of a rollout ``[T, N]``: ``[T, N]``."""
        return losses.lambda_returns(
            rollout.reward,
            jnp.max(self.q_network(params, rollout.next_obs), axis=-1),
            rollout.terminated,
            rollout.truncated,
            self.gamma,
            self.q_lambda,
        )

    def q_loss(self, params: PyTree, batch: Minibatch) -> tuple[Array, Metrics]:
        """``mean (Q(s, a) - G)^2 / 2`` over ``[B]``."""
        q = losses.value_of_action(self.q_network(params, batch.obs), batch.action)
        return 0.5 * jnp.mean(jnp.square(q - batch.target)), {"q": mean_of(q)}

    # Update

    def update(self, state: PQNState, rollout: Transition, key: Key) -> tuple[PQNState, Metrics]:
        """Epochs of minibatch steps on a rollout ``[T, N]``. Each shard shuffles its own rows."""
        targets = self.targets(state.q.params, rollout)
        rows = Minibatch(rollout.obs, rollout.action, targets)
        rate = self.learning_rate * optim.linear_decay(state.updates, self.lr_decay_steps)

        def step(key: Key, q: Trained, batch: Minibatch) -> tuple[Trained, Metrics]:
            q, aux, metrics = self.optimizer.minimize(self.q_loss, q, rate, batch)
            return q, metrics | aux

        sizes = (self.update_epochs, self.num_minibatches)
        q, metrics = minibatches.minibatch_epochs(step, state.q, rows, key, *sizes)
        metrics["epsilon"] = mean_of(self.epsilon(state))
        return PQNState(q, state.updates + 1), metrics

    # Acting

    def epsilon(self, state: PQNState) -> Array:
        """Return the probability of a random action: ``[]``."""
        ends = (self.epsilon_start, self.epsilon_end)
        return linear_schedule(state.updates, *ends, self.epsilon_decay_steps)

    def act(
        self, state: PQNState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an epsilon-greedy action ``[...]`` (the best if ``greedy``), carry and extras."""
        q = self.q_network(state.q.params, obs)
        return epsilon_greedy(q, self.epsilon(state), key, mode), carry, {}
