"""Output that may be lost: a closed pipe or terminal never ends a run."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # of a pipe that nobody reads, of a terminal that was closed


class Lasting:
    """A text stream that drops what its reader does not take, instead of raising.

    Characters that the stream's encoding lacks are written as escapes. ``stream`` may be None, as
    ``sys.stderr`` is where it was closed before Python began.
    """

    def __init__(self, stream: Any) -> None:
        self._stream: Any = stream._stream if isinstance(stream, Lasting) else stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is an open terminal."""
        return bool(self._tried(lambda: self._stream.isatty()))

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        coded = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._tried(lambda: self._stream.write(coded))
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what cannot be."""
        self._tried(lambda: self._stream.flush())

    def end(self) -> None:
        """Flush for the last time: Python itself would fail to, and exit with a code of its own."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def _tried(self, act: Callable[[], Any]) -> Any:
        try:
            return None if self._stream is None else act()
        except OSError as error:
            if error.errno in _GONE:
                self._discard()
        except ValueError:  # the stream is closed
            pass
        return None

    def _discard(self) -> None:
        """Let the process's own stream, native code's output included, go nowhere from now on."""
        if self._stream in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Make all that this process prints lasting while inside."""
    for number in range(3):  # else the next file would get the number to which native code prints
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    streams = Lasting(sys.stdout), Lasting(sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.end()
        sys.stdout, sys.stderr = before


def joined(message: object) -> str:
    """Return a message of several lines in one."""
    return one_line(" ".join(str(message).split()))


def one_line(text: object) -> str:
    """Return a text without line breaks and other characters that cannot be shown."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
