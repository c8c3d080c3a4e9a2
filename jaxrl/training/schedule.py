"""The static schedule of off-policy training: the structure of an iteration.

A *cycle* is ``num_steps`` steps in every environment and then ``num_updates`` gradient steps.
Cycles between two actor updates are merged: first all their steps, then all their gradient steps.
An iteration is several cycles.
"""

from __future__ import annotations

import dataclasses

from jaxrl.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The sizes of a run's cycles, and the sizes derived from them."""

    num_envs: int
    num_steps: int
    num_updates: int
    batch_size: int
    policy_delay: int
    cycles: int | None
    learning_starts: int

    @property
    def merged(self) -> int:
        """Number of cycles merged into one: those from one actor update to the next."""
        return max(self.policy_delay // self.num_updates, 1)

    @property
    def block(self) -> int:
        """Steps per environment that are taken and written together."""
        return self.num_steps * self.merged

    @property
    def cycles_per_iteration(self) -> int:
        """``cycles``, or enough for 64 steps per environment unless batches are large."""
        if self.cycles is not None:
            return self.cycles
        fitting = min(64 // self.num_steps, 2**18 // (self.num_updates * self.batch_size))
        return max(fitting // self.merged, 1) * self.merged

    @property
    def blocks(self) -> int:
        """Blocks per iteration."""
        return self.cycles_per_iteration // self.merged

    @property
    def steps(self) -> int:
        """Steps per environment in an iteration."""
        return self.cycles_per_iteration * self.num_steps

    @property
    def gradient_steps(self) -> int:
        """Gradient steps per iteration."""
        return self.cycles_per_iteration * self.num_updates

    @property
    def warmup(self) -> tuple[int, int]:
        """The number of rollouts before the first gradient step, and the steps per environment in
        each.

        Each is no longer than an iteration, whose random numbers fit in memory.
        """
        blocks = -(-self.learning_starts // (self.block * self.num_envs))
        least = -(-blocks // self.blocks)
        # Up to twice as many rollouts if that gives exactly the requested number of steps.
        count = next((n for n in range(least, 2 * least + 1) if blocks % n == 0), least)
        return count, -(-blocks // count) * self.block

    @property
    def warmup_steps(self) -> int:
        """Steps per environment before the first gradient step."""
        count, steps = self.warmup
        return count * steps

    def slots(self, buffer_size: int) -> int:
        """Return the slots of a buffer for ``buffer_size`` transitions: a multiple of ``block``."""
        return -(-buffer_size // (self.block * self.num_envs)) * self.block

    def check(self) -> None:
        """Raise UsageError for sizes that do not fit each other."""
        updates, delay = self.num_updates, self.policy_delay
        if updates % delay and delay % updates:
            raise UsageError(
                f"num_updates is {updates}, and policy_delay {delay}; one must divide the "
                f"other, as {delay} would"
            )
        cycles, merged = self.cycles_per_iteration, self.merged
        if cycles % merged:
            raise UsageError(
                f"cycles is {cycles}; the actor is updated every {merged} cycles, so it must be a "
                f"multiple, as {-(-cycles // merged) * merged}"
            )
