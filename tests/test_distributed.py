"""Runs over two processes, which JAX connects on a CPU as it connects hosts of accelerators."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import distributed_worker as worker
import jax
import numpy as np
import pytest
from jax._src import xla_bridge  # whether JAX has begun is asked there
from shared import EXPERIMENTS, QUICK_FLAGS, plain

from jaxrl import PPO, OnPolicy, RunError, UsageError, VectorEnv, processes
from jaxrl.cli.options import Options
from jaxrl.cli.parsing import parse
from jaxrl.envs.probe import Both
from jaxrl.record import checkpoint
from jaxrl.run import distributed, meeting, placement
from jaxrl.run.placement import Placement

WORKER = Path(__file__).with_name("distributed_worker.py")


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def started(*words, devices=1, **environment):
    """Start Python with so many devices; programs compile quickly, unlike users'."""
    own = {"XLA_FLAGS": QUICK_FLAGS, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pair(*words, **environment):
    """Start two processes of a command, which end with the address and their number."""
    address = f"127.0.0.1:{free_port()}"
    return [started(*words, address, 2, number, **environment) for number in (0, 1)]


def output_of(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(next(line for line in out.splitlines() if line.startswith("{")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders and findings of a pair, and of one process with as many devices."""
    folders = [tmp_path_factory.mktemp(name) for name in ("pair", "one")]
    together, one = pair(WORKER, folders[0]), started(WORKER, folders[1], devices=2)
    return folders, [output_of(each) for each in together], output_of(one)


def test_a_sharded_run_over_two_processes_is_that_of_one(trained):
    (ours, theirs), (first, second), one = trained
    assert first["devices"] == second["devices"] == [1, 2]
    assert first["placement"] == {"members": 1, "shards": 2, "processes": 2, "platform": "cpu"}
    assert first["whole"] == second["whole"] == one["whole"]
    assert first["policy"] == second["policy"] == one["policy"]
    metrics = [(folder / "whole" / "metrics.jsonl").read_bytes() for folder in (ours, theirs)]
    assert metrics[0] == metrics[1]
    for name in ("summary.json", "curves.png"):
        assert (ours / "whole" / name).exists()


def test_a_resumed_pair_is_the_uninterrupted_one(trained):
    (ours, _), (first, second), _ = trained
    assert first["resumed"] == second["resumed"] == first["whole"] != first["half"]
    assert "resumed at step 64" in first["said"] and second["said"] == ""
    metrics = [(ours / name / "metrics.jsonl").read_bytes() for name in ("part", "whole")]
    assert metrics[0] == metrics[1]


def test_each_process_writes_its_part_of_a_checkpoint(trained):
    (ours, theirs), _, _ = trained
    folder = ours / "whole" / "checkpoints" / "4"
    assert {each.name for each in folder.iterdir()} == {"part-0.npz", "part-1.npz", "manifest.json"}
    found, wanted = (
        checkpoint.restore(each / "whole" / "checkpoints", None) for each in (ours, theirs)
    )
    assert found.state.keys() == wanted.state.keys()
    for name, value in wanted.state.items():
        np.testing.assert_array_equal(plain(found.state[name]), plain(value), name)


def test_a_checkpoint_of_two_processes_restores_in_one(trained):
    (ours, _), (first, _), _ = trained
    state, said, _ = worker.train(ours / "other", 2, resume=True, devices=1)
    assert state == first["half"] and "already finished" in said
    assert "placement.processes (2, now absent)" in said


def test_a_checkpoint_without_the_part_of_a_process_is_none(trained):
    _, (first, second), _ = trained
    assert "part-1.npz" in first["damaged said"] and "trying 1" in first["damaged said"]
    assert first["damaged"] == second["damaged"] == first["half"]


def test_a_sweep_over_two_processes_is_that_of_one(trained):
    _, (first, second), one = trained
    assert first["table"] == second["table"] == one["table"]


def test_members_that_do_not_divide_are_trained_by_every_process(trained):
    _, (first, second), _ = trained
    assert first["alone"] == second["alone"] and len(first["alone"]) == 1


def test_what_cannot_work_is_refused_by_all_processes(trained):
    _, found, _ = trained
    for each in found:
        assert each["unlike"] == (
            "UsageError: process 1 was given another configuration than process 0: "
            "seeds ([0], now [1]); start all with the same options"
        )
        assert each["indivisible"] == (
            "UsageError: 1 members do not divide over 2 processes, nor do their environments; "
            "2 members would"
        )
        assert "already holds a run" in each["taken"]


def test_a_signal_to_one_process_stops_all_after_the_same_chunk(trained):
    _, (first, second), _ = trained
    assert first["stopped at"] == second["stopped at"] == [1, 2]


# --- starting


def distributed_words(words):
    return parse(Options, (), words.split()).distributed


def test_the_option_takes_nothing_or_three_words():
    assert distributed_words("") is None
    assert distributed_words("--distributed --quiet") == ()
    assert distributed_words("--distributed 10.0.0.1:1234 2 0") == ("10.0.0.1:1234", "2", "0")


@pytest.mark.parametrize(
    "words, message",
    [
        ("10.0.0.1:1234 2", "give nothing, or address, number of processes and number of this"),
        ("10.0.0.1:1234 two 0", "give nothing, or address, number of processes and number of"),
        ("10.0.0.1 2 0", "address '10.0.0.1'; give HOST:PORT, as 10.0.0.1:1234 2 0"),
        ("10.0.0.1:1234 2 2", "process 2 of 2; they count from 0, as 10.0.0.1:1234 2 0"),
    ],
)
def test_other_words_are_refused(words, message, monkeypatch):
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    with pytest.raises(UsageError, match=message):
        distributed.from_words(words.split())


def test_it_must_come_first():
    jax.devices()
    with pytest.raises(UsageError, match="comes too late: JAX has begun to compute"):
        distributed.initialize()


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.mark.parametrize("job, host", [(SLURM, "node07"), (OPEN_MPI, "10.96.0.1")])
def test_jobs_are_detected_as_jax_does(job, host, monkeypatch):
    for name in {*SLURM, *OPEN_MPI, "JAX_COORDINATOR_ADDRESS", "JAX_LOCAL_DEVICE_IDS"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)
    with pytest.raises(UsageError, match="found no job of SLURM, Open MPI, Kubernetes"):
        distributed.initialize()
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    address, *others = distributed._detected((None, None, None), 1)
    assert address.startswith(f"{host}:") and others == [4, 3, [1]]


def test_a_meeting_says_who_is_missing():
    port = free_port()
    with pytest.raises(RunError, match="process 1, 2 of 3 did not join within 0 s"):
        meeting.meet(f"127.0.0.1:{port}", 3, 0, 0.1)
    with pytest.raises(RunError, match=f"process 1 found no process 0 at 127.0.0.1:{port} within"):
        meeting.meet(f"127.0.0.1:{port}", 2, 1, 0.1)
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RunError, match=f"process 0 cannot open port {port}: Address already"):
            meeting.meet(f"127.0.0.1:{port}", 2, 0, 0.1)


@pytest.mark.parametrize("number, count", [(1, 3), (2, 2)])
def test_processes_that_were_told_different_numbers_are_refused(number, count):
    address = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(meeting.meet, address, count, number, 5)
        with pytest.raises(UsageError, match=f"it is number {number} of {count}, and this is"):
            meeting.meet(address, 2, 0, 5)
        with pytest.raises(RunError, match="process 0 ended before all others joined"):
            other.result()


# --- placement


@pytest.mark.parametrize(
    "members, devices, dear, wanted",
    [
        (8, None, False, (8, 1)),
        (6, None, False, (6, 1)),
        (5, None, True, (1, 8)),
        (2, None, True, (2, 4)),
        (3, None, True, (3, 2)),
        (1, None, False, (1, 2)),  # no process is left without work
        (4, 1, False, (2, 1)),
        (1, 2, False, (1, 4)),
    ],
)
def test_members_go_over_the_devices_of_all_processes_first(
    members, devices, dear, wanted, monkeypatch
):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(placement, "_available", lambda devices: devices or 4)
    env = Both()
    object.__setattr__(env, "cheap", not dear)
    trainer = OnPolicy(PPO(num_minibatches=1), VectorEnv(env, 8), num_steps=8)
    assert placement.choose([trainer], members, devices) == Placement(*wanted, 2)


@pytest.mark.parametrize("members, wanted", [(8, (8, 2)), (6, (6, 2)), (5, (1, 1)), (3, (3, 1))])
def test_members_of_a_sweep_go_over_all_processes_or_are_trained_by_each(
    members, wanted, monkeypatch
):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(placement, "_available", lambda devices: devices or 4)
    groups, count = wanted
    assert placement.members_alone(members) == Placement(groups, 1, count)


@pytest.mark.parametrize("members, shards", [(4, 2), (3, 2), (1, 8), (2, 4)])
def test_the_devices_of_a_process_are_a_rectangle_of_the_mesh(members, shards, monkeypatch):
    devices = [mock.Mock(process_index=process, id=i) for process in (0, 1) for i in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(placement, "Mesh", lambda grid, names: grid)
    grid = Placement(members, shards, 2).mesh
    assert grid.shape == (members, shards)
    for process in (0, 1):
        own = np.array([[device.process_index == process for device in row] for row in grid])
        rows, columns = own.any(axis=1), own.any(axis=0)
        assert own.sum() == rows.sum() * columns.sum() == members * shards // 2


# --- losing a process


@pytest.mark.slow  # it compiles and trains three times
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_both_go_on(tmp_path, victim):
    """The other ends within seconds, by one line; the pair resumes as if nothing had happened."""
    networks = "--agent.policy.hidden-dims 4 --agent.critic.hidden-dims 4"
    options = f"--env probe/both --num-envs 4 --num-steps 8 {networks} --num-seeds 2 --quiet"
    options += " --agent.num-minibatches 1 --eval-episodes 4 --total-steps 64000"
    options += " --log-every 320 --eval-every 6400 --checkpoint-every 640"

    def scripts(name, *more):
        words = [EXPERIMENTS / "ppo.py", *options.split(), "--run-dir", tmp_path / name, *more]
        return pair(*words, "--distributed")

    for process in scripts("whole"):
        assert process.wait(timeout=300) == 0, process.stderr.read()
    killed = scripts("killed")
    while len(checkpoint.available(tmp_path / "killed" / "checkpoints")) < 2:
        assert killed[1 - victim].poll() is None, killed[1 - victim].stderr.read()
        time.sleep(0.01)
    killed[victim].kill()
    began = time.monotonic()
    other = killed[1 - victim]
    _, said = other.communicate(timeout=60)
    assert time.monotonic() - began < 15
    ours = f"process {victim} of this run has ended, and so does process {1 - victim}; start all"
    if victim == 1 or other.returncode == 1:
        assert other.returncode == 1 and ours in said, said
    else:  # JAX aborts a process whose coordinator is gone, and may be quicker
        assert other.returncode == -signal.SIGABRT and "another task died" in said, said
    for process in scripts("killed", "--resume"):
        assert process.wait(timeout=300) == 0, process.stderr.read()

    folders = [tmp_path / name for name in ("killed", "whole")]
    found, wanted = (checkpoint.restore(each / "checkpoints", None) for each in folders)
    assert found.iteration == wanted.iteration == 2000
    for name, value in wanted.state.items():
        np.testing.assert_array_equal(plain(found.state[name]), plain(value), name)
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in folders]
    assert metrics[0] == metrics[1]
