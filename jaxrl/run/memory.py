"""Insufficient memory: refusing sizes before a run begins, and one-line errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from jaxrl.errors import RunError, UsageError
from jaxrl.memory import free_over, gib, nbytes
from jaxrl.training.trainer import Trainer
from jaxrl.types import PyTree

EPISODE_BYTES = 32  # for keys, returns and lengths


def check_states(trainers: Sequence[Trainer], members: int, episodes: int, devices: int) -> None:
    """Refuse agents or evaluations whose states alone cannot fit in memory.

    Rollouts and replay buffers are checked by their trainers (``check_memory``). Only the shapes of
    agents are traced. Environments are not, since that may take long.

    Raises:
        UsageError: with the size, and a size that fits.
    """
    free = free_over(devices)
    if free is None:
        return
    for trainer in trainers:
        one = nbytes(jax.eval_shape(trainer.agent.init, jax.random.key(0)))
        if members * one > free:
            fitting = free // one
            fewer = f"{fitting} of them fit, as fewer seeds or configurations, or " * bool(fitting)
            raise UsageError(
                f"the networks and optimisers of {members} members need "
                f"{gib(members * one)}, and {gib(free)} are free; "
                f"{fewer}smaller networks would, such as hidden_dims 64 64"
            )
        episode = nbytes(trainer.env.spec.observation) + EPISODE_BYTES
        needed = members * episodes * episode
        if needed > free:
            raise UsageError(
                f"eval_episodes is {episodes}, which need {gib(needed)} for all "
                f"{members} members, and {gib(free)} are free; "
                f"{max(episodes * free // (2 * needed), 1)} would fit"
            )


def check_dataset(data: PyTree, devices: int) -> None:
    """Refuse a dataset that cannot fit in memory; each device holds one copy for all members.

    Raises:
        UsageError: with the sizes.
    """
    free, needed = free_over(1), nbytes(data)
    copies = devices if jax.default_backend() == "cpu" else 1  # CPU devices share memory
    if free is not None and copies * needed > free:
        raise UsageError(
            f"the dataset needs {gib(needed)} on each of {devices} devices, and {gib(free)} are "
            f"free; give fewer of its episodes, as data.top({free / (copies * needed):.2g})"
        )


@contextmanager
def out_of_memory_reported(config: Mapping[str, Any]) -> Iterator[None]:
    """Turn XLA's out-of-memory errors into a RunError that names the sizes to lower."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
            raise
        sizes = {
            "num-envs": config["num_envs"],
            "num-steps": config["trainer"].get("num_steps"),
            "buffer-size": config["trainer"].get("buffer_size"),
            "batch-size": config["trainer"].get("batch_size"),
            "num-seeds": len(config["seeds"]),
            "configurations of the sweep": len(config["sweep"]) or None,
        }
        given = ", ".join(f"{name} ({size})" for name, size in sizes.items() if size is not None)
        reason = text.splitlines()[0][:120]
        raise RunError(f"the device's memory is too small; lower {given}: {reason}") from error
