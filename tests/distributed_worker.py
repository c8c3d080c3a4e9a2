"""What test_distributed.py trains: ``distributed_worker.py FOLDER [HOST:PORT COUNT NUMBER]``.

Every process writes what it found as a line of JSON.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
from shared import bits, compiled_once

from jaxrl import PPO, OnPolicy, UsageError, VectorEnv, processes, run, sweep
from jaxrl.envs.probe import Both
from jaxrl.errors import Interrupted, RunError
from jaxrl.record import checkpoint
from jaxrl.run import distributed

STEPS = 4 * 8  # of an iteration
EVERY = {"eval_every": 2 * STEPS, "checkpoint_every": STEPS, "eval_episodes": 4}
PARTS = ("policy", "critic")
GRID = [{"gamma": 0.5}, {"gamma": 0.9}]


class Dear(Both):
    """An environment that is worth sharding."""

    cheap = False


@functools.cache
def trainer():
    networks = {
        name: getattr(PPO(), name).replace(hidden_dims=(4,)) for name in ("policy", "critic")
    }
    agent = PPO(**networks, num_minibatches=1, update_epochs=1)
    return OnPolicy(agent, VectorEnv(Dear(), 4), num_steps=8)


def digest(tree):
    """A checksum of all bits of a state, wherever it lies."""
    return zlib.crc32(
        b"".join(np.ascontiguousarray(x).tobytes() for x in bits(processes.to_host(tree)))
    )


def train(folder, iterations, resume=False, **options):
    """The state of a run and what it said."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        options = {"run_dir": folder, "resume": resume, **EVERY, **options}
        result = run(trainer(), iterations * STEPS, **options)
    return digest(result.state), said.getvalue(), result


def refused(f):
    """The message of an error."""
    try:
        f()
    except (UsageError, RunError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def trained(folder):
    """A sharded run, and a sweep."""
    found = {}
    found["whole"], _, result = train(folder / "whole", 4)
    found["policy"] = digest(result.policy().state)
    found["placement"] = json.loads((folder / "whole" / "config.json").read_text())["placement"]
    table = sweep(
        trainer(), 2 * STEPS, configurations=GRID, seeds=1, run_dir=folder / "sweep",
        max_parallel=2, quiet=True, **EVERY,
    ).table  # fmt: skip
    return found | {"table": table}


def only_together(folder, number):
    """What there is only with several processes."""
    found = {"devices": [jax.local_device_count(), jax.device_count()]}
    found["half"], _, _ = train(folder / "part", 2)
    if number == 0:
        for name in ("other", "damaged"):
            shutil.copytree(folder / "part", folder / name)
        (folder / "damaged" / "checkpoints" / "2" / "part-1.npz").unlink()
    found["resumed"], found["said"], _ = train(folder / "part", 4, resume=True)
    found["damaged"], found["damaged said"], _ = train(folder / "damaged", 2, resume=True)
    found["unlike"] = refused(lambda: train(None, 4, seeds=[number]))
    found["indivisible"] = refused(lambda: run(trainer_of_three(), 99, seeds=1))
    found["taken"] = refused(lambda: train(folder / "whole", 4))
    found["alone"] = sweep(  # members that do not divide over the processes
        trainer(), 2 * STEPS, configurations=GRID[:1], seeds=1, max_parallel=1, quiet=True, **EVERY
    ).table  # fmt: skip
    with contextlib.suppress(Interrupted):
        stop_after(folder, number)
    found["stopped at"] = checkpoint.available(folder / "stopped" / "checkpoints")
    return found


def trainer_of_three():
    return OnPolicy(trainer().agent, VectorEnv(Dear(), 3), num_steps=8)


def stop_after(folder, number):
    """A run that a signal to the last process alone stops after its second chunk."""
    from jaxrl.run.session import Session

    advance, calls = Session.advance, []

    def counted(self, *args):
        calls.append(1)
        if len(calls) == 2 and number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, *args)

    Session.advance = counted
    train(folder / "stopped", 4)


def main():
    folder, *words = sys.argv[1:]
    number = int(words[2]) if words else 0
    if words:
        distributed.from_words(words)
    with compiled_once():
        found = trained(Path(folder))
        if words:
            found |= only_together(Path(folder), number)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
