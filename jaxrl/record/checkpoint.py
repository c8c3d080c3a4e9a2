"""Checkpoints of a whole run: orbax stores the arrays, ``manifest.json`` verifies them.

``DIRECTORY/ITERATION/`` holds ``state/`` (orbax: a flat dictionary from a leaf's path to its array)
and the manifest with the caller's ``meta``. A checkpoint is written atomically. If the state is on
devices of several processes, each process writes its part: ``part-0.npz``, ``part-1.npz``, ...
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl import processes
from jaxrl.errors import RunError
from jaxrl.record import manifest as manifests
from jaxrl.record import parts
from jaxrl.record.arrays import read_arrays, write_arrays
from jaxrl.record.folder import sync
from jaxrl.record.leaves import describe, entry, flatten, to_host, with_data
from jaxrl.types import PyTree


class CheckpointError(RunError):
    """A checkpoint cannot be written, or none can be read. The message is one line."""


class Restored(NamedTuple):
    """A restored checkpoint: ``state`` with the template's structure, ``meta``, and its number."""

    state: PyTree
    meta: dict[str, Any]
    iteration: int


def save(directory: Path | str, iteration: int, state: PyTree, meta: dict, keep: int = 2) -> Path:
    """Write ``directory/ITERATION``, then delete all but the newest ``keep``; return its path.

    ``state`` is any tree of arrays and typed keys, on any number of devices; ``meta`` must be
    JSON-serialisable. All processes of a run call this together.

    Raises:
        CheckpointError: if anything fails, including a full disk. Earlier checkpoints are then
            unchanged. All processes raise it.
    """
    directory = Path(directory).absolute()
    final = directory / str(iteration)
    temporary = directory / f".tmp-{iteration}-{processes.from_first(os.getpid)}"
    together = not all(map(processes.is_here, jax.tree.leaves(state)))
    try:
        if together:
            leaves = _write_parts(temporary, state)
            processes.from_first(partial(_complete, temporary, final, iteration, meta, leaves))
        else:  # each process has the whole state
            processes.from_first(partial(_write_whole, temporary, final, iteration, meta, state))
    except Exception as error:
        reason = manifests.reason(error)
        raise CheckpointError(f"checkpoint {final} could not be saved: {reason}") from None
    finally:
        if processes.is_first():
            shutil.rmtree(temporary, ignore_errors=True)
    processes.from_first(partial(_prune, directory, iteration, keep))
    return final


def _write_whole(temporary: Path, final: Path, iteration: int, meta: dict, state: PyTree) -> None:
    arrays, leaves = to_host(state)
    _make_anew(temporary)
    write_arrays(temporary / "state", arrays)
    read_arrays(temporary / "state", _small(arrays, leaves))
    _complete(temporary, final, iteration, meta, leaves)


def _write_parts(temporary: Path, state: PyTree) -> dict[str, dict]:
    """Write this process's part of a state; return the entries of all leaves in the manifest."""
    arrays, own, leaves = {}, {}, {}
    for name, (leaf, data) in with_data(state).items():
        leaves[name] = entry(leaf)
        if 0 in data.shape:
            leaves[name]["crc32"] = manifests.array_checksum(np.zeros(data.shape, data.dtype))
        elif (part := parts.own_part(data)) is not None:
            arrays[name], own[name] = part[0], parts.describe(*part)
    processes.from_first(partial(_make_anew, temporary))
    failure = None
    path = temporary / f"part-{processes.index()}.npz"
    try:
        parts.write(path, arrays)
        parts.read(path, _small(arrays, own))
    except Exception as error:
        failure = manifests.reason(error)
    for number, (entries, reason) in enumerate(processes.gathered((own, failure))):
        if reason is not None:
            raise RunError(f"{reason} (process {number})")
        for name, part_entry in entries.items():
            leaves[name].setdefault("parts", {})[str(number)] = part_entry
    return leaves


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _small(arrays: dict[str, np.ndarray], leaves: dict[str, dict]) -> dict[str, dict]:
    """Return the entries of the small arrays, which are read back after writing."""
    limit = manifests.LARGE_BYTES
    return {path: leaf for path, leaf in leaves.items() if arrays[path].nbytes <= limit}


def _complete(
    temporary: Path, final: Path, iteration: int, meta: dict, leaves: dict[str, dict]
) -> None:
    """Add the manifest and give the checkpoint its final name."""
    manifests.write(temporary, iteration, meta, leaves)
    for path in [*temporary.rglob("*"), temporary]:
        sync(path)
    _publish(temporary, final)


