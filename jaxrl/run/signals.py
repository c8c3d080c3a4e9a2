"""Signals that end a run between two chunks, in all its processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from jaxrl import processes


@contextmanager
def interruptible() -> Iterator[Callable[[], int | None]]:
    """Inside, only remember the first SIGTERM, SIGHUP or Ctrl-C; a second Ctrl-C ends at once.

    An ignored SIGHUP, as under ``nohup``, stays ignored. Yields a function that returns the
    signal's number, or None if there was no signal. All processes of a run call it together and get
    the signal that any of them received.
    """
    received: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        if received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signum)

    caught = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        caught.append(signal.SIGHUP)
    main = threading.current_thread() is threading.main_thread()
    before = [signal.signal(each, remember) for each in caught] if main else []
    try:
        yield lambda: processes.largest(received[0] if received else 0) or None
    finally:
        for each, handler in zip(caught, before, strict=False):
            signal.signal(each, handler)
