"""Minari's layout of Arrow or Parquet files: a folder ``<i>`` for each episode.

Columns are padded to the ``T+1`` rows of the observations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl.data.formats.minari import Episode, numbered
from jaxrl.data.formats.spaces import Entry
from jaxrl.errors import UsageError


def episodes(
    folder: Path, layout: str, entries: list[Entry] | None, action: tuple[int, ...]
) -> Iterator[Episode]:
    """Yield the episodes of a folder in order of number; ``action`` is the shape of one action.

    Raises:
        UsageError: without pyarrow, or for files that differ from Minari's format.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow import dataset as arrow
    except ImportError:
        raise UsageError(
            f"{folder} is in Minari's {layout} layout, which needs pyarrow; pip install pyarrow, "
            "or write the dataset in the hdf5 layout"
        ) from None
    if entries is None:
        raise UsageError(f"{folder}/metadata.json has no observation_space; the {layout} layout "
                         "needs it")  # fmt: skip
    for name in numbered([each.name for each in folder.iterdir()], r"(\d+)", str(folder)):
        parts = sorted(map(str, (folder / name).glob(f"*.{layout}")))
        try:
            table = arrow.dataset(parts, format=layout).to_table().combine_chunks()
            yield _episode(table, name, entries, action, f"{folder}/{name}")
        except (ArrowException, OSError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{folder}/{name} cannot be read as {layout}: {reason}") from None


def _episode(
    table: Any, name: str, entries: list[Entry], action: tuple[int, ...], where: str
) -> Episode:
    observations = []
    for entry in entries:
        column = _column(table, "observations", where)
        for step in entry.keys:
            column = column.field(step)
        observations.append(_values(column, entry.box.shape, f"{where}: observations"))
    shapes = {"actions": action, "rewards": (), "terminations": (), "truncations": ()}
    flat = [
        _values(_column(table, key, where), shape, f"{where}: {key}")[:-1]
        for key, shape in shapes.items()
    ]
    return Episode(name, observations, *flat)


def _column(table: Any, key: str, where: str) -> Any:
    """Return a column as one array."""
    if key not in table.column_names:
        raise UsageError(f"{where} has no {key!r}; it holds {', '.join(table.column_names)}")
    column = table.column(key)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _values(column: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Return a column of numbers, or of lists of equal length, as ``[T+1, *shape]``."""
    values = column.flatten() if hasattr(column.type, "list_size") else column
    result = values.to_numpy(zero_copy_only=False)
    if result.dtype.kind not in "fiub" or result.size != len(column) * int(np.prod(shape)):
        raise UsageError(f"{where} is {column.type}; each row must be numbers of shape {shape}")
    return result.reshape(-1, *shape)
