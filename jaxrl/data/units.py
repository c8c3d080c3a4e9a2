"""Units of actions: the agent's ([-1, 1] or an index), and the environment's.

An element of a ``Box`` with two finite bounds is [-1, 1] for the agent. For any other element, the
agent also uses the environment's units, with whatever bound exists
(``jaxrl.envs.vector.rescale``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxrl.data.rows import blocks
from jaxrl.types import Box, Discrete


def agent_bounds(space: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds ``[*A]`` of actions in the agent's units."""
    bounded = space.bounded
    return np.where(bounded, -1.0, space.low), np.where(bounded, 1.0, space.high)


def clip(action: np.ndarray, space: Box | Discrete) -> np.ndarray:
    """Clip actions ``[..., *A]`` in the agent's units to the bounds, as an environment does."""
    if isinstance(space, Discrete):
        return action
    low, high = agent_bounds(space)
    return np.clip(action, low.astype(action.dtype), high.astype(action.dtype))


def to_agent(action: np.ndarray, space: Box | Discrete) -> np.ndarray:
    """Convert environment actions ``[D, *A]`` to the agent's units, unclipped: float32.

    Indices are returned as int32.
    """
    if isinstance(space, Discrete):
        return action.astype(np.int32)
    middle, half = _scale(space)
    divisor = np.where(half == 0.0, 1.0, half)  # the only action of an empty range is 0
    return _by_blocks(action, lambda x: (x - middle) / divisor)


def to_environment(action: np.ndarray, space: Box | Discrete) -> np.ndarray:
    """Convert agent actions ``[D, *A]`` to the environment's units, in bounds: float32."""
    if isinstance(space, Discrete):
        return action.astype(np.int32)
    middle, half = _scale(space)
    low, high = agent_bounds(space)
    return _by_blocks(action, lambda x: middle + half * np.clip(x, low, high))


def _scale(space: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the midpoint and half-width of each range; 0 and 1 for elements without two bounds."""
    bounded = space.bounded
    low, high = (np.where(bounded, x, 0.0).astype(np.float64) for x in (space.low, space.high))
    half = np.where(bounded, 0.5 * (high - low), 1.0)
    return 0.5 * (low + high), half


def _by_blocks(action: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply ``change`` to every block of rows, in float64."""
    result = np.empty(action.shape, np.float32)
    for block in blocks(action):
        result[block] = change(action[block].astype(np.float64))
    return result
