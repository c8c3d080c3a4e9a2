"""Runs that are really killed, and go on: the same bits as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.record import checkpoint

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
COMMON = "--quiet --normalize-obs --eval-episodes 2 --devices 1"
ACTOR_CRITIC = "--agent.policy.hidden-dims 8 --agent.critic.hidden-dims 8"
Q_NETWORK = "--agent.q-network.hidden-dims 8"
# Of every script: twelve chunks, seven evaluations, six checkpoints.
OPTIONS = {
    script: f"""{COMMON} {networks} --env gymnax/CartPole-v1 --num-envs 4 --num-steps 16
        --agent.update-epochs 2 --agent.num-minibatches 2
        --total-steps 96000 --log-every 8000 --eval-every 16000 --checkpoint-every 16000"""
    for script, networks in {"ppo": ACTOR_CRITIC, "pqn": Q_NETWORK}.items()
} | {
    script: f"""{COMMON} {networks} --env gymnax/{env} --num-envs 2 --cycles 64 --batch-size 8
        --learning-starts 64 --buffer-size 20000 --n-step 3
        --total-steps 30784 --log-every 2560 --eval-every 5120 --checkpoint-every 5120"""
    for script, env, networks in [
        ("sac", "Pendulum-v1", ACTOR_CRITIC),
        ("td3", "Pendulum-v1", ACTOR_CRITIC),
        ("dsac_t", "Pendulum-v1", ACTOR_CRITIC),
        ("dqn", "CartPole-v1", Q_NETWORK),
    ]
}

# Runs the script, but kills its own process for good at one moment of the given phase.
SABOTAGE = """
import os, runpy, signal, sys, threading
from pathlib import Path
from jaxrl.record import checkpoint
from jaxrl.run import session

phase, count, witness, script = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
sys.argv = sys.argv[4:]
calls, inside = 0, []

def die(*args, **options):
    witness.write_text(" ".join(inside))
    os.kill(os.getpid(), signal.SIGKILL)

def counted(original, act):
    def wrapper(*args, **options):
        global calls
        calls += 1
        if calls == count:
            inside.append(phase)
            act()
        result = session.jax.block_until_ready(original(*args, **options))
        inside.clear()
        return result
    return wrapper

if phase == "chunk":  # while the device computes
    soon = lambda: threading.Timer(0.005, die).start()
    def compile(self, ts, original=session.Session.compile):
        compiled = original(self, ts)
        return compiled._replace(chunk=counted(compiled.chunk, soon))
    session.Session.compile = compile
elif phase == "rows":  # rows are on file, the checkpoint is not begun
    session.Session.save = counted(session.Session.save, die)
else:  # within the save: nothing written, not yet synced, not renamed, not pruned
    name = {"arrays": "_write_arrays", "files": "_sync", "rename": "_publish", "prune": "_prune"}
    setattr(checkpoint, name[phase], counted(getattr(checkpoint, name[phase]), die))
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of child processes: one compilation cache for all of them."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def start(environment):
    """Start a script in a child process; ``members`` is its name and who is trained."""

    def start(folder, members, *more, sabotage=()):
        name, *who = members.split()
        script = str(EXPERIMENTS / f"{name}.py")
        begin = ["-c", SABOTAGE, *sabotage, script] if sabotage else [script]
        words = [sys.executable, *begin, *OPTIONS[name].split(), *who, *more]
        words += ["--run-dir", str(folder)]
        return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    """The folder of a run with these members that nothing disturbed."""
    folders: dict[str, Path] = {}

    def folder(members):
        if members not in folders:
            folders[members] = tmp_path_factory.mktemp("whole") / "run"
            child = start(folders[members], members)
            assert child.wait(300) == 0, child.stderr.read()
        return folders[members]

    return folder


