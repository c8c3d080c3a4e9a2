"""The progress bar of a sweep, over all its legs."""

from __future__ import annotations

from jaxrl.run.progress import ProgressBar


class SweepBar:
    """One progress bar over all legs of a sweep; it counts the steps of all members."""

    def __init__(self, label: str, quiet: bool) -> None:
        self.total = 0
        self._label, self._quiet, self._done = label, quiet, 0
        self._bar: ProgressBar | None = None

    def opened(self) -> ProgressBar:
        """Return the displayed bar; the time left is estimated from the first call on."""
        if self._bar is None:
            self._bar = ProgressBar(self.total, self._done, self._label, self._quiet)
        return self._bar

    def add(self, steps: int) -> None:
        """Count the steps of a finished leg."""
        self._done += steps

    def of(self, members: int, first: int) -> LegBar:
        """Return the bar for a leg whose ``members`` are at step ``first``."""
        return LegBar(self, self._done, members, first)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class LegBar(ProgressBar):
    """The sweep's bar from the view of a leg's session."""

    def __init__(self, whole: SweepBar, before: int, members: int, first: int) -> None:
        self._whole, self._before, self._members, self._first = whole, before, members, first

    def update(self, step: int, speed: float, episode_return: float | None = None) -> None:
        """Show that every member of the leg has reached ``step``."""
        done = self._before + (step - self._first) * self._members
        self._whole.opened().update(done, speed, episode_return)

    def message(self, text: str) -> None:
        """Print one line above the bar."""
        self._whole.opened().message(text)

    def close(self) -> None:
        """Leave the bar to the next leg."""
