"""The progress bar of a run."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxrl._output import Lasting, joined

PLAIN_SECONDS = 10.0  # between two progress lines if nothing can be redrawn


class ProgressBar:
    """A line of progress: steps, steps/s, latest return, time left.

    If no terminal or notebook can redraw the bar, a plain line is printed at most every 10 seconds
    and at the end. Create the bar when training begins: the time left is estimated from then on.
    """

    def __init__(
        self, total_steps: int, start_step: int = 0, label: str = "", quiet: bool = False
    ) -> None:
        self._total, self._first, self._label = total_steps, start_step, label
        self._quiet = quiet
        self._began = self._printed = time.monotonic()
        stream: Any = Lasting(sys.stderr)
        self._console = Console(file=stream)
        self._progress: Progress | None = None
        if not quiet and _can_redraw(self._console):
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),  # takes the space left by the text columns
                TextColumn("{task.fields[status]}", markup=False),
                console=self._console,
            )
            self._task = self._progress.add_task(
                label, total=total_steps, completed=start_step, status="starting"
            )
            self._progress.start()

    def update(self, step: int, speed: float, episode_return: float | None = None) -> None:
        """Show that every member has reached ``step``, at a total ``speed`` in steps/s."""
        if self._quiet:
            return
        now = time.monotonic()
        rate = (step - self._first) / max(now - self._began, 1e-9)
        status = f"{_short(step)}/{_short(self._total)} steps, {_short(speed)} steps/s"
        if episode_return is not None:
            status += f", return {episode_return:.1f}"
        if rate:
            status += f", {_duration(max(self._total - step, 0) / rate)} left"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, status=status)
        elif now - self._printed >= PLAIN_SECONDS or step >= self._total:
            self._printed = now
            self.message(f"{self._label} {status}".strip())

    def message(self, text: str) -> None:
        """Print one line above the bar."""
        if not self._quiet:
            self._console.print(joined(text), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop, leaving the bar's last state on the screen."""
        if self._progress is not None:
            self._progress.stop()


def _can_redraw(console: Console) -> bool:
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def _short(number: float) -> str:
    """Format a number as ``9,999``, ``20.5k`` or ``1.25M``."""
    if number < 9999.5:
        return f"{number:,.0f}"
    for unit, size in {"k": 1e3, "M": 1e6, "G": 1e9}.items():
        if number < 999.5 * size:
            return f"{number / size:#.3g}".rstrip(".") + unit
    return f"{number / 1e12:.3g}T"


def _duration(seconds: float) -> str:
    """Format seconds as ``0:16:30``."""
    minutes, second = divmod(int(min(seconds, 1e8)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
