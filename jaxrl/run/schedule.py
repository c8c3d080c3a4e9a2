"""When the host is in contact with the device."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """In iterations of ``steps`` environment steps each (per member), after ``first`` of them."""

    total: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    steps: int
    first: int = 0
    updates: int = 1  # of an iteration

    def step(self, done: int) -> int:
        """Environment steps of each member after ``done`` iterations."""
        return self.first + done * self.steps

    def next(self, done: int) -> int:
        """The iteration at which the chunk that begins after ``done`` ends.

        It depends on absolute positions alone, so a resumed run has the chunks of an uninterrupted
        one.
        """
        periods = (self.log_every, self.eval_every, self.checkpoint_every)
        return min(self.total, *((done // period + 1) * period for period in periods))

    def due(self, done: int, period: int) -> bool:
        """Whether something of this period happens after ``done``; at the end everything does."""
        return done % period == 0 or done == self.total
