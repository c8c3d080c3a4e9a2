"""Compares an exported policy with the original, and times both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrl.agents.wrappers import NormalizeObsState
from jaxrl.errors import RunError, UsageError
from jaxrl.record.policy import Policy
from jaxrl.types import Box, Discrete

ROWS = 1_000  # observations used to compare a file
TOLERANCE = 1e-4  # relative to an action element, or to 1 if that is larger
EQUAL = 0.999  # of discrete actions: rounding decides between equal values
CALLS = 200  # the median of their times is reported


def observations(policy: Policy) -> Any:
    """Return ``ROWS`` random observations ``[B, *O]`` in which every element varies.

    They fill finite bounds. Other elements are normal with the statistics of ``NormalizeObs``, if
    available; rows are scaled from a tenth of the standard deviation to three times it.
    """
    rng, spec = np.random.default_rng(0), policy.spec.observation
    if not isinstance(spec, dict):
        return _drawn(rng, spec, *_statistics(policy))
    return {name: _drawn(rng, box, *_statistics(policy, name)) for name, box in spec.items()}


def _statistics(policy: Policy, entry: str | None = None) -> tuple[Any, Any]:
    """Return the mean and standard deviation of observations or an entry; 0 and 1 if unknown."""
    state = policy.state
    if not isinstance(state, NormalizeObsState) or float(state.statistics.size) == 0:
        return 0.0, 1.0
    size, mean, m2 = state.statistics
    mean, m2 = (np.asarray(x if entry is None else x[entry]) for x in (mean, m2))
    return mean, np.maximum(np.sqrt(m2 / float(size)), 1e-2)


def _drawn(rng: np.random.Generator, box: Box, mean: Any, std: Any) -> np.ndarray:
    shape, dtype = (ROWS, *box.shape), np.dtype(box.dtype)
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        low, high = (np.clip(x, info.min, info.max) for x in (box.low, box.high))
        return rng.integers(low, high, shape, dtype, endpoint=True)
    spread = 10.0 ** rng.uniform(-1.0, 0.5, (ROWS, *[1] * len(box.shape)))
    free = mean + std * spread * rng.standard_normal(shape)
    low, high = (np.where(box.bounded, x, 0.0).astype(np.float64) for x in (box.low, box.high))
    inside = low + (high - low) * rng.random(shape)
    return np.where(box.bounded, inside, free).astype(dtype)


def compare(name: str, policy: Policy, wanted: Any, found: Any) -> float:
    """Return a file's largest error in actions ``[B, *A]``, or its share of different indices.

    Raises:
        RunError: if they differ by more than rounding explains.
    """
    wanted, found = np.asarray(wanted), np.asarray(found)
    if wanted.shape != found.shape:
        raise RunError(f"{name} gives actions {found.shape} instead of {wanted.shape}; not written")
    if isinstance(policy.spec.action, Discrete):
        other = float(np.mean(wanted != found))
        if other > 1.0 - EQUAL:
            raise RunError(
                f"{name} chooses another action than the policy in {other:.1%} of {len(wanted):,} "
                "observations; it is not written"
            )
        return other
    difference = np.abs(found - wanted)
    if not np.all(difference <= TOLERANCE * np.maximum(1.0, np.abs(wanted))):
        raise RunError(
            f"{name} differs from the policy by {np.max(difference):.2g} on {len(wanted):,} "
            "observations; it is not written"
        )
    return float(np.max(difference))


def require_finite(action: Any) -> None:
    """Raise UsageError if a policy's actions are not finite."""
    if not np.all(np.isfinite(np.asarray(action))):
        raise UsageError(
            "the policy's actions are not finite, as after a run that diverged; give another seed "
            "or an older iteration"
        )


def microseconds(play: Callable[[Any], Any], obs: Any) -> float:
    """Return the median time of a call for one observation ``[*O]``."""
    one, times = jax.tree.map(lambda x: x[0], obs), []
    for _ in range(CALLS + 1):
        began = time.perf_counter()
        np.asarray(play(one))
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:])) * 1e6  # the first may compile
