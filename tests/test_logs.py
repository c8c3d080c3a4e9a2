"""Metrics files, event writers and the progress bar."""

import importlib.util
import io
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.errors import UsageError
from jaxrl.record.metrics_file import MetricsFile
from jaxrl.run import logs, progress


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train_row(seed: int = 0, step: int = 128, **more):
    return {"kind": "train", "seed": seed, "step": step, "episode_return": 1.5, **more}


# --- metrics.jsonl


def test_rows_come_back_as_they_were_and_missing_numbers_as_null(tmp_path):
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    row = {
        "kind": "eval",
        "step": np.int64(2**40),
        "float32": np.float32(0.1),
        "jax": jnp.float32(3.0),
        "half": jnp.bfloat16(0.5),
        "flag": np.bool_(True),
        "nan": float("nan"),
        "inf": np.float32(np.inf),
        "returns": np.array([1.0, np.nan]),
        "sweep": {"learning_rate": jnp.float32(0.25)},
        "none": None,
    }
    file.append([row])
    file.close()
    (found,) = rows_of(tmp_path / "run" / "metrics.jsonl")
    assert found == {
        "kind": "eval",
        "step": 2**40,
        "float32": float(np.float32(0.1)),
        "jax": 3.0,
        "half": 0.5,
        "flag": True,
        "nan": None,
        "inf": None,
        "returns": [1.0, None],
        "sweep": {"learning_rate": 0.25},
        "none": None,
    }
    assert list(found) == list(row)


