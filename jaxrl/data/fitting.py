"""Checks that a dataset's arrays fit each other, and an environment's spaces."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxrl.data.rows import first_row, name_of
from jaxrl.data.units import agent_bounds
from jaxrl.errors import UsageError
from jaxrl.types import Box, Discrete, PyTree

TOLERANCE = 1e-4  # allowed excess over a bound, in the agent's units: rounding and file noise
_KINDS = {"f": "floats", "i": "integers", "u": "integers", "b": "bools"}
_ONE_A_ROW = ("reward", "terminated", "truncated", "start", "end")
_EXTRAS_ONE_A_ROW = ("has_next_action", "return_to_go")


def as_arrays(**fields: PyTree) -> dict[str, PyTree]:
    """Return the fields of a dataset with lists as numpy arrays; arrays may be traced.

    Raises:
        UsageError: for a list that is no array of numbers, such as one of rows of many lengths.
    """

    def array(path: tuple, given: Any) -> Any:
        if isinstance(given, np.ndarray | jax.Array):
            return given
        try:
            found = np.asarray(given)
        except (TypeError, ValueError):  # its rows differ in shape
            found = np.asarray(None)
        if found.dtype.kind not in _KINDS:
            raise UsageError(
                f"the dataset's {name_of(path)} is a {type(given).__name__}, which is no array of "
                "numbers; give a row for each transition, as np.zeros((D, 2), np.float32)"
            )
        return found

    arrays: dict[str, PyTree] = jax.tree.map_with_path(
        array, fields, is_leaf=lambda x: isinstance(x, list)
    )
    return arrays


def check_one_a_row(name: str, array: Any) -> None:
    """Raise UsageError unless ``array`` is ``[D]``: with ``[D, 1]``, targets would be [B, B]."""
    if len(np.shape(array)) != 1:
        raise UsageError(
            f"the dataset's {name} has shape {np.shape(array)}; it must be [D], one value for each "
            f"transition, as {name}.reshape(-1)"
        )


def check_rows(data: Any) -> None:
    """Raise UsageError unless all arrays of a dataset have a row for each transition.

    They may be traced. Rewards, flags and returns to go have one value a row, and next actions the
    shape of actions.
    """
    for name in _ONE_A_ROW:
        check_one_a_row(name, getattr(data, name))
    for name in _EXTRAS_ONE_A_ROW:
        if name in data.extras:
            check_one_a_row(f"extras.{name}", data.extras[name])
    for path, leaf in jax.tree.leaves_with_path(data):
        if np.shape(leaf)[:1] != np.shape(data.reward):
            raise UsageError(
                f"the dataset's {name_of(path)} has shape {np.shape(leaf)}, and its reward "
                f"{np.shape(data.reward)}; both must begin with the number of transitions"
            )
    following, action = (np.shape(x) for x in (data.extras.get("next_action"), data.action))
    if "next_action" in data.extras and following != action:
        raise UsageError(
            f"the dataset's extras.next_action has shape {following}, and its action {action}; "
            "they must be the same, as with_next_action() makes them"
        )


def kind(dtype: Any) -> str:
    """Return "floats", "integers" or "bools", or the name of any other dtype."""
    if jax.dtypes.issubdtype(dtype, np.floating):
        return "floats"
    return _KINDS.get(np.dtype(dtype).kind, np.dtype(dtype).name)


def check_observations(name: str, obs: PyTree, space: Box | dict[str, Box]) -> None:
    """Raise UsageError unless ``obs[D, *O]`` has the entries, shapes and kinds of ``space``."""
    given = isinstance(obs, dict), isinstance(space, dict)
    if given[0] != given[1]:
        words = [
            f"a dictionary of {', '.join(sorted(x))}" if isinstance(x, dict) else "an array"
            for x in (obs, space)
        ]
        raise UsageError(f"the dataset's {name} is {words[0]}, and the environment's {words[1]}")
    if not isinstance(space, dict):
        _check_box(name, obs, space)
        return
    if obs.keys() != space.keys():
        raise UsageError(
            f"the dataset's {name} has the entries {', '.join(sorted(obs))}, and the environment's "
            f"{', '.join(sorted(space))}; they must be the same"
        )
    for entry, box in space.items():
        _check_box(f"{name}.{entry}", obs[entry], box)


def _check_box(name: str, array: Any, box: Box) -> None:
    found, wanted = (tuple(array.shape[1:]), kind(array.dtype)), (box.shape, kind(box.dtype))
    if found != wanted:
        raise UsageError(
            f"the dataset's {name} is {found[1]} of shape {found[0]} in each row, and the "
            f"environment's {wanted[1]} of {wanted[0]}; choose the environment of the data"
        )


def check_actions(action: Any, space: Box | Discrete) -> None:
    """Raise UsageError unless ``action[D, *A]`` are actions for ``space`` in the agent's units."""
    discrete = isinstance(space, Discrete)
    wanted = f"indices 0 .. {space.n - 1}" if discrete else f"floats of shape {space.shape}"  # type: ignore[union-attr]
    fits = kind(action.dtype) == ("integers" if discrete else "floats")
    if not fits or tuple(action.shape[1:]) != tuple(space.shape):
        raise UsageError(
            f"the dataset's action is {kind(action.dtype)} of shape {tuple(action.shape[1:])} in "
            f"each row, and the environment takes {wanted}; choose the environment of the data"
        )
    if isinstance(action, jax.core.Tracer):
        return
    row = first_outside(np.asarray(action), space)
    if row is not None:
        units = wanted if discrete else "[-1, 1] where the environment has bounds"
        raise UsageError(
            f"the dataset's action at row {row} is {np.asarray(action)[row].tolist()}; "
            f"it must be in {units}"
        )


def first_outside(action: np.ndarray, space: Box | Discrete) -> int | None:
    """Return the first row of actions that is out of bounds, in the agent's units; else None."""
    if isinstance(space, Discrete):
        return first_row(action, lambda block: (block < 0) | (block >= space.n))
    low, high = agent_bounds(space)

    def outside(block: np.ndarray) -> np.ndarray:
        return ~((block >= low - TOLERANCE) & (block <= high + TOLERANCE))

    return first_row(action, outside)
