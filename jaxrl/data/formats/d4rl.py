"""D4RL's HDF5 files: flat arrays of rows.

(Fu et al. 2020, "D4RL: Datasets for Deep Data-Driven Reinforcement Learning".)

    observations [N, *O], actions [N, *A], rewards [N], terminals [N], timeouts [N]

Transitions match D4RL's own extraction (``qlearning_dataset``). A row's next observation is the
observation of the next row. So every row with a time-out is dropped, since the next row belongs to
the next episode. The last row of the file is dropped too. Rows at terminals are kept; their next
observation is the next episode's first, and no target reads it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.data.dataset import Dataset, next_actions
from jaxrl.data.formats import spaces
from jaxrl.data.formats.reading import (
    convert_actions,
    h5_array,
    open_h5,
    progress,
    read_flags,
    read_rows,
)
from jaxrl.data.rows import blocks
from jaxrl.errors import UsageError
from jaxrl.types import Box, Discrete

ATTRIBUTE = "jaxrl"  # JSON attribute of files written by the recorder
_JUMP = 1e-6  # D4RL's threshold between a next observation and the next row's; relative above 1


def read(path: Path, action_space: Box | Discrete | None = None, quiet: bool = False) -> Dataset:
    """Return the transitions of a file, with extras ``next_action`` and ``has_next_action``.

    Next actions may come from dropped rows. Without ``timeouts``, episodes are cut where the file's
    ``next_observations`` are not the next row's observations.

    Args:
        path: the file.
        action_space: the space of the file's actions; default: from our own metadata, else [-1, 1],
            or indices.
        quiet: no progress bar.

    Raises:
        UsageError: for a malformed file, with key and row.
    """

    def place(key: str) -> Any:
        return lambda row: f"{path}: {key} row {row}"

    with open_h5(path) as file:
        names = ("observations", "actions", "rewards", "terminals")
        found = {name: h5_array(file, name) for name in names}
        cut = next((name for name in ("timeouts", "next_observations") if name in file), None)
        if cut is None:
            raise UsageError(
                f"{path} has neither 'timeouts' nor 'next_observations'; without one of them the "
                "ends of its episodes are unknown"
            )
        found[cut] = h5_array(file, cut)
        _check_shapes(path, found)
        rows, observations = len(found["rewards"]), found["observations"]
        with progress(path, rows, observations.nbytes, quiet) as advance:
            obs = read_rows(observations, place("observations"), advance=advance)
        action = read_rows(found["actions"], place("actions"))
        reward = read_rows(_flat(found["rewards"]), place("rewards"), np.float32)
        terminal = read_flags(_flat(found["terminals"]), place("terminals"))
        if cut == "timeouts":
            timeout = read_flags(_flat(found[cut]), place(cut))
        else:
            timeout = _jumps(obs, found[cut]) & ~terminal
    known = metadata(path)
    if action_space is None and "action_space" in known:
        where = f"{path}: action_space"
        action_space, _ = spaces.action_space(spaces.parse(known["action_space"], where), where)
    action = convert_actions(action, action_space, place("actions"))
    return _transitions(path, obs, action, reward, terminal, timeout)


def _check_shapes(path: Path, found: dict[str, Any]) -> None:
    rows = found["rewards"].shape[0]
    for name, array in found.items():
        if array.shape[0] != rows:
            raise UsageError(
                f"{path}: {name} has {array.shape[0]} rows, and rewards {rows}; row "
                f"{min(rows, array.shape[0])} is in one of them alone"
            )
        if name in ("rewards", "terminals", "timeouts") and array.shape not in ((rows,), (rows, 1)):
            raise UsageError(f"{path}: {name} has shape {array.shape}; it must be ({rows},)")
    observations = found["observations"]
    if len(observations.shape) >= 3 and observations.dtype == np.uint8:
        raise UsageError(f"{path}: observations are images (uint8{list(observations.shape[1:])}); "
                         "only vectors are read")  # fmt: skip
    if rows < 2:
        raise UsageError(f"{path} has {rows} rows; a transition needs two")


def _flat(source: Any) -> np.ndarray:
    """Return ``[N]`` or ``[N, 1]`` as ``[N]``."""
    return source[...].reshape(-1)


def _jumps(obs: np.ndarray, next_observations: Any) -> np.ndarray:
    """Whether the next observation of each row is not the next row's: ``bool[N]``."""
    if next_observations.shape != obs.shape:
        raise UsageError(
            f"{next_observations.file.filename}: next_observations has shape "
            f"{next_observations.shape}, and observations {obs.shape}; they must be the same"
        )
    jump = np.zeros(len(obs), bool)
    for block in blocks(obs[:-1]):
        after = obs[block.start + 1 : block.stop + 1]
        jump[block] = _differs(next_observations[block], after).reshape(len(after), -1).any(axis=1)
    return jump


def _differs(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Whether numbers of a file are not those in memory, element by element; NaN always differs."""
    if expected.dtype.kind != "f":
        return found != expected
    with np.errstate(over="ignore", invalid="ignore"):  # rounded as the observations were
        distance = np.abs(found.astype(expected.dtype) - expected)
    return ~(distance <= _JUMP * np.maximum(np.abs(expected), 1))


def _transitions(
    path: Path,
    obs: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    terminal: np.ndarray,
    timeout: np.ndarray,
) -> Dataset:
    """Drop the rows at time-outs and the last row, after computing fields that need other rows."""
    ends = terminal | timeout
    ends[-1] = True
    has_next = ~ends[:-1]
    following = next_actions(action, ends)[:-1]
    episode = np.cumsum(ends) - ends  # the number of each row's episode
    keep = ~timeout[:-1]
    if not keep.any():
        raise UsageError(f"{path}: timeouts is 1 in every row; no transition is left")
    episode = episode[:-1][keep]
    last = np.append(episode[1:] != episode[:-1], True)
    next_obs = obs[1:][keep]
    obs = obs[:-1][keep]
    terminated = terminal[:-1][keep]
    extras = {"next_action": following[keep], "has_next_action": has_next[keep]}
    return Dataset.of(obs, action[:-1][keep], reward[:-1][keep], next_obs, terminated, last, extras)


def metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that the recorder wrote into a file; ``{}`` for other files."""
    with open_h5(path) as file:
        text = file.attrs.get(ATTRIBUTE)
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}
