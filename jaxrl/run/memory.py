"""Running out of memory on a device, as a one-line error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

from jaxrl.errors import RunError


@contextmanager
def out_of_memory_reported(config: Mapping[str, Any]) -> Iterator[None]:
    """Turn XLA's running out of memory into a RunError that names the sizes to lower."""
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
