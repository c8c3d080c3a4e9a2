"""Calls to an agent's optional methods, and checks that agents share.

Trainers call these functions instead of the methods, so an agent without memory, statistics or
checks need not define those methods.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.require import shown
from jaxrl.types import Array, Box, Discrete, Key, PyTree, Spec, Transition


def init_carry(agent: Any, key: Key, n: int) -> PyTree:
    """Return the initial memory ``[n, ...]`` of ``n`` episodes; ``()`` without memory."""
    while not hasattr(agent, "init_carry"):  # the outermost carry holds the inner ones
        if not hasattr(agent, "agent"):
            return ()
        agent = agent.agent
    return agent.init_carry(key, n)


def observe(agent: Any, state: PyTree, transitions: Transition) -> PyTree:
    """Return the state after fresh experience ``[T, N]``; unchanged for agents without statistics.

    Trainers call this after the update on that experience.
    """
    method = getattr(agent, "observe", None)
    return state if method is None else method(state, transitions)


def check(agent: Any, rows: int) -> None:
    """Check all hyper-parameters, and that updates on ``rows`` transitions are possible.

    Raises:
        UsageError: for the first problem found.
    """
    hyper.check(agent)
    inner = innermost(agent)
    for field in dataclasses.fields(inner):
        dropout = getattr(getattr(inner, field.name), "dropout", None)
        if dropout is not None and field.name not in getattr(inner, "imitates", ()):
            raise UsageError(
                f"{field.name}.dropout is {shown(dropout)}, which acts in losses of imitation, and "
                f"{type(inner).__name__} has none for its {field.name}; leave it None"
            )
    while agent is not None:
        method = getattr(agent, "check", None)
        if method is not None:
            method(rows)
        agent = getattr(agent, "agent", None)


def observe_dataset(agent: Any, state: PyTree, data: Any) -> PyTree:
    """Return the state after observing the dataset that the agent will learn from.

    The state is unchanged for agents without statistics.
    """
    method = getattr(agent, "observe_dataset", None)
    return state if method is None else method(state, data)


def learnt_reward(agent: Any, reward: Array) -> Array:
    """Return the rewards that the agent learns from: transformed by its wrappers."""
    while hasattr(agent, "agent"):
        method = getattr(agent, "learnt_reward", None)
        reward = reward if method is None else method(reward)
        agent = agent.agent
    return reward


def innermost(agent: Any) -> Any:
    """Return the algorithm inside all wrappers."""
    while hasattr(agent, "agent"):
        agent = agent.agent
    return agent


def with_parts(agent: Any, **parts: Any) -> Any:
    """Return the agent, still wrapped, with the named fields replaced."""
    if hasattr(agent, "agent"):
        return dataclasses.replace(agent, agent=with_parts(agent.agent, **parts))
    return dataclasses.replace(agent, **parts)


def discount_factor(agent: Any) -> Any:
    """Return the agent's ``gamma``, or 1 for agents that do not bootstrap."""
    return getattr(innermost(agent), "gamma", 1.0)


def validation_loss(agent: Any, state: PyTree, batch: Any, key: Key) -> Array:
    """Return the agent's loss on a batch that it does not learn from.

    Raises:
        UsageError: for an agent without a validation loss.
    """
    method = getattr(agent, "validation_loss", None)
    if method is None:
        raise UsageError(
            f"{type(innermost(agent)).__name__} has no validation loss; give it the whole dataset, "
            "without split() or --validation"
        )
    loss: Array = method(state, batch, key)
    return loss


def batch_extras(agent: Any) -> tuple[str, ...]:
    """Return the names of the ``Batch.extras`` that an agent and its wrappers read."""
    names: tuple[str, ...] = getattr(agent, "batch_extras", ())
    return names + batch_extras(agent.agent) if hasattr(agent, "agent") else names


def learns_from(agent: Any) -> str:
    """Return ``"rollouts"`` or ``"batches"``.

    Raises:
        UsageError: for agents that declare neither.
    """
    inner = innermost(agent)
    found = getattr(inner, "learns_from", None)
    if found not in ("rollouts", "batches"):
        raise UsageError(
            f"{type(inner).__name__}.learns_from is {found!r}; it must be 'rollouts' or 'batches'"
        )
    return str(found)


def policy_delay(agent: Any) -> int | None:
    """Return the gradient steps between updates of the actor; None without an actor."""
    found: int | None = getattr(innermost(agent), "policy_delay", None)
    return found


def gradient_steps(agent: Any) -> int:
    """Return the gradient steps per update on a rollout; 1 if the agent does not declare it."""
    return int(getattr(innermost(agent), "gradient_steps_per_update", 1))


# --- the policy inside a state ------------------------------------------------------------------


class LearntPolicy(NamedTuple):
    """Parameters of a policy, and the statistics of its observations."""

    params: PyTree
    statistics: PyTree = ()  # of its observations, if they are normalised


