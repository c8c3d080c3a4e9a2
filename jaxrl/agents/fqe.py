"""FQE (Le et al. 2019, "Batch Policy Learning under Constraints"): what is a given policy worth?"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.errors import UsageError
from jaxrl.hyper import choice, held, number, part, size
from jaxrl.metrics import Metrics, mean_of
from jaxrl.nn.critics import AutoCritic
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec

Acts = Literal["greedy", "sample"]


class FQEState(NamedTuple):
    """The critics, their target networks, and the state of the evaluated agent."""

    critic: Trained
    target_critic: PyTree
    evaluated: PyTree  # never changes


@hyper.dataclass
class FQE:
    """Fitted Q evaluation: the value of a trained agent's policy, from data alone.

        trainer = Offline(FQE(agent, trained.agent), env)  # trained: the TrainState of its training
        ts, _ = trainer.train(key, 60_000, data)
        values = trainer.agent.estimate(ts.agent, first_observations, key)

    Each critic bootstraps from its own target network at the evaluated agent's next actions, so the
    critics are independent estimates. They estimate *discounted* returns of the rewards as
    transformed by the wrappers around FQE; compare them with returns of that kind. They rank
    policies better than they measure them: where the policy takes actions outside the data, Q is
    extrapolated, mostly upwards (``critic.layer_norm`` helps). Targets move slowly: if episodes are
    long, the error falls as ``exp(-tau (1 - gamma) n)`` in n gradient steps. It reaches 5 % after
    ``3 / (tau (1 - gamma))`` steps, which is 60,000 with the defaults. A larger ``tau`` needs
    fewer.

    The critics see raw observations. Wrappers of the evaluated agent, such as ``NormalizeObs``,
    work as they did in training.

    The evaluated agent may be any agent that acts without memory. It never learns.
    """

    learns_from: ClassVar = "batches"
    sees_raw: ClassVar = True

    evaluated: Any
    evaluated_state: Any = held()
    critic: Any = part(AutoCritic(num_critics=5), help="ensemble of critics")
    optimizer: Any = part(Adam(), help="optimiser")
    learning_rate: float = number(3e-4, above=0, help="step size")
    gamma: float = number(0.99, 0, 1, help="discount")
    tau: float = number(0.005, 0, 1, help="Polyak averaging rate of the target critics")
    acts: Acts = choice(
        "greedy", Acts, help="evaluate the greedy policy, or a sampled one (TD3, DQN: with noise)"
    )
    num_actions: int = size(1, help="next actions per target, which uses the mean of their values")

    def bind(self, spec: Spec) -> FQE:
        """Return the learner for ``spec``. Raises UsageError if the evaluated agent does."""
        evaluated, critic = self.evaluated.bind(spec), self.critic.bind(spec)
        return dataclasses.replace(self, evaluated=evaluated, critic=critic)

    def check(self, rows: int) -> None:
        """Raise UsageError if the agent has memory, or if its state is missing."""
        if self.acts == "greedy" and self.num_actions > 1:
            raise UsageError(
                f"num_actions is {self.num_actions}, and a greedy policy has one action; give 1, "
                "or acts='sample'"
            )
        name = type(protocol.innermost(self.evaluated)).__name__
        key = jax.random.key(0)
        if jax.tree.leaves(jax.eval_shape(lambda: protocol.init_carry(self.evaluated, key, 1))):
            raise UsageError(f"FQE evaluates agents without memory, and {name} has one")
        wanted, found = (
            jax.tree.map(lambda x: (x.shape, x.dtype), tree)
            for tree in (jax.eval_shape(self.evaluated.init, key), self.evaluated_state)
        )
        if wanted != found:
            raise UsageError(
                f"evaluated_state is not a state of {name} with these networks; give one of a "
                f"single seed, as ts.agent of a {name} that was trained"
            )

    def init(self, key: Key) -> FQEState:
        """Return fresh critics together with the state of the evaluated agent."""
        critic_key, agent_key = jax.random.split(key)
        critic = self.critic.init(critic_key)
        state = self.evaluated_state
        state = self.evaluated.init(agent_key) if state is None else state
        evaluated = jax.tree.map(jnp.copy, state)
        target = jax.tree.map(jnp.copy, critic)
        return FQEState(self.optimizer.start(critic), target, evaluated)

    def critic_loss(
        self, params: PyTree, state: FQEState, batch: Batch, key: Key
    ) -> tuple[Array, Metrics]:
        """``sum_i mean (Q_i(s, a) - y_i)^2``, where

        ``y_i = r + discount mean_k Q'_i(s', a'_k)`` and ``a'_k ~ pi``.
        """
        next_q = self.values(state.target_critic, state, batch.next_obs, key)
        target = batch.reward + batch.discount * next_q
        q = self.critic(params, batch.obs, batch.action)
        return jnp.sum(jnp.mean(jnp.square(q - target), axis=-1)), {"q": mean_of(q)}

    def values(self, critic: PyTree, state: FQEState, obs: PyTree, key: Key) -> Array:
        """Return each critic's value ``[E, B]`` of the policy at ``obs[B, *O]``."""
        count = self.num_actions
        repeated = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), obs)
        action, _, _ = self.evaluated.act(state.evaluated, (), repeated, key, self.acts)
        return jnp.mean(self.critic(critic, repeated, action), axis=1)

    def update(self, state: FQEState, batch: Batch, key: Key) -> tuple[FQEState, Metrics]:
        """One gradient step on ``[B]``, then a step of the target critics."""
        critic, aux, metrics = self.optimizer.minimize(
            self.critic_loss, state.critic, self.learning_rate, state, batch, key
        )
        target = optim.polyak(state.target_critic, critic.params, self.tau)
        return FQEState(critic, target, state.evaluated), metrics | aux

    def estimate(self, state: FQEState, obs: PyTree, key: Key) -> Array:
        """Return each critic's estimate of the policy's discounted return: ``[E]``.

        This is ``mean Q_i(s_0, pi(s_0))`` over first observations ``obs[B, *O]`` of episodes. The
        mean over critics is the estimate; their spread indicates its error.
        """
        return jnp.mean(self.values(state.critic.params, state, obs, key), axis=-1)

    def act(
        self, state: FQEState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return the evaluated agent's action ``[..., *A]``, carry and extras."""
        return self.evaluated.act(state.evaluated, carry, obs, key, mode)
