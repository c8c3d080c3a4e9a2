"""The schedule of a phase: when the host is in contact with the device."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The length of a phase and the periods of its events, in iterations of the phase."""

    total: int
    log_every: int
    eval_every: int
    checkpoint_every: int

    def next(self, done: int) -> int:
        """Return the iteration at which the chunk that begins after ``done`` ends.

        It depends on absolute positions alone, so a resumed run has the chunks of an uninterrupted
        one.
        """
        periods = (self.log_every, self.eval_every, self.checkpoint_every)
        return min(self.total, *((done // period + 1) * period for period in periods))

    def due(self, done: int, period: int) -> bool:
        """Return whether an event of this period is due after ``done``; at the end, all are."""
        return done % period == 0 or done == self.total
