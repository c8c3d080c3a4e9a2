"""Paths that other libraries misread as patterns, and paths that no file system accepts."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxrl.errors import UsageError

_PLAIN = re.compile(r"[\w./ -]*", re.ASCII)  # means itself in every library
_BELOW = 300  # bytes of the longest path below a run's folder, with room to spare


@contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """Yield ``folder``, or a link to it if its path has more than letters, digits and ``_./ -``.

    Orbax treats its paths as patterns, in which ``[8]`` matches ``8``. TensorStore turns
    backslashes into slashes and refuses bytes that are not UTF-8.
    """
    if _is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="jaxrl-") as name:
        link = Path(name) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def check_path(option: str, path: Path) -> None:
    """Raise UsageError for a path in which no run could be saved.

    Such paths contain a null character or leave no room for checkpoint names. All others work if
    the temporary folder's name has no special characters.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise UsageError(f"{option} {text!r} has a null character; give another")
    path = path.absolute()
    size, most = len(os.fsencode(path)), os.pathconf("/", "PC_PATH_MAX") - _BELOW
    if size > most:
        raise UsageError(f"{option} has a path of {size} bytes; give one of at most {most}")
    temporary = tempfile.gettempdir()
    if not (_is_plain(path) or _is_plain(temporary)):
        raise UsageError(
            f"{option} {str(path)!r} and the folder of temporary files {temporary!r} both have "
            "special characters; give another, or set TMPDIR=/tmp"
        )


def _is_plain(path: Path | str) -> bool:
    return _PLAIN.fullmatch(os.fspath(path)) is not None
