"""Minari's folders: ``metadata.json``, and ``main_data.hdf5`` or a folder of Arrow files each.

    episode_<i>/observations [T+1, *O], actions [T, *A], rewards, terminations, truncations [T]

The package itself imports the environment named in a file; this reader reads only numbers and JSON.
Observations include the row after the last action, so no transition is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl.data.dataset import Dataset
from jaxrl.data.fitting import kind
from jaxrl.data.formats import spaces
from jaxrl.data.formats.reading import (
    Place,
    allocate,
    convert_actions,
    h5_array,
    h5_child,
    h5_group,
    h5_values,
    open_h5,
    progress,
    stored_dtype,
)
from jaxrl.data.rows import first_nonfinite
from jaxrl.errors import UsageError
from jaxrl.types import Box, Discrete

METADATA, MAIN = "metadata.json", "main_data.hdf5"
_FLAGS = ("terminations", "truncations")


class Episode(NamedTuple):
    """The arrays of one episode, as stored in its file."""

    name: str
    observations: list[np.ndarray]  # [T+1, ...], an array for each entry
    actions: np.ndarray  # [T, *A]
    rewards: np.ndarray  # [T]
    terminations: np.ndarray
    truncations: np.ndarray


Reader = Callable[[list[spaces.Entry] | None], Iterator[Episode]]


def folder_of(path: Path) -> Path | None:
    """Return the folder with ``metadata.json``: ``path``, its ``data``, or the main file's folder.

    None if there is none.
    """
    places = [path, path / "data"] + [path.parent] * (path.name == MAIN)
    return next((each for each in places if (each / METADATA).is_file()), None)


def metadata(folder: Path) -> dict[str, Any]:
    """Return ``metadata.json``.

    Raises:
        UsageError: if it is not a JSON object.
    """
    try:
        found = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{folder / METADATA} cannot be read as JSON: {reason}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{folder / METADATA} is no JSON object; it must describe the dataset")
    return found


def read(folder: Path, action_space: Box | Discrete | None = None, quiet: bool = False) -> Dataset:
    """Return the transitions of a folder; observations of Dict and Tuple spaces by entry.

    A row with both flags true is terminated.

    Args:
        folder: the folder with ``metadata.json``.
        action_space: the space of the file's actions; default: from the metadata.
        quiet: no progress bar.

    Raises:
        UsageError: for a malformed dataset, with episode, key and row, and for image observations.
    """
    described = metadata(folder)
    entries, first = None, 0
    if "observation_space" in described:
        where = f"{folder / METADATA}: observation_space"
        space = spaces.parse(described["observation_space"], where)
        entries = spaces.observation_entries(space, where)
    if action_space is None:
        where = f"{folder / METADATA}: action_space"
        if "action_space" not in described:
            raise UsageError(f"{where} is missing; give action_space=Box(low, high, shape)")
        space = spaces.parse(described["action_space"], where)
        action_space, first = spaces.action_space(space, where)
    layout = described.get("data_format", "hdf5")
    if layout == "hdf5":
        return _read_h5(folder / MAIN, entries, action_space, first, quiet)
    if layout in ("arrow", "parquet"):
        from jaxrl.data.formats import minari_arrow

        episodes = minari_arrow.episodes(folder, layout, entries, action_space.shape)
        return joined(list(episodes), entries, action_space, first, str(folder))
    raise UsageError(f"{folder / METADATA}: data_format is {layout!r}; hdf5 and arrow are read")


def _read_h5(
    path: Path,
    entries: list[spaces.Entry] | None,
    action_space: Box | Discrete,
    first: int,
    quiet: bool,
) -> Dataset:
    if not path.is_file():
        raise UsageError(f"{path} is missing; the folder's data_format is hdf5")
    with open_h5(path) as file:
        names = numbered(list(file), r"episode_(\d+)", str(path))
        found, size = [], path.stat().st_size
        with progress(path, len(names), size, quiet) as advance:
            for name in names:
                group = h5_group(file, name)
                if entries is None:
                    entries = _entries_of(group, "observations", ())
                found.append(_episode(group, name, entries))
                advance(1)
    return joined(found, entries, action_space, first, str(path))


def numbered(names: list[str], pattern: str, where: str) -> list[str]:
    """Return the matching names, sorted by number (``episode_10`` comes after ``episode_9``).

    Raises:
        UsageError: if there are none.
    """
    found = {name: re.fullmatch(pattern, name) for name in names}
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    if not numbers:
        raise UsageError(f"{where} holds no episodes; they are named like episode_0")
    return sorted(numbers, key=numbers.__getitem__)


def _entries_of(group: Any, key: str, keys: tuple[str, ...]) -> list[spaces.Entry]:
    """Return the observation entries from a file's groups if its metadata lacks them."""
    found = h5_child(group, key)
    if not hasattr(found, "keys"):
        array = h5_array(group, key)
        if array.dtype == np.uint8 and len(array.shape) >= 3:
            raise UsageError(f"{group.file.filename}:{array.name} is images; only vectors are read")
        dtype = stored_dtype(array.dtype)
        low, high = (-np.inf, np.inf) if dtype.kind == "f" else (0, 1)  # bounds are not compared
        return [spaces.Entry(keys, Box(low, high, array.shape[1:], dtype))]
    return [
        entry
        for name in found
        for entry in _entries_of(found, name, (*keys, name.removeprefix("_index_")))
    ]


