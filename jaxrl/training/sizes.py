"""Checks of a trainer's sizes: divisibility, counter ranges and memory."""

from __future__ import annotations

from typing import Any

from jaxrl import hyper
from jaxrl.agents import protocol
from jaxrl.errors import UsageError
from jaxrl.memory import free_over, gib, nbytes

MOST_GRADIENT_STEPS = 2**24  # per iteration


def check_gradient_steps(trainer: Any) -> None:
    """Refuse iterations with more gradient steps than keys that can be drawn at once.

    Raises:
        UsageError: with the sizes to lower, or for a hyper-parameter that its declaration refuses.
    """
    hyper.check(trainer.agent)
    found = trainer.gradient_steps_per_iteration
    if found <= MOST_GRADIENT_STEPS:
        return
    names = ("cycles", "num_updates", "update_epochs", "num_minibatches")
    sizes = [
        f"{name} ({getattr(owner, name)})"
        for owner in (trainer, protocol.innermost(trainer.agent))
        for name in names
        if getattr(owner, name, None) is not None
    ]
    raise UsageError(
        f"an iteration has {found} gradient steps, whose keys are drawn at once; it can have "
        f"at most {MOST_GRADIENT_STEPS}, so lower {', '.join(sizes)}"
    )


def rows_per_draw(sampler: Any) -> int:
    """Return how many observations a draw has; a sampler in another one (``sampler``) says it."""
    while not hasattr(sampler, "rows_per_draw") and hasattr(sampler, "sampler"):
        sampler = sampler.sampler
    return int(getattr(sampler, "rows_per_draw", 1))


def check_batches(trainer: Any, draws: int, members: int, devices: int) -> None:
    """Refuse batches of ``draws`` transitions or windows, made at once, that cannot fit in memory.

    Raises:
        UsageError: with the sizes, and a ``batch_size`` that fits.
    """
    free, rows = free_over(devices), rows_per_draw(trainer.sampling)
    needed = members * draws * rows * 2 * nbytes(trainer.env.spec.observation)
    if free is not None and needed > free:
        raise UsageError(
            f"batch_size is {trainer.batch_size} and num_updates {trainer.num_updates}, whose "
            f"batches need {gib(needed)} for all members, and {gib(free)} "
            f"are free; batch_size {max(trainer.batch_size * free // (2 * needed), 1)} would fit, "
            f"or a smaller num_updates{', or shorter windows' * (rows > 1)}"
        )


def require_divides(option: str, number: int, shards: int) -> None:
    """Raise UsageError unless ``number`` divides evenly over ``shards`` devices.

    Seeds are spread over devices first, so more of them help too.
    """
    if number % shards:
        raise UsageError(
            f"{option} is {number}, which does not divide over {shards} devices; "
            f"{-(-number // shards) * shards} would, or fewer devices, or {shards} times as many "
            "seeds"
        )
