"""OGBench's npz files (Park et al. 2025, "OGBench: Benchmarking Offline Goal-Conditioned RL").

    observations [N, *O], actions [N, *A], terminals [N]

A trajectory of T transitions has T+1 rows. In its last row ``terminals`` is 1, which marks the end
of the trajectory, never a termination; the action in that row is meaningless. The data have no
rewards. A task's rewards, and its masks (0 where the goal is reached, which ends the episode), come
from the user, the file, or the package ``ogbench``.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.data.dataset import Dataset
from jaxrl.data.formats.reading import convert_actions, progress, read_flags, read_rows
from jaxrl.data.rows import first_nonfinite
from jaxrl.errors import UsageError
from jaxrl.types import Box, Discrete

KEYS = ("observations", "actions", "terminals")
STATES = ("qpos", "qvel", "button_states")  # simulator states that determine task rewards


def files_of(path: Path) -> list[Path]:
    """Return the files of a dataset: ``path``, or the slices of a folder by name.

    Validation files (``-val.npz``) in the same folder are separate datasets.
    """
    if path.is_file():
        return [path]
    names = [p for p in path.glob("*.npz") if not p.stem.endswith("-val") and p.name[0] != "."]
    return sorted(names, key=lambda p: [int(x) if x.isdigit() else x
                                        for x in re.split(r"(\d+)", p.name)])  # fmt: skip


def read(
    path: Path,
    action_space: Box | Discrete | None = None,
    rewards: Any = None,
    masks: Any = None,
    task: str | None = None,
    quiet: bool = False,
) -> Dataset:
    """Return the transitions of a file, or of a folder of slices.

    Args:
        path: the file or folder.
        action_space: the space of the file's actions; default: [-1, 1], or indices.
        rewards: an array with a reward for each transition, or for each row of the file.
        masks: likewise for masks; 0 where the transition terminates, else 1. Default: none
            terminates.
        task: a single OGBench task, such as ``antmaze-large-navigate-singletask-task1-v0``,
            for which the package ``ogbench`` computes both. They are cached next to the file.
        quiet: no progress bar.

    Raises:
        UsageError: for a malformed file, with key and row, and without rewards.
    """
    if task is not None and (rewards is not None or masks is not None):
        raise UsageError("task and rewards are both given; give one of them")
    if masks is not None and rewards is None:
        raise UsageError("masks are given without rewards; give both, as rewards=..., masks=...")
    parts = [_slice(file, action_space, quiet) for file in files_of(path)]
    inner = np.concatenate([part["inner"] for part in parts])  # rows with a transition
    if not inner.any():
        raise UsageError(f"{path} has no transitions; every row is the end of a trajectory")
    if task is not None:
        rewards, masks = _relabelled(path, parts, task)
    elif rewards is None:
        rewards, masks = (_own(parts, key) for key in ("rewards", "masks"))
    if rewards is None:
        raise UsageError(
            f"{path} has no rewards; give rewards=..., or task=... "
            "(antmaze-large-navigate-singletask-task1-v0, by the package ogbench)"
        )
    reward = _per_transition("rewards", rewards, inner)
    mask = None if masks is None else _per_transition("masks", masks, inner)
    terminated = np.zeros(len(reward), bool)
    if mask is not None:
        terminated = ~read_flags(mask, lambda row: f"{path}: masks at transition {row}")
    truncated = np.append(inner[1:], False)[inner] == 0  # if the next row is the trajectory's last
    after = np.append(False, inner[:-1])
    obs, next_obs = (_joined(parts, "observations", rows) for rows in (inner, after))
    for part in parts:
        del part["observations"]
    action = _joined(parts, "actions", inner)
    return Dataset.of(obs, action, reward, next_obs, terminated, truncated)


def _slice(file: Path, action_space: Box | Discrete | None, quiet: bool) -> dict[str, Any]:
    """Return the checked arrays of one file: actions in the agent's units, and ``inner`` rows."""
    found: dict[str, Any] = {"file": file}
    with _open(file) as arrays:
        present = [*KEYS, *(key for key in ("rewards", "masks") if key in arrays)]
        with progress(file, len(present), file.stat().st_size, quiet) as advance:
            for key in present:
                found[key] = _array(arrays, key, file)
                advance(1)
        rows = len(found["observations"])
        for key in present:
            if len(found[key]) != rows:
                raise UsageError(
                    f"{file}: {key} has {len(found[key])} rows, and observations {rows}; row "
                    f"{min(rows, len(found[key]))} is in one of them alone"
                )
    ends = read_flags(found.pop("terminals"), lambda row: f"{file}: terminals row {row}")
    if rows == 0 or not ends[-1]:
        raise UsageError(
            f"{file}: terminals row {rows - 1} is 0; the last row must end its trajectory"
        )
    # The last action of a trajectory is meaningless, and may be out of bounds.
    action = found["actions"]
    action[ends] = 0
    found["actions"] = _within(action, action_space, ends, file)
    found["inner"] = ~ends
    return found


def _within(
    action: np.ndarray, space: Box | Discrete | None, ends: np.ndarray, file: Path
) -> np.ndarray:
    """Return actions in the agent's units; those at ``ends`` are not checked."""
    if isinstance(space, Box) and action.shape[1:] == space.shape:
        action[ends] = np.where(space.bounded, space.low, np.clip(0.0, space.low, space.high))
    return convert_actions(action, space, lambda row: f"{file}: actions row {row}")


