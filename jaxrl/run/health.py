"""Numbers that are not finite: when a run warns of them, and when it stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrl.errors import RunError
from jaxrl.run.rows import Member, Row

NAMED = 3  # members that a line names


class Health:
    """Watches the training rows of a sitting.

    Args:
        members: who is trained together; none can harm another.
        config: with ``max_skipped`` and ``max_nonfinite``.
        report: takes a line for the user.
        saved: gives the steps of the checkpoints.
    """

    def __init__(
        self,
        members: Sequence[Member],
        config: Mapping[str, Any],
        report: Callable[[str], Any],
        saved: Callable[[], Sequence[int]],
    ) -> None:
        self._members, self._report, self._saved = members, report, saved
        self._most_skipped: int = config["max_skipped"]
        self._most_nonfinite: float = config["max_nonfinite"]
        self._told_nonfinite = False
        self._told_diverged: set[int] = set()

    def check(self, rows: Sequence[Row], steps: int) -> None:
        """Look at the rows of a chunk, one of each member, of ``steps`` environment steps in all.

        Raises:
            RunError: if the physics, or the gradients of every member, are past their limit.
        """
        self._physics(rows, steps)
        self._gradients(rows)

    def _physics(self, rows: Sequence[Row], steps: int) -> None:
        bad, step = sum(row["nonfinite_steps"] for row in rows), rows[0]["step"]
        if bad > self._most_nonfinite * steps:
            raise RunError(
                f"stopped at step {step}: {bad:.0f} of the last {steps} environment steps were not "
                f"finite (max-nonfinite is {self._most_nonfinite:g} of them); {self._kept()}"
            )
        if bad and not self._told_nonfinite:
            self._told_nonfinite = True
            self._report(
                f"warning: {bad:.0f} environment steps before step {step} were not finite and "
                "ended their episodes; nonfinite_steps in metrics.jsonl counts them"
            )

    def _gradients(self, rows: Sequence[Row]) -> None:
        worst = [row.get("skipped_in_a_row", 0) for row in rows]
        past = {i for i, count in enumerate(worst) if count >= self._most_skipped}
        step, limit = rows[0]["step"], f"(max-skipped is {self._most_skipped})"
        if len(past) == len(rows):
            raise RunError(
                f"stopped at step {step}: {min(worst):.0f} gradients in a row of "
                f"{self._names(past)} were not finite {limit}; {self._kept()}"
            )
        if new := past - self._told_diverged:
            self._told_diverged |= new
            self._report(
                f"warning: {min(worst[i] for i in new):.0f} gradients in a row of "
                f"{self._names(new)} were not finite {limit} before step {step}; "
                "training goes on for the others"
            )

    def _kept(self) -> str:
        steps = self._saved()
        return f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint"

    def _names(self, indices: set[int]) -> str:
        names = [self._members[i].name for i in sorted(indices)]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return ", ".join(names[:NAMED]) + more
