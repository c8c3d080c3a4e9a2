"""Run folders of any name: whatever the file system takes works, or is refused before training."""

from __future__ import annotations

import json
import os
import tempfile

import jax
import numpy as np
import pytest
from shared import assert_same_bits

from jaxrl import PPO, OnPolicy, UsageError, VectorEnv, load_policy, make, run
from jaxrl.analysis import plot_comparison, render_run
from jaxrl.analysis.__main__ import table_rows
from jaxrl.export import NumpyPolicy, export_run
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.record import checkpoint
from jaxrl.run.session import Session

# Patterns, escapes, formats, what shells and programs read as something else, and raw bytes.
NAMES = ["a[8]", "[!a]", "**", "a?", "back\\slash", os.fsdecode(b"raw\xff"), "new\nline", "%s {0}"]
NAMES += ["--resume", "ün 日本", "file:$HOME/x"]
ALL = os.fsdecode(b"-*?[8]{0}%s\\ $b_{$\n\xff\xc3\xbc.zip")
SMALL = {"eval_every": 32, "eval_episodes": 1, "log_every": 16, "devices": 1, "quiet": True}


def tiny():
    networks = {"policy": AutoPolicy(hidden_dims=(4,)), "critic": ValueFunction(hidden_dims=(4,))}
    agent = PPO(**networks, update_epochs=1, num_minibatches=1)
    return OnPolicy(agent, VectorEnv(make("gymnax/CartPole-v1"), 2), num_steps=8)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_in_a_folder_of_any_name(tmp_path, name):
    state, folder = {"a": np.arange(3, dtype=np.int32)}, tmp_path / name / "checkpoints"
    (tmp_path / "8").mkdir()  # what patterns would match
    for iteration in (1, 2, 3):
        checkpoint.save(folder, iteration, state, {"is": iteration})
    (folder / ".tmp-4-1").mkdir()
    checkpoint.clean(folder)
    assert sorted(os.listdir(folder)) == ["2", "3"]
    found = checkpoint.restore(folder, jax.eval_shape(lambda: state), report=pytest.fail)
    assert found.iteration == 3 and found.meta == {"is": 3}
    assert_same_bits(found.state, state)
    assert sorted(os.listdir(tmp_path)) == sorted(["8", name.partition("/")[0]])


def test_a_run_in_a_folder_of_such_a_name_is_resumed_loaded_drawn_and_compared(
    tmp_path, monkeypatch, shared_programs
):
    monkeypatch.chdir(tmp_path)
    run(tiny(), 32, run_dir=ALL, **SMALL)
    result = run(tiny(), 64, run_dir=ALL, resume=True, **SMALL)
    assert_same_bits(load_policy(ALL).state, jax.tree.map(lambda x: x[0], result.state.agent))
    rendering = render_run(ALL, max_steps=2)
    assert not rendering.notes and all(path.stat().st_size for path in rendering.files)
    assert {path.name for path in rendering.files} >= {"episode.gif", "episode.npz"}
    exported = NumpyPolicy(export_run(ALL, formats=["npz"]).files[0].path)
    seen = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(exported(seen), load_policy(ALL)(seen))
    (row,) = table_rows(ALL)
    assert row[0] == ALL and "64" in row
    assert json.loads((tmp_path / ALL / "summary.json").read_text())["total_steps"] == 64
    os.symlink(ALL, "other")
    plot_comparison([ALL, "other"], "both.png")
    assert sorted(os.listdir()) == sorted([ALL, "both.png", "other"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b", r"run-dir '.*a\\x00b' has a null character; give another"),
        ("/".join(["x" * 200] * 20), r"run-dir has a path of 4\d+ bytes; give one of at most 3796"),
        ("a[8]", r"the folder of temporary files '.*a\[8\]' both .*, or set TMPDIR=/tmp"),
    ],
)
def test_names_that_cannot_work_are_refused_before_training(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr(Session, "start", lambda self: pytest.fail("the run has begun"))
    if name == "a[8]":  # TMPDIR is so named
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with pytest.raises(UsageError, match=message) as error:
        run(tiny(), 32, run_dir=tmp_path / name, **SMALL)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []
