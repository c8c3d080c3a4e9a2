"""PPO's update for policies that reach actions by a chain of normal steps (DPPO and ReinFlow).

The agents define the actor's loss; advantages, value loss and minibatches are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxrl import losses, optim
from jaxrl.agents import minibatches
from jaxrl.metrics import Metrics, mean_of, merged
from jaxrl.optim import Trained
from jaxrl.types import Array, Key, PyTree, Transition


class Minibatch(NamedTuple):
    """Rows of a rollout ``[T, N, ...]``, or ``[B, ...]`` of them."""

    obs: PyTree
    points: Array  # of the chain, [..., K + 1, A], recorded when acting
    old: Array  # the acting policy's output for them, in the form that the agent's ratio needs
    advantage: Array
    target: Array


def update(
    agent: Any, state: Any, rollout: Transition, points: Array, old: Array, key: Key
) -> tuple[Any, Metrics]:
    """Run epochs of minibatch steps of the actor and the critic on a rollout ``[T, N]``.

    ``agent`` has ``actor_loss(params, batch)``, a value function ``critic`` that depends only on
    the state, and PPO's hyper-parameters; ``state`` has ``actor``, ``critic`` and ``updates``.
    Each shard shuffles its own rows.
    """
    value, next_value = (
        agent.critic(state.critic.params, x) for x in (rollout.obs, rollout.next_obs)
    )
    ends = (rollout.terminated, rollout.truncated)
    advantage = losses.gae(rollout.reward, value, next_value, *ends, agent.gamma, agent.gae_lambda)
    rows = Minibatch(rollout.obs, points, old, advantage, advantage + value)
    decay = optim.linear_decay(state.updates, agent.lr_decay_steps)
    actor_rate, critic_rate = agent.actor_learning_rate * decay, agent.critic_learning_rate * decay

    def critic_loss(params: PyTree, batch: Minibatch) -> tuple[Array, Metrics]:
        """``mean (R - V(s))^2 / 2`` over ``[B]``."""
        error = jnp.square(agent.critic(params, batch.obs) - batch.target)
        return 0.5 * jnp.mean(error), {}

    def step(
        key: Key, networks: tuple[Trained, Trained], batch: Minibatch
    ) -> tuple[tuple[Trained, Trained], Metrics]:
        actor, critic = networks
        minimize = agent.optimizer.minimize
        actor, aux, metrics = minimize(agent.actor_loss, actor, actor_rate, batch)
        critic, _, more = minimize(critic_loss, critic, critic_rate, batch)
        return (actor, critic), merged(metrics | aux, more)

    def too_far(metrics: dict[str, Array]) -> Array:
        return metrics["kl"] > jnp.asarray(agent.target_kl)

    (actor, critic), metrics = minibatches.minibatch_epochs(
        step,
        (state.actor, state.critic),
        rows,
        key,
        agent.update_epochs,
        agent.num_minibatches,
        None if agent.target_kl is None else too_far,
    )
    unexplained = losses.variance(advantage)
    explained = 1.0 - unexplained / (losses.variance(rows.target) + 1e-8)
    metrics["explained_variance"] = mean_of(explained)
    return state._replace(actor=actor, critic=critic, updates=state.updates + 1), metrics


def clipped_loss(log_ratio: Array, advantage: Array, clip: Array | float) -> tuple[Array, Metrics]:
    """PPO's policy loss, averaged over ``log_ratio[...]``; the other arguments broadcast to it."""
    ratio = jnp.exp(log_ratio)
    loss = jnp.mean(losses.clipped_surrogate(ratio, advantage, clip))
    metrics: Metrics = {
        "kl": mean_of(jnp.expm1(log_ratio) - log_ratio),
        "clip_fraction": mean_of(jnp.abs(ratio - 1.0) > clip),
    }
    return loss, metrics
