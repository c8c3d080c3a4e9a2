"""Joins two records: a run's so far, and that of seeds trained later.

The joined record is built in a separate folder, and one rename makes it valid. A crash before the
rename leaves the run unchanged. After it, opening the run to resume first moves the files to their
places (``jaxrl.record.folder.mend``).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.errors import RunError
from jaxrl.record import checkpoint, manifest
from jaxrl.record.folder import (
    CHECKPOINTS,
    CONFIG,
    JOINED,
    METRICS,
    TIMING,
    finish_joining,
    sync,
    write_json,
)
from jaxrl.rng import is_key


class Event(NamedTuple):
    """The rows of all members ``[M]`` for one chunk or one evaluation, as written."""

    kind: str
    phase: str | None
    step: int
    lines: list[bytes]


class Record(NamedTuple):
    """The part of a run's record up to one of its checkpoints."""

    meta: dict[str, Any]
    events: list[Event]
    times: list[dict[str, Any]]


def members_of(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return configuration and seed of every member of a recorded run."""
    configurations = range(max(len(config["sweep"]), 1))
    return [(c, seed) for c in configurations for seed in config["seeds"]]


def read_record(run: Path, iteration: int) -> Record:
    """Return the record up to a checkpoint.

    Raises:
        RunError: if the checkpoint's manifest is damaged, or rows are missing.
    """
    folder = run / CHECKPOINTS / str(iteration)
    try:
        meta = manifest.read(folder)["meta"]
    except manifest.Damaged as error:
        raise RunError(f"checkpoint {folder} is damaged ({error})") from None
    members, path = members_of(meta["config"]), run / METRICS
    lines = _lines(path, meta["metrics_bytes"])
    count = len(members)
    groups = [lines[i : i + count] for i in range(0, len(lines), count)]
    events = [_event(path, group, members) for group in groups]
    times = [json.loads(line) for line in _lines(run / TIMING, meta["timing_bytes"])]
    return Record(meta, events, times)


def _lines(path: Path, size: int) -> list[bytes]:
    text = path.read_bytes()
    if len(text) < size:
        raise RunError(f"{path} has lost rows, so no seeds can be added to this run")
    return text[:size].splitlines(keepends=True)


def _event(path: Path, lines: list[bytes], members: Sequence[tuple[int, int]]) -> Event:
    rows = [json.loads(line) for line in lines]
    marks = {(row["kind"], row.get("phase"), row["step"]) for row in rows}
    if [(row.get("config", 0), row["seed"]) for row in rows] != list(members) or len(marks) != 1:
        raise RunError(f"{path} lacks rows of some seeds, so none can be added to this run")
    return Event(*marks.pop(), lines)


def join(run: Path, added: Path, config: Mapping[str, Any], iteration: int) -> None:
    """Join the record in ``added`` with that of ``run``; the caller holds the lock of ``run``.

    Both have a checkpoint of ``iteration``; earlier checkpoints that both have are joined too.

    Args:
        run: the folder of the run.
        added: the folder of the additional seeds.
        config: the configuration with all seeds, which defines their order.
        iteration: the number of the newest checkpoint to join.

    Raises:
        RunError: if the records are incompatible or cannot be read, or the joined record cannot be
            written. The run is then unchanged.
    """
    draft = run / f".{JOINED}-{os.getpid()}"
    for stray in run.glob(f".{JOINED}-*"):
        shutil.rmtree(stray, ignore_errors=True)
    try:
        _build(draft, run, added, config, iteration)
        os.rename(draft, run / JOINED)
        sync(run)
    except OSError as error:
        raise RunError(f"the seeds in {added} could not be joined: {error.strerror}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    finish_joining(run)


def _build(draft: Path, run: Path, added: Path, config: Mapping[str, Any], iteration: int) -> None:
    parts = [run, added]
    records = [read_record(part, iteration) for part in parts]
    known = [member for record in records for member in members_of(record.meta["config"])]
    at = {member: i for i, member in enumerate(known)}
    order = [at[member] for member in members_of(config)]
    marks = [[event[:3] for event in record.events] for record in records]
    if marks[0] != marks[1]:
        raise RunError(f"the rows in {added} are not of the same steps as those in {run}")
    rows = [
        b"".join((old.lines + new.lines)[i] for i in order)
        for old, new in zip(*(record.events for record in records), strict=True)
    ]
    members = [len(record.events[0].lines) for record in records]
    times = _times(records[0].times, records[1].times, members)
    draft.mkdir()
    saved = [set(checkpoint.available(part / CHECKPOINTS)) for part in parts]
    for each in sorted(saved[0] & saved[1]):
        if each < iteration:
            _try_older(draft, parts, each, order, config, rows, times)
    _join_checkpoint(draft, parts, iteration, order, config, rows, times)
    _write(draft / METRICS, b"".join(rows))
    _write(draft / TIMING, b"".join(times))
    write_json(draft / CONFIG, config)
    sync(draft)


def _try_older(draft: Path, parts: Sequence[Path], iteration: int, *args: Any) -> None:
    """Join older checkpoints, if intact, as a fallback in case the newest is damaged."""
    try:
        _join_checkpoint(draft, parts, iteration, *args)
    except RunError:
        shutil.rmtree(draft / CHECKPOINTS / str(iteration), ignore_errors=True)


def _join_checkpoint(
    draft: Path,
    parts: Sequence[Path],
    iteration: int,
    order: Sequence[int],
    config: Mapping[str, Any],
    rows: Sequence[bytes],
    times: Sequence[bytes],
) -> None:
    records = [read_record(part, iteration) for part in parts]
    old, new = (record.meta for record in records)
    sizes = {len(record.events) for record in records}
    if old["phase"] != new["phase"] or len(sizes) != 1:
        raise RunError(f"checkpoints {iteration} in {' and '.join(map(str, parts))} differ")
    best = None
    if old.get("best") and new.get("best"):
        best = [(old["best"] + new["best"])[i] for i in order]
    meta = old | {
        "metrics_bytes": [0, *accumulate(map(len, rows))][sizes.pop()],
        "timing_bytes": [0, *accumulate(map(len, times))][len(records[0].times)],
        "clock": {name: old["clock"][name] + new["clock"][name] for name in old["clock"]},
        "best": best,
        "config": dict(config),
    }
    states = [checkpoint.restore(part / CHECKPOINTS, None, iteration).state for part in parts]
    if best is None:
        states = [
            {path: x for path, x in state.items() if not path.startswith("best/")}
            for state in states
        ]
    if states[0].keys() != states[1].keys():
        raise RunError(f"the states in {' and '.join(map(str, parts))} have different parts")
    joined = {}
    for path in list(states[0]):  # one by one, since replay buffers are large
        joined[path] = _rows_of([state.pop(path) for state in states], order)
    checkpoint.save(draft / CHECKPOINTS, iteration, joined, meta)


def _rows_of(parts: Sequence[Any], order: Sequence[int]) -> Any:
    """Return the members ``[M, ...]`` of two leaves in order; keys stay keys."""
    if is_key(parts[0]):
        data = _rows_of([np.asarray(jax.random.key_data(part)) for part in parts], order)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(parts[0]))
    return np.concatenate(parts)[np.array(order)]


def _times(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], members: Sequence[int]
) -> list[bytes]:
    """Return the lines of ``timing.jsonl``: the seconds of both runs, the speed of all members."""
    by_step, lines = {row["step"]: row for row in new}, []
    for row in old:
        other = by_step.get(row["step"])
        if other is not None:
            needed = [
                count / each["steps_per_second"]
                for count, each in zip(members, (row, other), strict=True)
                if each["steps_per_second"]
            ]
            row = {
                "step": row["step"],
                "seconds": round(row["seconds"] + other["seconds"], 4),
                "steps_per_second": round(sum(members) / sum(needed), 1) if needed else 0.0,
            }
        lines.append(f"{json.dumps(row)}\n".encode())
    return lines


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