def _array(arrays: Any, key: str, file: Path) -> np.ndarray:
    """Return a finite array of a file, with at most 32 bits per element."""
    values = _member(arrays, key, file)
    if key == "observations" and values.ndim >= 3 and values.dtype == np.uint8:
        raise UsageError(
            f"{file}: observations are images (uint8{list(values.shape[1:])}); only vectors are "
            "read"
        )
    if values.dtype.kind not in "fiub" or values.ndim < 1:
        raise UsageError(f"{file}: {key} is {values.dtype}; it must be an array of numbers")
    if key not in ("observations", "actions") and values.ndim != 1:
        raise UsageError(f"{file}: {key} has shape {values.shape}; it must be one number a row")
    exact = values.dtype in (np.float32, np.int32, np.uint8, np.bool_)
    row = first_nonfinite(values) if exact else None
    if row is not None:
        raise UsageError(f"{file}: {key} row {row} is not finite; every value must be")
    return values if exact else read_rows(values, lambda row: f"{file}: {key} row {row}")


def _member(arrays: Any, key: str, file: Path) -> np.ndarray:
    if key not in arrays:
        raise UsageError(f"{file} has no {key!r}; it holds {', '.join(map(repr, arrays.files))}")
    try:
        return np.asarray(arrays[key])
    except MemoryError:
        raise UsageError(f"{file}: {key} needs more memory than there is") from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{file}: {key} cannot be read as plain numbers: {reason}") from None


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        arrays = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{file} cannot be read as npz: {reason}") from None
    with arrays:
        yield arrays


def _own(parts: list[dict[str, Any]], key: str) -> np.ndarray | None:
    """Return rewards or masks from the files, for each row; None if any file lacks them."""
    if any(key not in part for part in parts):
        return None
    return np.concatenate([part[key] for part in parts])


def _joined(parts: list[dict[str, Any]], key: str, rows: np.ndarray) -> np.ndarray:
    """Return the selected rows of all slices; ``rows[N]`` counts across slices."""
    sizes = np.cumsum([len(part[key]) for part in parts])[:-1]
    chosen = [part[key][own] for part, own in zip(parts, np.split(rows, sizes), strict=True)]
    return chosen[0] if len(chosen) == 1 else np.concatenate(chosen)


def _per_transition(name: str, given: Any, inner: np.ndarray) -> np.ndarray:
    """Convert an array for transitions or for all rows to one for transitions: float32."""
    values, count = np.asarray(given), int(inner.sum())
    if values.shape not in ((count,), inner.shape) or values.dtype.kind not in "fiub":
        raise UsageError(
            f"{name} is {values.dtype}{list(values.shape)}; it must be numbers of shape "
            f"[{count}], one for each transition, or [{len(inner)}], one for each row"
        )
    values = (values if values.shape == (count,) else values[inner]).astype(np.float32)
    row = first_nonfinite(values)
    if row is not None:
        raise UsageError(f"{name} at transition {row} is not finite; every value must be")
    return values


# --- rewards of OGBench's single tasks ----------------------------------------------------------


def cache_of(path: Path, task: str) -> Path:
    """Return the file next to the data that caches a task's rewards and masks."""
    path = Path(os.path.abspath(path))  # "." has no name
    return path.with_name(f"{path.stem if path.is_file() else path.name}.{task}.rewards")


def _relabelled(
    path: Path, parts: list[dict[str, Any]], task: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return rewards and masks of a task's transitions, from the cache or from ``ogbench``."""
    if not re.fullmatch(r"[a-z0-9-]+-singletask(-task[1-5])?-v\d+", task):
        raise UsageError(
            f"task is {task!r}; give one of OGBench's single tasks, such as "
            "antmaze-large-navigate-singletask-task1-v0"
        )
    cache = cache_of(path, task)
    source = 0
    for part in parts:
        source = zlib.crc32(np.ascontiguousarray(part["observations"]).view(np.uint8).data, source)
    if cache.is_file():
        with _open(cache) as arrays:
            known = {key: _member(arrays, key, cache) for key in ("rewards", "masks", "source")}
        if int(known["source"]) == source:
            return known["rewards"], known["masks"]
    rewards, masks = _computed(parts, task)
    _keep(cache, rewards=rewards, masks=masks, source=np.array(source, np.uint32))
    return rewards, masks


def _computed(parts: list[dict[str, Any]], task: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        import ogbench
        from ogbench import relabel_utils
    except ImportError:
        raise UsageError(
            f"rewards of {task} are computed by the package ogbench; "
            "pip install 'jaxrl[ogbench]', or give rewards=..."
        ) from None
    words = task.split("-")
    at = words.index("singletask")
    env = ogbench.make_env_and_datasets(task, env_only=True)
    states: dict[str, list[np.ndarray]] = {}
    for part in parts:
        with _open(part["file"]) as arrays:
            for key in STATES:
                if key in arrays:
                    rows = _member(arrays, key, part["file"])[part["inner"]]
                    states.setdefault(key, []).append(rows)
    if "qpos" not in states:
        raise UsageError(f"{parts[0]['file']} has no 'qpos', from which {task} is rewarded")
    data = {key: np.concatenate(rows) for key, rows in states.items()}
    # The environment's name omits the kind of data, the word before "singletask".
    relabel_utils.relabel_dataset("-".join(words[: at - 1] + words[at:]), env, data)
    env.close()
    return data["rewards"], data["masks"]


def _keep(cache: Path, **arrays: np.ndarray) -> None:
    """Write the cache completely or not at all; warn if the folder is not writable."""
    try:
        handle, temporary = tempfile.mkstemp(dir=cache.parent, prefix=f".{cache.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            os.replace(temporary, cache)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        warnings.warn(f"rewards were not kept in {cache}: {error}", stacklevel=2)
