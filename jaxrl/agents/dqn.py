"""DQN (Mnih et al. 2015, "Human-level control through deep reinforcement learning")."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import losses, optim
from jaxrl.agents import epsilon as eps
from jaxrl.agents.epsilon import Chance
from jaxrl.agents.replayed import Replayed, ReplayedState
from jaxrl.hyper import require
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn.networks import MLP, Dueling, flat_input
from jaxrl.types import Array, Extras, Key, Mode, PyTree, Spec, Transition


@struct.dataclass
class DQN(Replayed):
    """Deep Q-learning from replay, with a slow copy of the network; discrete actions only.

    ``double`` lets the learnt network choose the successor's action and the slow copy value it (van
    Hasselt et al. 2016, "Deep Reinforcement Learning with Double Q-learning"); ``dueling`` parts
    values from advantages (Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement
    Learning"). Departures from the paper: Adam instead of RMSProp, rewards are not clipped (scale
    them with ``ScaleReward``), at a time limit the value of the true successor stands in for what
    would have followed, and the network is an MLP on the flattened observation.

    Attributes:
        tau: the step of the slow copy towards the network; in [0, 1], and 1 copies it.
        anneal_over: gradient steps over which the learning rate falls linearly to 0; 0 keeps it.
        target_every: gradient steps from one such step to the next; >= 1.
        huber: the error's square counts within this width and its magnitude beyond, so that no
            error pulls harder than this; > 0; None: the square everywhere.
        epsilon_start: the probability of a random action at first, in [0, 1].
        epsilon_end: the same at last, in [0, 1].
        epsilon_over: gradient steps between the two, linearly; 0 stays at ``epsilon_start``.
        double: see above.
        dueling: see above.
        delay: of agents with an actor; 1 here.
        policy_obs: of observations that are dictionaries, the part that it sees.
        value_obs: of agents with critics.
    """

    learning_rate: float = 1e-4
    anneal_over: float = 0.0
    tau: float = 1.0
    target_every: int = 1_000
    huber: float | None = 1.0
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_over: float = 0.0
    double: bool = struct.field(pytree_node=False, default=True)
    dueling: bool = struct.field(pytree_node=False, default=False)

    # Networks

    def q_net(self, actions: int = 0) -> MLP:
        """The Q-network; the number of ``actions`` is needed to initialise it."""
        kind = Dueling if self.dueling else MLP
        return kind(
            self.hidden, actions, self.activation, self.init_kind, layer_norm=self.layer_norm
        )

    def values(self, params: PyTree, obs: PyTree) -> Array:
        """Values of all actions at ``obs[..., *O]``: ``[..., n]``."""
        q: Any = self.q_net().apply(params, self.seen_by_policy(obs))
        return q

    def init(self, key: Key, spec: Spec) -> ReplayedState:
        """A fresh network for ``spec``.

        Raises:
            UsageError: if its actions are continuous.
        """
        acts_on = flat_input(self.seen_by_policy(spec.observation))
        params = self.q_net(eps.number_of_actions(spec, "DQN")).init(key, acts_on)
        return self.fresh({"q": params}, ("q",))

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        Replayed.check(self, transitions)
        require("target_every", self.target_every, 1)
        require("huber", self.huber, 0, above=True)
        for name in ("epsilon_start", "epsilon_end"):
            require(name, getattr(self, name), 0, 1)
        for name in ("epsilon_over", "anneal_over"):
            require(name, getattr(self, name), 0)
        require("delay", self.delay, 1, 1)

    # Losses

    def target(self, state: ReplayedState, batch: Transition) -> Array:
        """``y = r + gamma (1 - d) Q'(s', argmax_a Q(s', a))``, or ``max_a Q'(s', a)``: ``[B]``."""
        slow = self.values(state.targets["q"], batch.next_obs)
        judge = self.values(state.params["q"], batch.next_obs) if self.double else slow
        value = losses.value_of_action(slow, jnp.argmax(judge, axis=-1))
        return batch.reward + self.discount(batch) * value

    def loss(self, params: PyTree, batch: Transition, target: Array) -> tuple[Array, Array]:
        """``mean huber(Q(s, a) - y)``, or ``mean (Q(s, a) - y)^2 / 2``; and the values ``[B]``."""
        q = losses.value_of_action(self.values(params, batch.obs), batch.action)
        if self.huber is None:
            return 0.5 * jnp.mean(jnp.square(q - target)), q
        return jnp.mean(losses.huber(q - target, self.huber)), q

    # Update

    def draw_update(self, state: ReplayedState, key: Key, shape: tuple[int, ...]) -> PyTree:
        """Nothing: gradient steps have no randomness."""
        return ()

    def gradient_step(
        self, state: ReplayedState, batch: Transition, noise: PyTree, actor: bool
    ) -> tuple[ReplayedState, Metrics]:
        """The network; and if it is its turn, the slow copy."""
        gradient: Any = jax.value_and_grad(self.loss, has_aux=True)
        (loss, q), grads = gradient(state.params["q"], batch, self.target(state, batch))
        rate = self.learning_rate * optim.linear_decay(state.updates, self.anneal_over)
        explored = self.epsilon(state.updates)
        state, metrics = self.stepped(state, "q", grads, rate)
        metrics |= {"q_loss": mean_of(loss), "q": mean_of(q), "epsilon": mean_of(explored)}
        state = state._replace(updates=state.updates + 1)
        return self.followed_in_turn(state), metrics

    def followed_in_turn(self, state: ReplayedState) -> ReplayedState:
        """The slow copy a step closer after every ``target_every``-th gradient step."""
        turn = state.updates % self.target_every == 0
        closer = self.followed(state).targets
        targets = jax.tree.map(lambda new, old: jnp.where(turn, new, old), closer, state.targets)
        return state._replace(targets=targets)

    # Acting

    def epsilon(self, updates: Array) -> Array:
        """The probability of a random action after so many gradient steps: ``[]``."""
        return eps.falling(updates, self.epsilon_start, self.epsilon_end, self.epsilon_over)

    def draw(self, state: ReplayedState, obs: PyTree, key: Key, steps: int) -> Chance:
        """The randomness of ``steps`` calls of ``act`` at such ``obs``: ``[steps, ...]``."""
        q = jax.eval_shape(self.values, state.params["q"], obs)
        return eps.chance(key, (steps, *q.shape[:-1]), q.shape[-1])

    def act(
        self, state: ReplayedState, obs: PyTree, key: Key | Chance, mode: Mode
    ) -> tuple[Array, Extras]:
        """The best action at ``obs[..., *O]``, or unless ``greedy``, by epsilon, a random one.

        ``key`` may be randomness that ``draw`` drew.
        """
        q = self.values(state.params["q"], obs)
        return eps.choose(q, self.epsilon(state.updates), key, mode), {}
