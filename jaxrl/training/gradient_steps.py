"""Gradient steps on several batches, with delayed actor updates."""

from __future__ import annotations

from typing import Any

import jax

from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.errors import UsageError
from jaxrl.types import Batch, Key, PyTree


def gradient_steps(agent: Any, state: PyTree, batches: Batch, key: Key) -> tuple[PyTree, m.Metrics]:
    """Call ``agent.update`` on each of ``batches[G, B]``.

    The actor is updated on every ``policy_delay``-th batch, or on the last if there are fewer. The
    schedule is static: no counter is compared at run time.

    Raises:
        UsageError: if there are more than ``policy_delay`` batches, but not a multiple of it.
    """
    count = batches.reward.shape[0]
    keys = jax.random.split(key, count)
    delay = protocol.policy_delay(agent)
    if delay is None:
        return m.scan(lambda key, state, b: agent.update(state, b, key), state, keys, batches)

    size = min(count, delay)
    if count % size:
        raise UsageError(
            f"{count} batches are no multiple of the policy_delay of {size}; "
            f"{-(-count // size) * size} would be"
        )

    def critics_only(key: Key, state: PyTree, batch: Batch) -> tuple[PyTree, m.Metrics]:
        return agent.update(state, batch, key, False)

    def group(keys: Key, state: PyTree, batches: Batch) -> tuple[PyTree, m.Metrics]:
        last = jax.tree.map(lambda x: x[-1], batches)
        if size == 1:
            return agent.update(state, last, keys[-1], True)
        first = jax.tree.map(lambda x: x[:-1], batches)
        state, metrics = m.scan(critics_only, state, keys[:-1], first)
        state, new = agent.update(state, last, keys[-1], True)
        return state, m.merged(metrics, new)

    groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), batches)
    return m.scan(group, state, keys.reshape(-1, size), groups)
