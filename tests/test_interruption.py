"""Runs that are killed and go on: the same bits as if nothing had happened.

One trainer is killed for good, in a process of its own, in every phase of a run. The others differ
in what is saved and goes on, and not in how: they are ended by an exception in this process.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import EXPERIMENTS, QUICK_FLAGS, compiled_once, killed, run_script, script_module

from jaxrl.record import checkpoint

COMMON = "--quiet --normalize-obs --eval-episodes 2 --devices 1"
ACTOR_CRITIC = "--agent.policy.hidden-dims 8 --agent.critic.hidden-dims 8"
Q_NETWORK = "--agent.q-network.hidden-dims 8"
ON_POLICY = """--env gymnax/CartPole-v1 --num-envs 4 --num-steps 16 --agent.update-epochs 2
    --agent.num-minibatches 2"""
# Each run has twelve chunks, seven evaluations, six checkpoints.
TO_BE_KILLED = f"""{COMMON} {ACTOR_CRITIC} {ON_POLICY} --total-steps 96000 --log-every 8000
    --eval-every 16000 --checkpoint-every 16000"""
OPTIONS = {
    script: f"""{COMMON} {networks} {ON_POLICY} --max-steps 50 --total-steps 1536 --log-every 128
        --eval-every 256 --checkpoint-every 256"""
    for script, networks in {"ppo": ACTOR_CRITIC, "pqn": Q_NETWORK}.items()
} | {
    script: f"""{COMMON} {networks} --env gymnax/{env} --num-envs 2 --cycles 4 --batch-size 8
        --learning-starts 16 --buffer-size 100 --n-step 3 --max-steps 50
        --total-steps 208 --log-every 16 --eval-every 32 --checkpoint-every 32"""
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
    name = {"arrays": "write_arrays", "files": "sync", "rename": "_publish", "prune": "_prune"}
    setattr(checkpoint, name[phase], counted(getattr(checkpoint, name[phase]), die))
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of child processes: they compile quickly, and one cache serves all of them."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))
    return {
        **os.environ,
        "XLA_FLAGS": QUICK_FLAGS,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def start(environment):
    """Start PPO's script in a child process."""

    def start(folder, *more, sabotage=()):
        script = str(EXPERIMENTS / "ppo.py")
        begin = ["-c", SABOTAGE, *sabotage, script] if sabotage else [script]
        words = [sys.executable, *begin, *TO_BE_KILLED.split(), "--run-dir", str(folder), *more]
        return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    child = start(folder)
    assert child.wait(300) == 0, child.stderr.read()
    placement = json.loads((folder / "config.json").read_text())["placement"]
    assert placement == {"members": 1, "shards": 1, "platform": "cpu"}  # as --devices 1 asks for
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
    "phases",
    [
        [("chunk", 3), ("arrays", 1), ("rename", 1)],
        pytest.param([("rows", 1), ("files", 1), ("prune", 1)], marks=pytest.mark.slow),
    ],
    ids=lambda phases: ", ".join(name for name, _ in phases),
)
def test_killed_in_every_phase_and_resumed_it_is_the_uninterrupted_run(
    start, uninterrupted, tmp_path, phases
):
    folder = tmp_path / "run"
    for i, (phase, count) in enumerate(phases):
        resume = ("--resume",) if i else ()
        witness = tmp_path / f"killed-{i}"
        sabotage = (phase, str(count), str(witness))
        child = start(folder, *resume, sabotage=sabotage)
        assert child.wait(300) == -signal.SIGKILL, child.stderr.read()
        assert witness.read_text() == phase
        left = list((folder / "checkpoints").glob(".tmp-*"))
        assert bool(left) == (phase in ("arrays", "files", "rename"))
    child = start(folder, "--resume")
    assert child.wait(300) == 0, child.stderr.read()
    assert_same_run(folder, uninterrupted, 1)


@pytest.mark.slow
def test_killed_at_random_moments(start, uninterrupted, tmp_path):
    folder, rng, kills = tmp_path / "run", random.Random(3), 0
    for _ in range(3):
        child = start(folder, *(("--resume",) if kills else ()))
        metrics = folder / "metrics.jsonl"
        began = metrics.stat().st_size if metrics.exists() else 0
        while child.poll() is None:  # until this session has written, so that some work is lost
            if metrics.exists() and metrics.stat().st_size != began:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.3))
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    assert kills >= 2
    child = start(folder, "--resume")
    assert child.wait(300) == 0, child.stderr.read()
    assert_same_run(folder, uninterrupted, 1)


@pytest.mark.parametrize(
    ("members", "size"),
    [
        ("ppo --num-seeds 2 --sweep gamma=0.9,0.99", 4),
        ("sac --num-seeds 2", 2),
        pytest.param("td3 --num-seeds 3", 3, marks=pytest.mark.slow),
        pytest.param("dsac_t --num-seeds 3", 3, marks=pytest.mark.slow),
        pytest.param("dqn --num-seeds 3", 3, marks=pytest.mark.slow),
        pytest.param("pqn --num-seeds 3", 3, marks=pytest.mark.slow),
    ],
)
def test_ended_between_checkpoints_and_resumed_it_is_the_uninterrupted_run(
    tmp_path, monkeypatch, members, size
):
    """Two chunks, whose rows are on file, are lost: one before and one after an evaluation."""
    name, *who = members.split()
    with script_module(name) as script, compiled_once():
        monkeypatch.setattr(script, "make", functools.cache(script.make))

        def train(folder, *more):
            words = [*OPTIONS[name].split(), *who, "--run-dir", str(tmp_path / folder), *more]
            run_script(script, words)

        train("whole")
        with killed("advance", 5):
            train("run")
        with killed("advance", 5):
            train("run", "--resume")
        train("run", "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "whole", size)


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_run_after_its_chunk_with_a_checkpoint(
    start, uninterrupted, tmp_path, signum, code
):
    folder = tmp_path / "run"
    child = start(folder, "--checkpoint-every", "96000")
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

    if signum == signal.SIGTERM:
        child = start(folder, "--checkpoint-every", "96000", "--resume")
        assert child.wait(300) == 0, child.stderr.read()
        assert_same_run(folder, uninterrupted, 1)


def test_two_runs_cannot_share_a_folder(start, tmp_path):
    folder = tmp_path / "run"
    endless = ("--total-steps", "2000000000")
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
