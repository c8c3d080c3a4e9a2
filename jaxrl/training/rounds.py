"""The sizes of off-policy training: how many steps, rounds and gradient steps, and what fits."""

from __future__ import annotations

from typing import Literal

from flax import struct

from jaxrl.data.replay import Precision, Replay
from jaxrl.errors import UsageError
from jaxrl.hyper import require, require_choice
from jaxrl.training.trainer import Trainer
from jaxrl.types import learns_from_replay

Prefill = Literal["uniform", "agent"]


@struct.dataclass
class Rounds(Trainer):
    """A trainer whose iterations are rounds, of steps into a ring and gradient steps out of it.

    Attributes:
        capacity: transitions that the ring holds, of all environments together; rounded up to whole
            rounds.
        batch_size: transitions of a gradient step, over all shards.
        prefill: transitions made before the first gradient step, rounded up to equal pieces of
            whole rounds. Their non-finite steps are told with those of the first iteration.
        prefill_policy: "uniform" actions, or those of the untrained "agent".
        unroll: steps of every environment per round.
        updates: gradient steps per round.
        rounds: per iteration; the default lets an iteration's random numbers fit in a cache.
        n_step: rewards of so many steps are summed before the bootstrap.
        precision: "half" keeps the floats of observations in the ring as bfloat16.
    """

    capacity: int = struct.field(pytree_node=False, default=1_000_000)
    batch_size: int = struct.field(pytree_node=False, default=256)
    prefill: int = struct.field(pytree_node=False, default=5_000)
    prefill_policy: Prefill = struct.field(pytree_node=False, default="uniform")
    unroll: int = struct.field(pytree_node=False, default=1)
    updates: int = struct.field(pytree_node=False, default=1)
    rounds: int | None = struct.field(pytree_node=False, default=None)
    n_step: int = struct.field(pytree_node=False, default=1)
    precision: Precision = struct.field(pytree_node=False, default="full")

    # Sizes

    @property
    def group(self) -> int:
        """Rounds from one step of the actor to the next, made as one."""
        return max(self.agent.delay // self.updates, 1)

    @property
    def block(self) -> int:
        """Steps of every environment that are made, and written, at once."""
        return self.unroll * self.group

    @property
    def rounds_per_iteration(self) -> int:
        """``rounds``, or enough for 64 steps of every environment unless batches are large."""
        if self.rounds is not None:
            return self.rounds
        fitting = min(64 // self.unroll, 2**18 // (self.updates * self.batch_size))
        return max(fitting // self.group, 1) * self.group

    @property
    def steps_per_iteration(self) -> int:
        """``rounds * unroll * num_envs``."""
        return self.rounds_per_iteration * self.unroll * self.env.num_envs

    @property
    def updates_per_iteration(self) -> int:
        """Gradient steps of an iteration."""
        return self.rounds_per_iteration * self.updates

    @property
    def prefill_pieces(self) -> tuple[int, int]:
        """How many rollouts fill the ring, and the rounds of each: no more than an iteration's.

        What an iteration draws at once, be it starts of episodes or noise, a piece does.
        """
        blocks = -(-self.prefill // (self.block * self.env.num_envs))
        least = -(-blocks // (self.rounds_per_iteration // self.group))
        # Up to twice as many if they make just what is asked for.
        count = next((n for n in range(least, 2 * least + 1) if blocks % n == 0), least)
        return count, -(-blocks // count) * self.group

    @property
    def prefill_rounds(self) -> int:
        """Rounds without gradient steps, before the first iteration."""
        count, rounds = self.prefill_pieces
        return count * rounds

    @property
    def first_step(self) -> int:
        """The environment steps of the prefill."""
        return self.prefill_rounds * self.unroll * self.env.num_envs

    @property
    def shares_environments(self) -> bool:
        """Not by itself: batches of a few hundred rows gain nothing by being shared out."""
        return False

    @property
    def replay(self) -> Replay:
        """The ring's dimensions; its slots are a multiple of ``block``."""
        blocks = -(-self.capacity // (self.block * self.env.num_envs))
        return Replay(blocks * self.block, self.n_step, self.precision)

    def check(self, shards: int = 1) -> None:
        """Raise UsageError for sizes that do not fit each other."""
        for name in ("capacity", "batch_size", "prefill", "unroll", "updates", "n_step"):
            require(name, getattr(self, name), 1)
        require("rounds", self.rounds, 1)
        require_choice("prefill_policy", self.prefill_policy, Prefill)
        require_choice("precision", self.precision, Precision)
        Trainer.check(self, shards)
        if not learns_from_replay(self.agent):
            raise UsageError(
                f"{self.config()['algorithm']} learns from its own rollouts alone; train it with "
                "OnPolicy, or give another agent, such as SAC"
            )
        require("delay", self.agent.delay, 1)
        self._check_schedule()
        if self.batch_size % shards:
            raise UsageError(
                f"batch_size is {self.batch_size}, which does not divide over {shards} devices; "
                f"{-(-self.batch_size // shards) * shards} would"
            )
        self.agent.check(self.batch_size // shards)

    def _check_schedule(self) -> None:
        delay, rounds = self.agent.delay, self.rounds_per_iteration
        if self.updates % delay and delay % self.updates:
            raise UsageError(
                f"updates is {self.updates}, and the actor's delay {delay}; one must divide the "
                f"other, as {delay} would"
            )
        if rounds % self.group:
            raise UsageError(
                f"rounds is {rounds}; the actor steps every {self.group} rounds, so it must be a "
                f"multiple, as {-(-rounds // self.group) * self.group}"
            )
        least = self.n_step * self.env.num_envs
        if self.first_step < least:
            raise UsageError(f"prefill is {self.prefill}; n_step {self.n_step} needs {least}")
        if self.capacity < self.first_step:
            raise UsageError(
                f"capacity is {self.capacity}, less than the prefill of {self.first_step}; "
                f"give at least that"
            )

    def iterations(self, steps: int) -> int:
        """The number of iterations that make at least ``steps`` environment steps with the prefill.

        Raises:
            UsageError: if the prefill makes so many.
        """
        if steps <= self.first_step:
            raise UsageError(
                f"total_steps is {steps}, and the prefill alone makes {self.first_step}; "
                f"give more, such as {10 * self.first_step}, or a smaller prefill"
            )
        return Trainer.iterations(self, steps)