def learnt_policy(agent: Any, state: PyTree) -> LearntPolicy:
    """Return what the agent's policy has learnt.

    An agent with a policy in its field ``policy`` declares where its parameters are stored. For
    example, ``policy_at = ("actor.params", "target_actor")`` is a path into the state, followed by
    the paths to copies. If the state's field ``ema`` holds a moving average of the parameters, that
    is returned. A wrapper with its own state has the methods ``learnt_policy`` and ``with_policy``.

    Raises:
        UsageError: for an agent without a policy.
    """
    method = getattr(agent, "learnt_policy", None)
    if method is not None:
        found: LearntPolicy = method(state)
        return found
    if hasattr(agent, "agent"):
        return learnt_policy(agent.agent, state)
    place = policy_at(agent)[0]
    average = getattr(state, "ema", ())
    return LearntPolicy(average if jax.tree.leaves(average) else _inside(state, place.split(".")))


def with_policy(agent: Any, state: PyTree, policy: LearntPolicy) -> PyTree:
    """Return a fresh state with the learnt parameters of ``policy``, in all copies too.

    Parameters that ``policy`` lacks stay fresh.

    Raises:
        UsageError: for an agent without a policy.
    """
    method = getattr(agent, "with_policy", None)
    if method is not None:
        return method(state, policy)
    if hasattr(agent, "agent"):
        return with_policy(agent.agent, state, policy)
    average = ("ema",) if hasattr(state, "ema") else ()
    for place in (*policy_at(agent), *average):
        state = _placed(state, place.split("."), policy.params)
    return state


def require_one_network(agent: Any, name: str) -> None:
    """Raise UsageError if only some denoising steps were fine-tuned: others use a second network.

    ``name`` is what the message calls the policy.
    """
    inner = innermost(agent)
    frozen = getattr(inner, "frozen_steps", 0)
    if frozen:
        raise UsageError(
            f"{name} has two networks: fine_tuned_steps was {inner.fine_tuned_steps}, and the "
            f"first {frozen} denoising steps kept the old one; give a run that fine-tuned all"
        )


def policy_at(agent: Any) -> tuple[str, ...]:
    """Return the paths to the policy's parameters. Raises UsageError if there are none."""
    places: tuple[str, ...] = getattr(agent, "policy_at", ())
    if not places:
        raise UsageError(
            f"{type(agent).__name__} has no policy of its own; give an agent that has, such as PPO"
        )
    return places


def _inside(node: Any, path: Sequence[str]) -> Any:
    for name in path:
        node = node[name] if isinstance(node, Mapping) else getattr(node, name)
    return node


def _placed(node: Any, path: Sequence[str], params: PyTree) -> Any:
    """Return ``node`` with ``params`` at ``path``, unless there is nothing to replace."""
    if path:
        inner = _placed(_inside(node, path[:1]), path[1:], params)
        changed = {path[0]: inner}
        return {**node, **changed} if isinstance(node, Mapping) else node._replace(**changed)
    if not jax.tree.leaves(node):
        return node
    copied = jax.tree.map(jnp.copy, params)  # an array shared by two leaves cannot be donated
    return {**node, **copied} if isinstance(node, Mapping) else copied


# --- checks that agents share, for their ``bind`` and ``check`` ---------------------------------


def require_continuous(agent: Any, spec: Spec) -> None:
    """Raise UsageError unless actions are continuous."""
    if not isinstance(spec.action, Box):
        raise UsageError(
            f"{type(agent).__name__} needs continuous actions, and the environment has "
            f"{spec.action.n} discrete ones; choose another agent, such as DQN or PPO"
        )


def require_squashing(agent: Any, policy: Any) -> None:
    """Raise UsageError unless the bound ``policy`` has a best action, which is within [-1, 1]."""
    draws = inspect.signature(policy.mode).parameters["key"].default is inspect.Parameter.empty
    if draws or not getattr(policy, "squashes", True):
        why = "draws its actions" if draws else "may leave [-1, 1]"
        raise UsageError(
            f"policy is a {type(policy).__name__}, which {why}, and {type(agent).__name__} "
            "maximises Q at its best action; give a Deterministic"
        )


def require_bounded(policy: Any, name: str) -> None:
    """Raise UsageError if samples of the bound ``policy``, the part ``name``, may leave [-1, 1]."""
    if not getattr(policy, "squashes", True):
        raise UsageError(
            f"{name} is a {type(policy).__name__}, whose samples may leave [-1, 1]; give a "
            "TanhGaussian"
        )


def require_discrete(agent: Any, spec: Spec) -> None:
    """Raise UsageError unless actions are discrete."""
    if not isinstance(spec.action, Discrete):
        raise UsageError(
            f"{type(agent).__name__} needs discrete actions, and the environment has continuous "
            "ones; choose another agent, such as SAC or PPO, or another environment, such as "
            "gymnax/CartPole-v1"
        )


def require_methods(agent: Any, name: str, methods: Sequence[str], instead: str) -> None:
    """Raise UsageError unless the agent's part ``name`` has ``methods``."""
    part, article = getattr(agent, name), "an" if name[0] in "aeiou" else "a"
    for method in methods:
        if not hasattr(part, method):
            raise UsageError(
                f"{type(agent).__name__} needs {article} {name} with {method}(), which "
                f"{type(part).__name__} lacks; give another, such as {instead}"
            )


def require_enough_critics(agent: Any) -> None:
    """Raise UsageError if targets take the minimum over more critics than there are."""
    found, most = agent.num_min_critics, agent.critic.num_critics
    if found is not None and found > most:
        raise UsageError(
            f"num_min_critics is {found}, and there are {most} critics; it must be at most {most}"
        )
