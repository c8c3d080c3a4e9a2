"""Output whose reader is gone: it never ends a run, nor changes what the run does."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
from shared import assert_same_bits

from jaxrl import PPO, OnPolicy, VectorEnv, make, run
from jaxrl._output import Lasting, one_line
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.run import progress
from jaxrl.run.signals import interruptible

SMALL = {"eval_every": 64, "eval_episodes": 1, "log_every": 16, "devices": 1}


def broken_pipe():
    """A text stream that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def full():
    return open("/dev/full", "w", buffering=1)


@pytest.mark.parametrize(
    "stream",
    [broken_pipe, closed, full, lambda: None],
    ids=["broken", "closed", "full", "none"],
)
def test_a_stream_that_takes_nothing_is_written_to_without_an_error(stream):
    lasting = Lasting(stream())
    for _ in range(2):
        print("lost" * 10_000, file=lasting, flush=True)
    assert not lasting.isatty()
    lasting.end()


def test_characters_that_the_encoding_lacks_are_escaped():
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "ascii", write_through=True)
    print("ü \udcff x", file=Lasting(stream))
    assert written.getvalue() == b"\\xfc \\udcff x\n"
    assert one_line("ü\n\udcff\x1b[1m") == "ü\\n\\udcff\\x1b[1m"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_whose_reader_is_gone_goes_on(tmp_path, monkeypatch, terminal, shared_programs):
    networks = {"policy": AutoPolicy(hidden_dims=(4,)), "critic": ValueFunction(hidden_dims=(4,))}
    agent = PPO(**networks, update_epochs=1, num_minibatches=1)
    trainer = OnPolicy(agent, VectorEnv(make("gymnax/CartPole-v1"), 2), num_steps=8)
    whole = run(trainer, 64, quiet=True, **SMALL)
    stream = broken_pipe()
    stream.isatty = lambda: terminal  # with a bar that is redrawn, and without
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    result = run(trainer, 64, run_dir=tmp_path / "run", **SMALL)
    assert_same_bits(result.state, whole.state)


SCRIPT = """
import sys
from jaxrl import cli
cli.launch(lambda: [print("lost" * 10_000, file=sys.{}) for _ in range(3)])
"""


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_script_whose_reader_is_gone_exits_as_if_it_were_there(name):
    stream = broken_pipe()
    other = {"stdout": "stderr", "stderr": "stdout"}[name]
    streams = {name: stream, other: subprocess.PIPE}
    command = [sys.executable, "-c", SCRIPT.format(name)]
    done = subprocess.run(command, check=False, timeout=300, **streams)
    assert done.returncode == 0 and not getattr(done, other)


CLOSED = """
import os, sys
from jaxrl import cli
def script():
    with open(sys.argv[1], "wb") as file:
        print("lost"), print("lost", file=sys.stderr)
        os.write(1, b"native"), os.write(2, b"native")
cli.launch(script)
"""


def test_a_file_never_gets_what_goes_to_a_stream_that_was_closed_at_the_start(tmp_path):
    command = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    words = ["sh", "-c", command, sys.executable, CLOSED, str(tmp_path / "file")]
    assert subprocess.run(words, check=False, timeout=300).returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_hangup_that_is_ignored_stays_so():
    """As under ``nohup``."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupted() is None
    finally:
        signal.signal(signal.SIGHUP, before)
