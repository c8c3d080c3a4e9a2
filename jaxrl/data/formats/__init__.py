"""Readers of dataset files. Files hold numbers and JSON: nothing is unpickled or executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from jaxrl.data.dataset import Dataset
from jaxrl.data.formats import d4rl, minari, ogbench
from jaxrl.data.scores import Reference, d4rl_reference
from jaxrl.errors import UsageError
from jaxrl.require import is_number, plain
from jaxrl.types import Box, Discrete

Format = Literal["d4rl", "minari", "ogbench"]

__all__ = ["detect", "load", "metadata", "reference"]


def load(
    path: str | os.PathLike[str],
    *,
    action_space: Box | Discrete | None = None,
    rewards: Any = None,
    masks: Any = None,
    task: str | None = None,
    quiet: bool = False,
) -> Dataset:
    """Load a dataset from a local file or folder; the format is detected.

    Supports D4RL's HDF5 files, Minari's folders (the one with ``metadata.json``, or its parent),
    and OGBench's npz files or folders of them. Floats are float32; actions are in the agent's
    units.

    Args:
        path: the file or folder.
        action_space: the space of the file's actions. Default: the space in Minari's or our own
            metadata; without one, [-1, 1], or indices if the actions are integers.
        rewards, masks: arrays for OGBench's data, which have none.
        task: an OGBench task; the package ``ogbench`` computes its rewards.
        quiet: disables the progress bar, which is shown for large files on a terminal.

    Raises:
        UsageError: in one line, with key and row, for a malformed file; for an unknown format; and
            for options that the format does not support.
    """
    place, found = Path(path), detect(path)
    options = {"rewards": rewards, "masks": masks, "task": task}
    given = [name for name, value in options.items() if value is not None]
    if given and found != "ogbench":
        raise UsageError(f"{given[0]} is for OGBench's files, and {place} is {found}; leave it out")
    if action_space is not None and not isinstance(action_space, Box | Discrete):
        raise UsageError(
            f"action_space is a {type(action_space).__name__}; give Box(low, high, shape)"
        )
    if found == "d4rl":
        return d4rl.read(place, action_space, quiet)
    if found == "ogbench":
        return ogbench.read(place, action_space, rewards, masks, task, quiet)
    folder = minari.folder_of(place)
    assert folder is not None
    return minari.read(folder, action_space, quiet)


def detect(path: str | os.PathLike[str]) -> Format:
    """Return the format of a file or folder, from its contents.

    Raises:
        UsageError: if it is missing, or its format is unknown.
    """
    place = Path(path)
    if minari.folder_of(place) is not None:
        return "minari"
    if place.is_dir():
        if ogbench.files_of(place):
            return "ogbench"
        raise UsageError(
            f"{place} holds neither metadata.json (Minari) nor .npz files (OGBench); give the "
            "folder of a dataset"
        )
    try:
        with place.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise UsageError(f"{place} cannot be read: {error.strerror}") from None
    if start == b"\x89HDF\r\n\x1a\n":
        return "d4rl"
    if start[:4] == b"PK\x03\x04":
        return "ogbench"
    raise UsageError(
        f"{place} is of no known format; D4RL's HDF5, Minari's folders and OGBench's npz are read"
    )


def metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a dataset's metadata: Minari's ``metadata.json``, or our attribute in a D4RL file.

    ``{}`` without metadata.
    """
    place, found = Path(path), detect(path)
    if found == "d4rl":
        return d4rl.metadata(place)
    folder = minari.folder_of(place)
    return {} if folder is None else minari.metadata(folder)


def reference(path: str | os.PathLike[str]) -> Reference | None:
    """Return the returns of a dataset's random and expert policies, if known.

    They come from the metadata, or from D4RL's constants for a file with a D4RL name, such as
    ``hopper_medium-v2.hdf5``. Metadata whose expert is no better than the random policy give none.
    """
    known = metadata(path)
    random, expert = known.get("ref_min_score"), known.get("ref_max_score")
    if is_number(random) and is_number(expert) and plain(random) < plain(expert):
        source = known.get("ref_source", "the dataset's metadata")
        return Reference(float(plain(random)), float(plain(expert)), str(source))
    if known or detect(path) != "d4rl":
        return None
    return d4rl_reference(Path(path).stem.replace("_", "-"))