def _episode(group: Any, name: str, entries: list[spaces.Entry]) -> Episode:
    observations = []
    for entry in entries:
        inner, key = group, "observations"
        for step in entry.keys:
            inner = h5_group(inner, key)
            key = f"_index_{step}" if f"_index_{step}" in inner else step
        observations.append(h5_values(inner, key))
    flat = [h5_values(group, key) for key in ("actions", "rewards", *_FLAGS)]
    return Episode(name, observations, *flat)


def joined(
    episodes: list[Episode],
    entries: list[spaces.Entry] | None,
    action_space: Box | Discrete,
    first: int,
    where: str,
) -> Dataset:
    """Return the dataset of checked episodes; ``first`` is the number of the first action.

    The episodes' observations are released as they are joined.
    """
    assert entries is not None
    for episode in episodes:
        _check(episode, entries, where)
    episodes = [episode for episode in episodes if len(episode.rewards)]
    if not episodes:
        raise UsageError(f"{where} has no transitions; give a dataset with at least one")
    lengths = np.array([len(episode.rewards) for episode in episodes])

    def place(key: str, offset: int = 0) -> Place:
        return lambda row: _place(where, key, [e.name for e in episodes], lengths, row, offset)

    action = np.concatenate([episode.actions for episode in episodes])
    if first:
        action = action.astype(np.int64) - first
    action = convert_actions(action, action_space, place("actions"))
    reward = np.concatenate([episode.rewards for episode in episodes]).astype(np.float32)
    row = first_nonfinite(reward)
    if row is not None:
        raise UsageError(f"{place('rewards')(row)} is not finite; every value must be")
    dead = np.concatenate([episode.terminations for episode in episodes]).astype(bool)
    cut = np.zeros(len(reward), bool)
    cut[np.cumsum(lengths) - 1] = True  # also where recording simply stopped
    obs, next_obs = {}, {}
    for i, entry in enumerate(entries):
        key = "/".join(entry.keys)
        obs[key], next_obs[key] = _shifted(episodes, i, lengths, entry.box.dtype)
        for offset, array in enumerate((obs[key], next_obs[key])):
            row = first_nonfinite(array)
            if row is not None:
                at = place(f"observations/{key}".rstrip("/"), offset)(row)
                raise UsageError(f"{at} is not finite; every value must be")
    if list(obs) == [""]:
        return Dataset.of(obs[""], action, reward, next_obs[""], dead, cut)
    return Dataset.of(obs, action, reward, next_obs, dead, cut)


def _place(
    where: str, key: str, names: list[str], lengths: np.ndarray, row: int, offset: int
) -> str:
    """Describe a row of the joined arrays as its file does."""
    ends = np.cumsum(lengths)
    episode = int(np.searchsorted(ends, row, side="right"))
    own = row - ends[episode] + lengths[episode] + offset
    return f"{where}: {names[episode]}/{key} row {own}"


def _shifted(
    episodes: list[Episode], entry: int, lengths: np.ndarray, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``obs`` and ``next_obs`` of one entry ``[D, ...]``, releasing the episodes' arrays."""
    shape = (int(lengths.sum()), *episodes[0].observations[entry].shape[1:])
    kept = stored_dtype(np.dtype(dtype))
    obs, next_obs = (allocate(shape, kept, lambda: "observations") for _ in range(2))
    for episode, end, length in zip(episodes, np.cumsum(lengths), lengths, strict=True):
        array = episode.observations[entry]
        kept_array = array.astype(kept)
        if kept.kind != "f" and not np.array_equal(kept_array, array):
            raise UsageError(f"{episode.name}: observations hold integers that are not {kept}")
        obs[end - length : end] = kept_array[:-1]
        next_obs[end - length : end] = kept_array[1:]
        episode.observations[entry] = array[:0]
    return obs, next_obs


def _check(episode: Episode, entries: list[spaces.Entry], where: str) -> None:
    """Raise UsageError unless lengths and shapes match, and only the last row ends the episode."""
    rows, at = len(episode.rewards), f"{where}: {episode.name}"
    for name in ("rewards", *_FLAGS):
        shape = getattr(episode, name).shape
        if shape != (rows,):
            raise UsageError(f"{at}/{name} has shape {shape}; it must be ({rows},) as the rewards")
    if len(episode.actions) != rows:
        raise UsageError(
            f"{at}/actions has {len(episode.actions)} rows, and rewards {rows}; row "
            f"{min(rows, len(episode.actions))} is in one of them alone"
        )
    for entry, array in zip(entries, episode.observations, strict=True):
        wanted, name = (rows + 1, *entry.box.shape), "/".join(("observations", *entry.keys))
        if array.shape != wanted:
            raise UsageError(
                f"{at}/{name} has shape {array.shape}; it must be {wanted}, one row more than the "
                "rewards"
            )
        if kind(array.dtype) != kind(entry.box.dtype):
            raise UsageError(
                f"{at}/{name} is {array.dtype}, and its space {np.dtype(entry.box.dtype)}; both "
                "must be floats, integers or bools"
            )
    for name in _FLAGS:
        flags = getattr(episode, name)
        wrong = (flags != 0) & (flags != 1) | ((flags != 0) & (np.arange(rows) < rows - 1))
        if wrong.any():
            raise UsageError(
                f"{at}/{name} row {np.argmax(wrong)} is {flags[np.argmax(wrong)]}; only the last "
                f"row, {rows - 1}, may end the episode"
            )
