"""Batches for an agent, drawn by a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from jaxrl.agents import protocol
from jaxrl.data.dataset import Dataset, Split
from jaxrl.data.replay import Replay
from jaxrl.errors import UsageError
from jaxrl.types import Batch, Key, PyTree, Spec

SOURCE = {
    "next_action": "give dataset.with_next_action()",
    "has_next_action": "give dataset.with_next_action()",
    "return_to_go": "give dataset.with_return_to_go(gamma)",
}


def train_part(data: Any) -> Any:
    """Return the training data: all the data, or the first part of a ``Split``."""
    return data.train if isinstance(data, Split) else data


def check_split(trainers: Sequence[Any], data: Any) -> None:
    """Raise UsageError for a ``Split`` if no trainer that reads it computes a validation loss."""
    readers = [trainer for trainer in trainers if trainer.needs_data]
    if isinstance(data, Split) and readers and not any(each.validates for each in readers):
        raise UsageError(
            f"data is a Split, and {type(readers[0]).__name__} computes no validation loss; give "
            "it the whole dataset, without split() or --validation"
        )


def check_source(reader: Any, needs_data: bool, data: PyTree, spec: Spec) -> None:
    """Raise UsageError if ``reader`` needs a dataset and there is none, or vice versa.

    ``reader`` is a sampler, or a trainer without one. A dataset must match the environment's spec.
    """
    name, given = type(reader).__name__, bool(jax.tree.leaves(data))
    if needs_data and not given:
        raise UsageError(
            f"{name} samples from a dataset, and there is none; give one, as data=dataset"
        )
    if not given:
        return
    if not needs_data:
        raise UsageError(
            f"{name} samples from no dataset, and one is given; leave it out, or give a sampler "
            "that reads it, such as OffPolicy(..., sampler=Mixed())"
        )
    if not hasattr(data, "check"):
        raise UsageError(
            f"{name} samples from a dataset, and data is a {type(data).__name__}; give a "
            "jaxrl.data.Dataset"
        )
    data.check()
    if hasattr(data, "check_spec"):
        data.check_spec(spec)


def sample(
    agent: Any, sampler: Any, store: Any, data: Any, key: Key, shape: tuple[int, ...]
) -> Batch:
    """Return a batch ``[*shape]`` with the discount, rewards and extras that the agent needs.

    Rewards are transformed before the sampler sums them.

    Raises:
        UsageError: if the batch lacks extra fields that the agent reads; if it has windows of
            steps, and the agent learns from single transitions; or if its goals are not those of
            its rewards, and the agent learns from rewards.
    """
    if isinstance(store, Replay):
        reward = protocol.learnt_reward(agent, store.rows.reward)
        store = store._replace(rows=store.rows._replace(reward=reward))
    data = train_part(data)
    if isinstance(data, Dataset):
        data = data._replace(reward=protocol.learnt_reward(agent, data.reward))
    gamma = protocol.discount_factor(agent)
    batch: Batch = sampler.sample(store, data, key, shape, gamma)
    inner, extras = protocol.innermost(agent), protocol.batch_extras(agent)
    kind = type(inner).__name__
    if "valid" in batch.extras and not (getattr(inner, "reads_valid", False) or "valid" in extras):
        raise UsageError(
            f"{type(sampler).__name__} draws windows of steps, and {kind} learns from single "
            "transitions; give UniformDataset(), or an agent that reads windows, such as BC"
        )
    if getattr(sampler, "changes_goals", False) and hasattr(inner, "gamma"):
        raise UsageError(
            f"{type(sampler).__name__} changes goals but not rewards, and {kind} learns from "
            "rewards; give UniformDataset(), or an agent that imitates, such as BC"
        )
    for name in extras:
        if name not in batch.extras:
            raise UsageError(
                f"{kind} reads {name!r} from its batches, and {type(sampler).__name__} gives none; "
                + SOURCE.get(name, "give a sampler whose batches have it in their extras")
            )
    return batch
