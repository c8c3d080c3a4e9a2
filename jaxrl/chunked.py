"""Action chunks and observation histories, shared by agents and environments."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UsageError
from jaxrl.types import Array, Box, PyTree, Spec


def chunked(spec: Spec, horizon: int, obs_horizon: int) -> Spec:
    """Return ``spec`` with chunks of ``horizon`` actions, ``[H * A]``, and observation histories.

    A history holds the last ``obs_horizon`` observations, ``[n, *O]``, newest last. With
    ``obs_horizon=1`` the observation keeps its shape.

    Raises:
        UsageError: for actions that are not vectors of numbers.
    """
    action = spec.action
    if not isinstance(action, Box) or len(action.shape) != 1:
        kind = f"shape {action.shape}" if isinstance(action, Box) else f"{action.n} choices"
        raise UsageError(
            f"chunks are of continuous actions that are vectors, and these have {kind}; leave the "
            "chunks out"
        )

    def stacked(box: Box) -> Box:
        if obs_horizon == 1:
            return box
        shape = (obs_horizon, *box.shape)
        low, high = (np.broadcast_to(bound, shape) for bound in (box.low, box.high))
        return Box(low, high, shape, box.dtype)

    low, high = (np.tile(bound, horizon) for bound in (action.low, action.high))
    actions = Box(low, high, (horizon * action.shape[0],), action.dtype)
    observation = jax.tree.map(stacked, spec.observation)
    return dataclasses.replace(spec, observation=observation, action=actions)


def repeated(obs: PyTree, obs_horizon: int, axis: int = 0) -> PyTree:
    """Return the history at the start of an episode: ``obs``, ``obs_horizon`` times along ``axis``.

    Without an axis for a single one.
    """
    if obs_horizon == 1:
        return obs
    return jax.tree.map(lambda x: jnp.stack([x] * obs_horizon, axis), obs)


def pushed(history: PyTree, obs: PyTree, obs_horizon: int, axis: int = 0) -> PyTree:
    """Return the history with ``obs`` appended and the oldest observation dropped."""
    if obs_horizon == 1:
        return obs

    def push(old: Array, new: Array) -> Array:
        kept = jax.lax.slice_in_dim(old, 1, obs_horizon, axis=axis)
        return jnp.concatenate([kept, jnp.expand_dims(new, axis)], axis)

    return jax.tree.map(push, history, obs)
