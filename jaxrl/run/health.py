"""Non-finite numbers: when a run warns about them, and when it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrl.errors import RunError
from jaxrl.record.metrics_file import Row
from jaxrl.record.rows import Member

MAX_NAMES = 3  # members named in one line


class DivergenceGuard:
    """Checks a session's training rows for non-finite numbers.

    Args:
        members: the independent runs trained together.
        config: the run's configuration, with ``max_skipped`` and ``max_nonfinite``.
        report: called with a line for the user.
        saved: returns the iterations of the checkpoints.
        stops: whether the run ends when limits are exceeded. A sweep continues: which members
            diverge is one of its results.
    """

    def __init__(
        self,
        members: Sequence[Member],
        config: Mapping[str, Any],
        report: Callable[[str], Any],
        saved: Callable[[], Sequence[int]],
        stops: bool = True,
    ) -> None:
        self._stops = stops
        self._members, self._report, self._saved = members, report, saved
        self._max_skipped: int = config["max_skipped"]
        self._max_nonfinite: float = config["max_nonfinite"]
        self._reported_nonfinite = False
        self._reported_diverged: set[int] = set()

    def check(self, rows: Sequence[Row], steps: int) -> None:
        """Check the rows of a chunk: one per member, with ``steps`` environment steps in total.

        Raises:
            RunError: if the physics, or the gradients of every member, exceed their limit.
        """
        self._check_physics(rows, steps)
        self._check_gradients(rows)

    def _check_physics(self, rows: Sequence[Row], steps: int) -> None:
        bad, step = sum(row.get("nonfinite_steps", 0) for row in rows), rows[0]["step"]
        if self._stops and bad > self._max_nonfinite * steps:
            raise RunError(
                f"stopped at step {step}: {bad:.0f} of the last {steps} environment steps were not "
                f"finite (max-nonfinite is {self._max_nonfinite:g} of them); {self._kept()}"
            )
        if bad and not self._reported_nonfinite:
            self._reported_nonfinite = True
            self._report(
                f"warning: {bad:.0f} environment steps before step {step} were not finite and "
                "ended their episodes; nonfinite_steps in metrics.jsonl counts them"
            )

    def _check_gradients(self, rows: Sequence[Row]) -> None:
        worst = [row.get("skipped_in_a_row", 0) for row in rows]
        diverged = {i for i, count in enumerate(worst) if count >= self._max_skipped}
        step, limit = rows[0]["step"], f"(max-skipped is {self._max_skipped})"
        if self._stops and len(diverged) == len(rows):
            raise RunError(
                f"stopped at step {step}: {min(worst):.0f} gradients in a row of "
                f"{self._names(diverged)} were not finite {limit}; {self._kept()}"
            )
        if new := diverged - self._reported_diverged:
            self._reported_diverged |= new
            going = "training goes on" + " for the others" * self._stops
            self._report(
                f"warning: {min(worst[i] for i in new):.0f} gradients in a row of "
                f"{self._names(new)} were not finite {limit} before step {step}; {going}"
            )

    def _kept(self) -> str:
        saved = self._saved()
        if not saved:
            return "there is no checkpoint"
        return f"the checkpoint of iteration {saved[-1]} is kept"

    def _names(self, indices: set[int]) -> str:
        names = [self._members[i].name for i in sorted(indices)]
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        return ", ".join(names[:MAX_NAMES]) + more