def assert_same_run(folder, whole, members):
    """Equal to the last bit, with every row once."""
    found = checkpoint.restore(folder / "checkpoints", None)
    wanted = checkpoint.restore(whole / "checkpoints", None)
    assert found.iteration == wanted.iteration and found.state.keys() == wanted.state.keys()
    for path in wanted.state:
        a, b = found.state[path], wanted.state[path]
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, err_msg=path)
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    marks = [(row["kind"], row.get("config"), row["seed"], row["step"]) for row in rows]
    assert len(set(marks)) == len(marks) == members * (12 + 7)
    results = [json.loads((f / "summary.json").read_text()) for f in (folder, whole)]
    assert results[0]["final_return"] == results[1]["final_return"]
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("members", "size"),
    [
        ("ppo --num-seeds 1", 1),
        ("ppo --num-seeds 8", 8),
        ("ppo --num-seeds 2 --sweep gamma=0.9,0.99", 4),
        ("sac --num-seeds 2", 2),
        ("td3 --num-seeds 3", 3),
        ("dsac_t --num-seeds 3", 3),
        ("dqn --num-seeds 3", 3),
        ("pqn --num-seeds 3", 3),
    ],
)
def test_killed_in_every_phase_and_resumed_it_is_the_uninterrupted_run(
    start, uninterrupted, tmp_path, members, size
):
    folder = tmp_path / "run"
    phases = [("chunk", 3), ("rows", 1), ("files", 1), ("arrays", 1), ("rename", 1), ("prune", 1)]
    phases = phases[: {1: 6, 8: 3, 4: 2, 2: 4, 3: 1}[size]]
    for i, (phase, count) in enumerate(phases):
        resume = ("--resume",) if i else ()
        witness = tmp_path / f"killed-{i}"
        sabotage = (phase, str(count), str(witness))
        child = start(folder, members, *resume, sabotage=sabotage)
        assert child.wait(300) == -signal.SIGKILL, child.stderr.read()
        assert witness.read_text() == phase
        left = list((folder / "checkpoints").glob(".tmp-*"))
        assert bool(left) == (phase in ("arrays", "files", "rename"))
    child = start(folder, members, "--resume")
    assert child.wait(300) == 0, child.stderr.read()
    assert_same_run(folder, uninterrupted(members), size)


def test_killed_at_random_moments(start, uninterrupted, tmp_path):
    folder, rng, kills = tmp_path / "run", random.Random(3), 0
    for _ in range(4):
        child = start(folder, "ppo --num-seeds 1", *(("--resume",) if kills else ()))
        metrics = folder / "metrics.jsonl"
        began = metrics.stat().st_size if metrics.exists() else 0
        while child.poll() is None:  # until this session has written, so that some work is lost
            if metrics.exists() and metrics.stat().st_size != began:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.3))
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    assert kills >= 3
    child = start(folder, "ppo --num-seeds 1", "--resume")
    assert child.wait(300) == 0, child.stderr.read()
    assert_same_run(folder, uninterrupted("ppo --num-seeds 1"), 1)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_chunk_with_a_checkpoint(
    start, uninterrupted, tmp_path, signum, code
):
    folder = tmp_path / "run"
    child = start(folder, "ppo --num-seeds 1", "--checkpoint-every", "96000")
    while not (folder / "metrics.jsonl").exists() or b"train" not in (
        (folder / "metrics.jsonl").read_bytes()
    ):
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.002)
    child.send_signal(signum)
    _, said = child.communicate(timeout=300)
    assert child.returncode == code
    (iteration,) = checkpoint.available(folder / "checkpoints")
    step = iteration * 4 * 16
    assert said.strip().count("\n") == 0 and f"at step {step}" in said
    assert 0 < step < 96000

    child = start(folder, "ppo --num-seeds 1", "--checkpoint-every", "96000", "--resume")
    assert child.wait(300) == 0, child.stderr.read()
    assert_same_run(folder, uninterrupted("ppo --num-seeds 1"), 1)


def test_two_runs_cannot_share_a_folder(start, tmp_path):
    folder = tmp_path / "run"
    endless = ("ppo --num-seeds 1", "--total-steps", "2000000000")
    first = start(folder, *endless)
    while not (folder / ".lock").exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    second = start(folder, *endless, "--resume")
    _, said = second.communicate(timeout=300)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.returncode == 1
    assert f"in use by process {first.pid}" in said and said.strip().count("\n") == 0