def restore(
    directory: Path | str,
    template: PyTree | Callable[[dict[str, Any]], PyTree] | None,
    iteration: int | None = None,
    *,
    prefix: str = "",
    report: Callable[[str], Any] = warnings.warn,
) -> Restored:
    """Read the newest intact checkpoint (or ``iteration``) as numpy arrays and typed keys.

    Args:
        directory: the folder of the checkpoints.
        template: a tree of ``ShapeDtypeStruct`` as returned by ``jax.eval_shape``. The result has
            exactly its structure, shapes and dtypes: nothing is ever cast. May be a function from
            ``meta`` to the template. With None, the result is ``{"agent/params/...": array}``.
        iteration: the checkpoint to read; default the newest intact one.
        prefix: read only this subtree (``"agent"``); the template describes only this subtree.
        report: called with one line per damaged checkpoint, before the next older one is tried.

    Raises:
        CheckpointError: if no checkpoint is intact, or the checkpoint does not fit the template.
    """
    directory = Path(directory).absolute()
    saved = available(directory)[::-1]
    if not saved or iteration not in (None, *saved):
        known = f"; there are {', '.join(map(str, saved[::-1]))}" if saved else ""
        which = "" if iteration is None else f" {iteration}"
        raise CheckpointError(f"no checkpoint{which} in {directory}{known}")
    tried = saved if iteration is None else [iteration]
    for this, older in zip(tried, [*tried[1:], None], strict=True):
        folder = directory / str(this)
        try:
            return Restored(*_load(folder, template, prefix), this)
        except manifests.Damaged as error:
            damage = f"checkpoint {folder} is damaged ({error})"
        if older is not None:
            report(f"{damage}; trying {older}")
    raise CheckpointError(f"{damage}; no intact one is left" if iteration is None else damage)


def available(directory: Path | str) -> list[int]:
    """Return the numbers of all checkpoints, intact or not, in ascending order."""
    folders = Path(directory).glob("[0-9]*")
    return sorted(int(each.name) for each in folders if each.name.isdecimal() and each.is_dir())


def clean(directory: Path | str) -> None:
    """Remove a killed process's leftovers; call this before a process's first save."""
    directory = Path(directory)
    for old in directory.glob(".old-*"):  # killed between the two renames of a replacement
        final = old.with_name(old.name.removeprefix(".old-"))
        if not final.exists():
            os.rename(old, final)
    for pattern in (".old-*", ".tmp-*", "*.orbax-checkpoint-tmp*"):
        for leftover in directory.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _check_fit(folder: Path, saved: dict[str, dict], template: dict[str, Any]) -> None:
    """Raise ``CheckpointError`` naming the first leaves that differ from the template."""
    wanted = {path: describe(leaf) for path, leaf in template.items()}
    differences = []
    for path in [*wanted, *(path for path in saved if path not in wanted)]:
        texts = [
            f"{side[path]['dtype']}{side[path]['shape']}" if path in side else "nothing"
            for side in (saved, wanted)
        ]
        if texts[0] != texts[1]:
            differences.append(f"{path} is {texts[0]}, expected {texts[1]}")
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        first = "; ".join(differences[:3])
        raise CheckpointError(f"checkpoint {folder} does not fit this run: {first}{more}")


def _read_leaves(folder: Path, leaves: dict[str, dict]) -> dict[str, np.ndarray]:
    """Restore leaves like ``read_arrays``, whichever process wrote them."""
    whole = {path: leaf for path, leaf in leaves.items() if "parts" not in leaf}
    split = {path: leaf for path, leaf in leaves.items() if "parts" in leaf}
    arrays = read_arrays(folder / "state", whole)
    found: dict[str, list] = {path: [] for path in split}
    for number in sorted({number for leaf in split.values() for number in leaf["parts"]}):
        own = {p: leaf["parts"][number] for p, leaf in split.items() if number in leaf["parts"]}
        for path, part in parts.read(folder / f"part-{number}.npz", own).items():
            found[path].append((own[path], part))
    return arrays | {path: parts.joined(leaf, found[path]) for path, leaf in split.items()}


def _load(folder: Path, template: Any, prefix: str) -> tuple[PyTree, dict]:
    """Read and verify one checkpoint; return state and meta, or raise ``Damaged``."""
    manifest = manifests.read(folder)
    if callable(template):
        template = template(manifest["meta"])
    leaves = {
        path: leaf
        for path, leaf in manifest["leaves"].items()
        if f"{path}/".startswith(f"{prefix}/" if prefix else "")
    }
    if template is not None:
        wanted, treedef = flatten(template, prefix)
        _check_fit(folder, leaves, wanted)
    manifests.check_files(folder, manifest)
    try:
        values: dict[str, Any] = dict(_read_leaves(folder, leaves))
    except manifests.Damaged:
        raise
    except Exception as error:  # orbax raises many types
        raise manifests.Damaged(manifests.reason(error)) from None
    for path, leaf in leaves.items():
        if "impl" in leaf:
            values[path] = jax.random.wrap_key_data(values[path], impl=leaf["impl"])
    if template is None:
        return values, manifest["meta"]
    return jax.tree.unflatten(treedef, [values[path] for path in wanted]), manifest["meta"]


def _publish(temporary: Path, final: Path) -> None:
    """Move the finished checkpoint into place; ``clean`` repairs a kill between the renames."""
    old = final.with_name(f".old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(temporary, final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _prune(directory: Path, iteration: int, keep: int) -> None:
    """Keep the newest ``keep`` up to ``iteration``; later ones, of another history, stay."""
    earlier = [each for each in available(directory) if each < iteration]
    for each in earlier[: max(len(earlier) - keep + 1, 0)]:
        doomed = directory / f".tmp-{each}-{os.getpid()}"  # renamed first: never half a checkpoint
        with contextlib.suppress(OSError):
            os.rename(directory / str(each), doomed)
        shutil.rmtree(doomed, ignore_errors=True)
