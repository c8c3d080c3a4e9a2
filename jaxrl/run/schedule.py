"""The schedule of a phase: when the device returns control to the host."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The length of a phase and the periods of its events, in the phase's iterations."""

    total: int
    log_every: int
    eval_every: int
    checkpoint_every: int

    def next(self, done: int) -> int:
        """Return the iteration at which the chunk that begins after ``done`` ends.

        It depends only on absolute positions, so a resumed run has the same chunks as an
        uninterrupted one.
        """
        periods = (self.log_every, self.eval_every, self.checkpoint_every)
        return min(self.total, *((done // period + 1) * period for period in periods))

    def due(self, done: int, event: str) -> bool:
        """Return whether an event (``"eval_every"``) is due after ``done``; at the end, all are
        due.
        """
        return done % getattr(self, event) == 0 or done == self.total


@dataclasses.dataclass(frozen=True)
class Recorded(Schedule):
    """The schedule of a recorded phase, to be repeated with other seeds.

    Lengths and periods may have changed during the run, so the recorded events are repeated.
    ``total`` is the new end.

    Attributes:
        chunks: the iterations at which chunks ended, in ascending order.
        evaluations: the iterations of evaluations.
        checkpoints: the iterations of checkpoints still in the record.
    """

    chunks: tuple[int, ...] = ()
    evaluations: frozenset[int] = frozenset()
    checkpoints: frozenset[int] = frozenset()

    def next(self, done: int) -> int:
        """Return the iteration at which the chunk that begins after ``done`` ends."""
        return next(end for end in self.chunks if end > done)

    def due(self, done: int, event: str) -> bool:
        """Return whether an event is due after ``done``."""
        if event == "eval_every":
            return done in self.evaluations
        return done in self.checkpoints or super().due(done, event)
