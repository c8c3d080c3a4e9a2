"""The metrics file of a run: append-only JSON rows.

A row is a dictionary such as ``{"kind": "train", "seed": 0, "step": 20480, ...}``.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


class MetricsFile:
    """An append-only file of JSON rows that can be truncated to its size at a checkpoint.

    Identical values give identical bytes: keys keep their order, floats are written with ``repr``
    in float64, and NaN and infinities as ``null``.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open for the run)
        self._pending = b""  # bytes not yet written because of a full disk
        self._drop_torn_line()

    def append(self, rows: Sequence[Row]) -> None:
        """Write rows of numbers, strings, lists, dictionaries, numpy or jax scalars and arrays.

        Raises:
            OSError: on a full disk; the missing bytes are written before the next rows.
        """
        lines = [json.dumps(plain(row), allow_nan=False, ensure_ascii=False) for row in rows]
        self._pending += "".join(f"{line}\n" for line in lines).encode()
        self._flush()

    def sync(self) -> int:
        """Flush everything to disk; return the size in bytes, for ``truncate`` on resume."""
        self._flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, size: int) -> None:
        """Drop all rows written after ``sync`` returned ``size``; warn if the file is shorter."""
        found = os.fstat(self._file.fileno()).st_size
        if found < size:
            warnings.warn(
                f"{self.path} has {found} bytes of the {size} written before the checkpoint: "
                "its last rows are lost",
                stacklevel=2,
            )
            return
        self._file.truncate(size)

    def close(self) -> None:
        """Write the pending bytes and close."""
        with self._file:
            self._flush()

    def _flush(self) -> None:
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    def _drop_torn_line(self) -> None:
        """Drop the unfinished row of a killed process."""
        self._file.truncate(self.path.read_bytes().rfind(b"\n") + 1)


def plain(value: Any) -> Any:
    """Convert mappings, lists, scalars and arrays of any library to JSON values."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if hasattr(value, "dtype"):
        array = np.asarray(value)
        exact = array.dtype.kind in "biuSU"
        return plain(array.tolist() if exact else array.astype(np.float64).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
