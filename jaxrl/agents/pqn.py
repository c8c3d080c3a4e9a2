"""PQN (Gallici et al. 2024, "Simplifying Deep Temporal Difference Learning")."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import losses, optim
from jaxrl.agents import epsilon as eps
from jaxrl.agents import minibatches as mb
from jaxrl.agents.epsilon import Chance
from jaxrl.hyper import require, require_choice
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn import networks
from jaxrl.nn.networks import MLP, Activation, Init, flat_input
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition


class PQNState(NamedTuple):
    """Parameters of the Q-network, the optimiser, and finished updates."""

    params: PyTree
    optim: optim.OptimState
    updates: Array  # int32, finished calls of ``update``


class Samples(NamedTuple):
    """What a minibatch is made of: a rollout's rows ``[T, N, ...]``, or ``[B, ...]`` of them."""

    obs: PyTree
    action: Array
    target: Array


@struct.dataclass
class PQN:
    """On-policy Q(lambda) with a normalised network: no replay, no target network.

    Parallel environments act epsilon-greedily, all with the same epsilon. Once per rollout the
    network that acted gives lambda returns of its largest Q-values; then it is regressed on them
    over epochs of shuffled minibatches, by rectified Adam (RAdam), with the global norm of the
    gradient clipped. Layer normalisation is what keeps this stable without a target network.

    The defaults are those of the authors' code for MinAtar. Departures from it: the lambda return
    of the last step but one mixes the value of its own successor, not of the rollout's last; at a
    time limit the value of the *true* successor stands in for what would have followed; and the
    network is an MLP on the flattened observation. Discrete actions only.

    Attributes:
        learning_rate: of RAdam; > 0.
        gamma: discount in [0, 1].
        q_lambda: of the returns, in [0, 1]: 0 is one-step Q-learning, 1 Monte Carlo.
        max_grad_norm: the gradient's global norm is clipped to it; > 0.
        anneal_over: updates over which the learning rate falls linearly to 0; 0 keeps it constant.
        epsilon_start: the probability of a random action at first, in [0, 1].
        epsilon_end: the same at last, in [0, 1].
        epsilon_over: updates between the two, linearly; 0 stays at ``epsilon_start``.
        epochs: passes over a rollout.
        minibatches: per epoch; must divide the number of transitions.
        hidden: widths of the hidden layers.
        activation: of the hidden layers.
        init_kind: "orthogonal", "lecun" (uniform), or "torch" (its default).
        layer_norm: normalise each hidden layer before its activation.
        policy_obs: of observations that are dictionaries, the part that it sees.
    """

    learning_rate: float = 5e-4
    gamma: float = 0.99
    q_lambda: float = 0.65
    max_grad_norm: float = 10.0
    anneal_over: float = 0.0
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_over: float = 0.0
    epochs: int = struct.field(pytree_node=False, default=2)
    minibatches: int = struct.field(pytree_node=False, default=32)
    hidden: tuple[int, ...] = struct.field(pytree_node=False, default=(128, 128))
    activation: Activation = struct.field(pytree_node=False, default="relu")
    init_kind: Init = struct.field(pytree_node=False, default="lecun")
    layer_norm: bool = struct.field(pytree_node=False, default=True)
    policy_obs: str = struct.field(pytree_node=False, default="state")

    # Networks

    def q_net(self, actions: int = 0) -> MLP:
        """The Q-network; the number of ``actions`` is needed to initialise it."""
        return MLP(
            self.hidden, actions, self.activation, self.init_kind, layer_norm=self.layer_norm
        )

    def values(self, params: PyTree, obs: PyTree) -> Array:
        """Values of all actions at ``obs[..., *O]``: ``[..., n]``."""
        q: Any = self.q_net().apply(params, networks.policy_part(obs, self.policy_obs))
        return q

    @property
    def optimiser(self) -> optim.Adam:
        """RAdam after clipping."""
        return optim.Adam(self.max_grad_norm, rectified=True)

    def init(self, key: Key, spec: Spec) -> PQNState:
        """A fresh network for ``spec``.

        Raises:
            UsageError: if its actions are continuous.
        """
        acts_on = flat_input(networks.policy_part(spec.observation, self.policy_obs))
        params = self.q_net(eps.number_of_actions(spec, "PQN")).init(key, acts_on)
        return PQNState(params, self.optimiser.init(params), jnp.int32(0))

    # Losses

    def targets(self, params: PyTree, batch: Transition) -> Array:
        """The lambda returns of a rollout ``[T, N]``: ``[T, N]``."""
        return losses.lambda_returns(
            batch.reward,
            jnp.max(self.values(params, batch.next_obs), axis=-1),
            batch.terminated,
            batch.truncated,
            self.gamma,
            self.q_lambda,
        )

    def loss(self, params: PyTree, batch: Samples) -> tuple[Array, Metrics]:
        """``mean (Q(s, a) - G)^2 / 2`` over ``[B]``."""
        q = losses.value_of_action(self.values(params, batch.obs), batch.action)
        loss = 0.5 * jnp.mean(jnp.square(q - batch.target))
        return loss, {"q_loss": mean_of(loss), "q": mean_of(q)}

    # Update

    def check(self, transitions: int) -> None:
        """Raise UsageError for what cannot work with ``transitions`` per update."""
        for name in ("learning_rate", "max_grad_norm"):
            require(name, getattr(self, name), 0, above=True)
        for name in ("gamma", "q_lambda", "epsilon_start", "epsilon_end"):
            require(name, getattr(self, name), 0, 1)
        for name in ("anneal_over", "epsilon_over"):
            require(name, getattr(self, name), 0)
        for name in ("epochs", "minibatches"):
            require(name, getattr(self, name), 1)
        for width in self.hidden:
            require("hidden", width, 1)
        for name, kinds in {"activation": Activation, "init_kind": Init}.items():
            require_choice(name, getattr(self, name), kinds)
        mb.check_divides(self.minibatches, transitions)

    def update(self, state: PQNState, batch: Transition, key: Key) -> tuple[PQNState, Metrics]:
        """Epochs of minibatch steps on a rollout ``[T, N]``. Each shard shuffles its own rows."""
        samples = Samples(batch.obs, batch.action, self.targets(state.params, batch))
        rate = self.learning_rate * optim.linear_decay(state.updates, self.anneal_over)

        def step(carry: tuple, minibatch: Samples, key: Key) -> tuple[tuple, Metrics]:
            params, opt = carry
            grads, metrics = jax.grad(self.loss, has_aux=True)(params, minibatch)
            params, opt, step_metrics = self.optimiser.step(grads, opt, params, rate)
            return (params, opt), metrics | step_metrics

        start = (state.params, state.optim)
        (params, opt), metrics = mb.learn(step, start, samples, key, self.epochs, self.minibatches)
        metrics["epsilon"] = mean_of(self.epsilon(state.updates))
        return PQNState(params, opt, state.updates + 1), metrics

    def observe(self, state: PQNState, transitions: Transition) -> PQNState:
        """PQN keeps no statistics."""
        return state

    # Acting

    def epsilon(self, updates: Array) -> Array:
        """The probability of a random action after so many updates: ``[]``."""
        return eps.falling(updates, self.epsilon_start, self.epsilon_end, self.epsilon_over)

    def draw(self, state: PQNState, obs: PyTree, key: Key, steps: int) -> Chance:
        """The randomness of ``steps`` calls of ``act`` at such ``obs``: ``[steps, ...]``."""
        q = jax.eval_shape(self.values, state.params, obs)
        return eps.chance(key, (steps, *q.shape[:-1]), q.shape[-1])

    def act(
        self, state: PQNState, obs: PyTree, key: Key | Chance, mode: Mode
    ) -> tuple[Array, Extras]:
        """The best action at ``obs[..., *O]``, or unless ``greedy``, by epsilon, a random one.

        ``key`` may be randomness that ``draw`` drew.
        """
        q = self.values(state.params, obs)
        return eps.choose(q, self.epsilon(state.updates), key, mode), {}
