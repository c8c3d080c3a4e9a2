"""Output that tolerates loss: a closed pipe or terminal never ends a run."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader; a closed terminal


class Lasting:
    """A text stream that drops output it cannot deliver, instead of raising.

    Characters missing from the stream's encoding are written as escapes. ``stream`` may be None,
    like ``sys.stderr`` if it was closed before Python started.
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
        """Flush, or drop what cannot be flushed."""
        self._tried(lambda: self._stream.flush())

    def end(self) -> None:
        """Flush one last time: Python's own flush would fail and change the exit code."""
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
        """Discard all further output to the process's own stream, including native code's."""
        if self._stream in (sys.__stdout__, sys.__stderr__):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Wrap standard output and standard error in ``Lasting`` inside the context."""
    for number in range(3):  # else an opened file could get a number native code prints to
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
    """Return a message of several lines as a single line."""
    return one_line(" ".join(str(message).split()))


def sweep_label(sweep: Mapping[str, float]) -> str:
    """Return swept values as ``"gamma=0.9 tau=0.005"``, to 12 digits: more are rounding errors."""
    return " ".join(f"{name}={value:.12g}" for name, value in sweep.items())


def one_line(text: object) -> str:
    """Return a text without line breaks and other characters that cannot be shown."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
