"""Writers of datasets: Minari's folders and D4RL's HDF5 files, actions in the environment's units.

In addition to the data, both store the command and versions that produced it, the reference scores,
and a checksum. Files are written atomically and never replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl.data.dataset import Dataset, checksum
from jaxrl.data.formats.d4rl import ATTRIBUTE
from jaxrl.data.formats.minari import MAIN, METADATA
from jaxrl.data.formats.spaces import dump_spec
from jaxrl.data.rows import blocks, on_host
from jaxrl.data.scores import Reference, as_reference
from jaxrl.data.units import to_agent, to_environment
from jaxrl.errors import UsageError
from jaxrl.record.provenance import provenance
from jaxrl.require import shown
from jaxrl.types import Discrete, Spec

MINARI_VERSION = "0.5.0"  # of the format written here
_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+", re.ASCII)
_PACKING: dict[str, Any] = {"compression": "gzip", "shuffle": True}
_LARGE_BYTES = 1 << 16


def write_minari(
    dataset: Dataset,
    path: str | os.PathLike[str],
    spec: Spec,
    metadata: Mapping[str, Any] | None = None,
    *,
    reference: Reference | None = None,
) -> Path:
    """Write a Minari dataset of whole episodes and return its folder ``PATH/data``.

    ``jaxrl.data.formats.load(path)`` reads it back. So does the package ``minari``, which opens
    ``PATH`` by its last components below ``MINARI_DATASETS_PATH``. Actions are converted to the
    environment's units in float32, so they come back rounded unless the bounds are powers of two.
    Extras are not written.

    Args:
        dataset: the dataset.
        path: a folder that does not exist yet, or is empty.
        spec: the environment's spec, with the spaces of the data.
        metadata: additional entries of ``metadata.json``, as JSON: ``env``, ``seed``, ``author``,
            ... By default, ``dataset_id`` is derived from the folder's name.
        reference: returns of a random policy and an expert: ``ref_min_score``, ``ref_max_score``
            and ``ref_source``.

    Raises:
        UsageError: if the folder is not empty, the dataset does not fit ``spec``, an episode is not
            continuous, the metadata are not valid JSON, or the reference gives no scores.
    """
    data, folder = _checked(dataset, spec), Path(path)
    breaks = _first_break(data)
    if breaks is not None:
        raise UsageError(
            f"the dataset's next_obs at row {breaks} is not obs at row {breaks + 1} of the same "
            "episode; Minari keeps one observation for both"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists; give a folder that does not")
    described = _described(data, spec, metadata, reference)
    name = described.setdefault("dataset_id", _id_of(folder))
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise UsageError(f"dataset_id is {shown(name)}; it must be like pendulum/medium-v0")
    described = {
        **described,
        **dump_spec(spec),
        "total_episodes": data.num_episodes,
        "total_steps": data.size,
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "minari_version": MINARI_VERSION,
    }

    def write(temporary: Path) -> None:
        inner = temporary / "data"
        inner.mkdir(parents=True)
        _write_episodes(inner / MAIN, data, spec)
        size = round((inner / MAIN).stat().st_size / 1e6, 1)
        text = json.dumps({**described, "dataset_size": size}, indent=1)
        (inner / METADATA).write_text(text, encoding="utf-8")

    _whole(folder, write)
    return folder / "data"


def write_d4rl(
    dataset: Dataset,
    path: str | os.PathLike[str],
    spec: Spec,
    metadata: Mapping[str, Any] | None = None,
    *,
    reference: Reference | None = None,
    next_observations: bool = True,
) -> Path:
    """Write a dataset in D4RL's layout, one HDF5 file of flat arrays, and return its path.

    The arrays are ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts`` and
    ``next_observations``, with one row per transition. Readers that follow D4RL, including ours,
    drop the rows at time-outs and the last row; ``write_minari`` loses none. These readers do not
    need ``next_observations``, which may be omitted. Other arguments are as in ``write_minari``;
    the metadata are stored as JSON in the file's attribute ``jaxrl``.

    Raises:
        UsageError: as in ``write_minari``; also for dictionary observations, which this layout does
            not support.
    """
    import h5py

    data, target = _checked(dataset, spec), Path(path)
    if isinstance(data.obs, dict):
        raise UsageError("D4RL's layout has one array of observations; use write_minari")
    if target.exists():
        raise UsageError(f"{target} exists; give a path that does not")
    described = json.dumps({**_described(data, spec, metadata, reference), **dump_spec(spec)})
    arrays = {
        "observations": data.obs,
        "actions": to_environment(np.asarray(data.action), spec.action),
        "rewards": data.reward,
        "terminals": data.terminated,
        "timeouts": data.truncated,
    }
    if next_observations:
        arrays["next_observations"] = data.next_obs

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, array in arrays.items():
                _write_array(file, name, np.asarray(array))
            file.attrs[ATTRIBUTE] = described

    _whole(target, write)
    return target


def _checked(dataset: Dataset, spec: Spec) -> Dataset:
    dataset.check()
    dataset.check_spec(spec)
    return on_host(dataset)


def _first_break(data: Dataset) -> int | None:
    """Return the first row whose next observation differs from the next row of its episode."""
    inside = ~(data.terminated | data.truncated)
    for obs, next_obs in zip(
        jax.tree.leaves(data.obs), jax.tree.leaves(data.next_obs), strict=True
    ):
        for block in blocks(obs[:-1]):
            after = obs[block.start + 1 : block.stop + 1]
            differs = (next_obs[block] != after).reshape(len(after), -1).any(axis=1)
            if np.any(differs & inside[block]):
                return block.start + int(np.argmax(differs & inside[block]))
    return None


def _described(
    data: Dataset,
    spec: Spec,
    metadata: Mapping[str, Any] | None,
    reference: Reference | None,
) -> dict[str, Any]:
    """Return the metadata common to both layouts."""
    own: dict[str, Any] = {"max_steps": spec.max_steps, **provenance()}
    action = to_agent(to_environment(np.asarray(data.action), spec.action), spec.action)
    own["checksum"] = checksum(data._replace(action=action, extras={}))  # type: ignore[arg-type]
    reference = as_reference(reference)
    if reference is not None:
        own |= {"ref_min_score": reference.random, "ref_max_score": reference.expert}
        own["ref_source"] = reference.source
    taken = {"total_episodes", "total_steps", "data_format", "jpeg_encoding", "minari_version"}
    taken |= {"dataset_size"}
    given = dict(metadata or {})
    for name in given:
        if name in taken | own.keys() - {"command"} or name.endswith("_space"):
            raise UsageError(f"metadata has {name!r}, which the writer sets; leave it out")
    try:
        text = json.dumps(given, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"metadata are no JSON: {error}") from None
    return {**own, **json.loads(text)}


def _id_of(folder: Path) -> str:
    name = re.sub(r"[^\w-]+", "-", folder.name, flags=re.ASCII).strip("-") or "dataset"
    return name if re.search(r"-v\d+$", name) else f"{name}-v0"


def _write_episodes(path: Path, data: Dataset, spec: Spec) -> None:
    import h5py

    action = to_environment(np.asarray(data.action), spec.action)
    if isinstance(spec.action, Discrete):
        action = action.astype(np.int64)
    firsts, lengths = data.first_rows(), data.lengths()
    with h5py.File(path, "w", track_order=True) as file:
        for number, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
            group, rows = file.create_group(f"episode_{number}"), slice(first, first + length)
            group.attrs["id"] = number
            group.attrs["total_steps"] = int(length)
            flat: dict[str, Any] = {
                "actions": action[rows],
                "rewards": data.reward[rows],
                "terminations": data.terminated[rows],
                "truncations": data.truncated[rows],
            }
            for name, array in flat.items():
                _write_array(group, name, array)
            _write_observations(group, data, rows)


def _write_observations(group: Any, data: Dataset, rows: slice) -> None:
    """Write the ``T+1`` observations of an episode, per entry for dictionaries."""

    def all_rows(obs: np.ndarray, next_obs: np.ndarray) -> np.ndarray:
        return np.concatenate([obs[rows], next_obs[rows.stop - 1 : rows.stop]])

    if not isinstance(data.obs, dict):
        _write_array(group, "observations", all_rows(data.obs, data.next_obs))
        return
    inner = group.create_group("observations")
    for name, obs in data.obs.items():
        _write_array(inner, name, all_rows(obs, data.next_obs[name]))


def _write_array(group: Any, name: str, array: np.ndarray) -> None:
    """Write an array; small arrays are not compressed, since the chunk table would cost more."""
    packing = _PACKING if array.nbytes >= _LARGE_BYTES else {}
    group.create_dataset(name, data=array, **packing)


def _whole(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` create a file or folder under a temporary name, then rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    inner = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        write(inner / "new")
        if target.is_dir():
            target.rmdir()
        os.replace(inner / "new", target)
    finally:
        shutil.rmtree(inner, ignore_errors=True)