def test_truncating_to_a_synced_size_and_appending_again_gives_identical_bytes(tmp_path):
    rows = [train_row(step=step, loss=np.float32(1 / step)) for step in range(1, 6)]
    whole, cut = MetricsFile(tmp_path / "whole"), MetricsFile(tmp_path / "cut")
    whole.append(rows)
    whole.close()
    cut.append(rows[:3])
    size = cut.sync()
    assert size == (tmp_path / "cut").stat().st_size
    cut.append([train_row(step=99)])
    cut.close()
    resumed = MetricsFile(tmp_path / "cut")
    resumed.truncate(size)
    resumed.append(rows[3:])
    resumed.close()
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_rows_are_on_file_as_soon_as_they_are_appended(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append([train_row()])
    assert len(rows_of(tmp_path / "metrics.jsonl")) == 1
    file.close()


def test_lost_rows_are_told_in_one_line(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append([train_row()])
    with pytest.warns(UserWarning, match="of the 9999 written.*last rows are lost") as told:
        file.truncate(9999)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    file.close()
    assert len(rows_of(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize("torn", [b'{"kind": "tra', b'{"kind": "train"}'])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn)
    file = MetricsFile(path)
    file.append([{"step": 2}])
    file.close()
    assert rows_of(path) == [{"step": 1}, {"step": 2}]


# --- event writers


def test_unknown_writers_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="unknown log writer 'tensorbord'; .*tensorboard"):
        logs.make_writers(["tensorbord"], tmp_path, {}, resume=False)


@pytest.mark.parametrize("name, module", [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_missing_package_is_answered_with_the_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"pip install 'jaxrl\[log\]'"):
        logs.make_writers([name], tmp_path, {}, resume=False)
    assert list(tmp_path.iterdir()) == []


class FakeEvents:
    """Stands for tensorboardX.SummaryWriter and for a wandb run."""

    def __init__(self, folder: str = "") -> None:
        self.folder, self.scalars, self.logged, self.closed = folder, [], [], False

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def log(self, values, step):
        self.logged.append((step, values))

    def close(self):
        self.closed = True

    finish = close


def test_tensorboard_gets_each_member_apart(tmp_path, monkeypatch):
    made = []
    fake = types.SimpleNamespace(
        SummaryWriter=lambda at, purge_step: made.append(FakeEvents(at)) or made[-1]
    )
    monkeypatch.setitem(sys.modules, "tensorboardX", fake)
    (writer,) = logs.make_writers(["tensorboard"], tmp_path, {}, resume=False)
    writer.write([train_row(0, loss=np.float32(0.5)), train_row(1, config=2, sweep={"a": 1.0})])
    writer.close()
    root = tmp_path / "tensorboard"
    assert [each.folder for each in made] == [str(root / "seed0"), str(root / "config2/seed1")]
    assert made[0].scalars == [("train/episode_return", 1.5, 128), ("train/loss", 0.5, 128)]
    assert made[1].scalars == [("train/episode_return", 1.5, 128)]
    assert all(each.closed for each in made)


@pytest.mark.skipif(not importlib.util.find_spec("tensorboardX"), reason="not installed")
def test_tensorboard_writes_event_files(tmp_path):
    (writer,) = logs.make_writers(["tensorboard"], tmp_path, {}, resume=False)
    writer.write([train_row()])
    writer.close()
    (events,) = (tmp_path / "tensorboard" / "seed0").iterdir()
    assert b"train/episode_return" in events.read_bytes()


def events_of(path):
    """The events of a file: records of a length, its checksum, the event and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]


@pytest.mark.skipif(not importlib.util.find_spec("tensorboardX"), reason="not installed")
def test_a_resumed_run_has_tensorboard_drop_what_came_after_the_checkpoint(tmp_path):
    folder = tmp_path / "tensorboard" / "seed0"
    for session, steps in enumerate([(128, 256, 384), (384, 512)]):
        (writer,) = logs.make_writers(["tensorboard"], tmp_path, {}, resume=bool(session))
        if session:
            writer.rewind(256)  # where the newest checkpoint is
        for step in steps:
            writer.write([train_row(step=step, session=session)])
        writer.close()
        (new,) = (path for path in folder.iterdir() if path.name.count(".") > 3)
        new.rename(folder / f"events.out.tfevents.{session}")  # it was named after the second
    files = sorted(folder.iterdir())
    assert len(files) == 2
    shown = []  # as TensorBoard reads the files, one after the other
    for event in (event for path in files for event in events_of(path)):
        if event.HasField("session_log"):
            shown = [each for each in shown if each.step < event.step]
        if event.HasField("summary") and event.summary.value[0].tag == "train/session":
            shown.append(event)
    found = [(event.step, event.summary.value[0].simple_value) for event in shown]
    assert found == [(128, 0), (256, 0), (384, 1), (512, 1)]


def test_wandb_is_one_offline_run_that_a_resumed_one_continues(tmp_path, monkeypatch):
    calls, run = [], FakeEvents()
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = {"seed": 0, "agent": {"learning_rate": np.float32(0.5)}}
    (writer,) = logs.make_writers(["wandb"], tmp_path, config, resume=False)
    writer.write([train_row(0), train_row(1, bad=float("nan")), train_row(0, step=256)])
    writer.close()
    seeds = {"seed0/train/episode_return": 1.5, "seed1/train/episode_return": 1.5}
    assert run.logged == [(128, seeds), (256, {"seed0/train/episode_return": 1.5})]
    assert run.closed
    monkeypatch.setenv("WANDB_MODE", "online")
    logs.make_writers(["wandb"], tmp_path, config, resume=True)
    logs.make_writers(["wandb"], tmp_path, config, resume=False)
    first, resumed, anew = calls
    assert first["config"] == {"seed": 0, "agent": {"learning_rate": 0.5}}
    assert (first["mode"], resumed["mode"]) == ("offline", "online")
    assert first["id"] == resumed["id"] != anew["id"]


# --- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch):
    def use(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    return use


LONG = "[warning] 3 of 64 environments became non-finite " + "x" * 100


def test_without_a_terminal_lines_are_few_plain_and_whole(stderr, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = stderr(io.StringIO())
    bar = progress.ProgressBar(2000, start_step=1000, label="ppo")
    for step in range(1001, 1026):
        clock[0] += 1.0
        bar.update(step, 8000.0, 12.34 if step > 1015 else None)
    bar.message(LONG + "\nand more")
    clock[0] += 1.0
    bar.update(2000, 9000.0, -3.0)
    bar.close()
    assert stream.getvalue().splitlines() == [
        "ppo 1,010/2,000 steps, 8,000 steps/s, 0:16:30 left",
        "ppo 1,020/2,000 steps, 8,000 steps/s, return 12.3, 0:16:20 left",
        LONG + " and more",
        "ppo 2,000/2,000 steps, 9,000 steps/s, return -3.0, 0:00:00 left",
    ]


def test_on_a_terminal_messages_stand_above_the_bar(stderr):
    stream = stderr(Terminal())
    bar = progress.ProgressBar(1000, label="ppo")
    bar.update(500, 1.0, 7.0)
    bar.message(LONG)
    bar.update(1000, 1.0, 8.0)
    bar.close()
    text = stream.getvalue()
    assert LONG + "\n" in text
    assert "1,000/1,000" in text[text.index(LONG) :]


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (9999, "9,999"), (9999.6, "10.0k"), (20480, "20.5k"), (999_600, "1.00M")]
    + [(123_456_789, "123M"), (5e12, "5T")],
)
def test_counts_are_short(number, text):
    assert progress._short(number) == text


@pytest.mark.parametrize("terminal", [io.StringIO, Terminal])
def test_quiet_draws_nothing(stderr, terminal):
    stream = stderr(terminal())
    bar = progress.ProgressBar(10, quiet=True)
    bar.update(10, 1.0, 1.0)
    bar.message("hello")
    bar.close()
    assert stream.getvalue() == ""
