"""What a sitting tells its user, and in which order it opens things."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxrl import PPO, OnPolicy, RunError, UsageError, VectorEnv, make, run
from jaxrl.run import cli, logs, session
from jaxrl.run.folder import RunFolder
from jaxrl.types import Environment

SMALL = {"eval_every": 64, "eval_episodes": 1, "log_every": 16, "devices": 1, "quiet": True}


def tiny(env: Environment | None = None) -> OnPolicy:
    agent = PPO(hidden=(4,), epochs=1, minibatches=1)
    return OnPolicy(agent, VectorEnv(env or make("gymnax/CartPole-v1"), 2), unroll=8)


def test_wrong_input_of_the_function_is_refused_too():
    for options, part in [
        ({"seeds": [1, 2, 1]}, r"seeds \[1, 2, 1\] repeat; give every seed once"),
        ({"seeds": []}, "num_seeds is 0; it must be at least 1"),
        ({"sweep": {"gamma": []}}, "gamma has no values"),
        ({"resume": True}, "resume needs the run-dir"),
        ({"log": ["tensorboard"]}, "log tensorboard needs a run-dir"),
    ]:
        with pytest.raises(UsageError, match=part):
            run(tiny(), 32, quiet=True, **options)


@dataclasses.dataclass(eq=False)
class Exploding:
    """A cart and pole whose reward is not finite once the cart drives fast to the right."""

    env: Any

    def __getattr__(self, name):
        return getattr(self.env, name)

    def step(self, key, state, action):
        state, step = self.env.step(key, state, action)
        return state, step._replace(reward=jnp.where(step.obs[1] > 0.3, jnp.nan, step.reward))


def test_physics_that_is_not_finite_is_told_once(tmp_path, capsys):
    env = Exploding(make("gymnax/CartPole-v1"))
    result = run(tiny(env), 64, run_dir=tmp_path / "run", **SMALL)
    rows = [row for row in result.rows if row["kind"] == "train"]
    bad = [row for row in rows if row["nonfinite_steps"]]
    assert len(rows) == 4 and len(bad) > 1
    (line,) = capsys.readouterr().err.splitlines()
    count, step = f"{bad[0]['nonfinite_steps']:.0f}", bad[0]["step"]
    assert line.startswith(f"warning: {count} environment steps before step {step} were not finite")
    assert "nonfinite_steps in metrics.jsonl" in line


MEMORY = "RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nBufferAssignment OOM Debugging."


@pytest.mark.parametrize("where", ["start", "compile", "advance"])
@pytest.mark.parametrize("text", [MEMORY, "INTERNAL: Out of memory while trying to allocate"])
def test_too_little_memory_is_one_line_that_names_the_sizes(
    tmp_path, monkeypatch, capsys, where, text
):
    def fail(self, *args):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(session.Session, where, fail)
    if where == "advance":  # without compiling
        monkeypatch.setattr(session.Session, "start", lambda self: (None, 0))
        monkeypatch.setattr(session.Session, "compile", lambda self, ts: None)
        monkeypatch.setattr(session.Session, "evaluate", lambda *args: [])
    elif where == "compile":
        monkeypatch.setattr(session.Session, "start", lambda self: (None, 0))
    folder = tmp_path / "run"
    options = SMALL | {"run_dir": folder, "seeds": [5, 6, 7], "sweep": {"gamma": [0.9, 0.99]}}
    with pytest.raises(SystemExit) as exit:
        cli.launch(lambda: run(tiny(), 64, **options))
    (line,) = capsys.readouterr().err.splitlines()
    assert exit.value.code == 1
    assert "memory is too small" in line and text.splitlines()[0][:40] in line
    for part in ("num-envs (2)", "unroll (8)", "num-seeds (3)", "of the sweep (2)"):
        assert part in line
    stored = json.loads((folder / "config.json").read_text())
    RunFolder(folder, stored, resume=True).close()  # it is not locked


def test_other_errors_of_xla_keep_their_traceback(monkeypatch):
    def fail(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(session.Session, "start", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(tiny(), 64, **SMALL)


def test_writers_come_after_the_lock_and_get_the_configuration(tmp_path, monkeypatch):
    made, folder = [], tmp_path / "run"

    def make_writer(run_dir, config, resume):
        with pytest.raises(RunError, match="in use by process"):
            RunFolder(folder, config, resume=True)
        made.append((run_dir, config, resume))
        return types.SimpleNamespace(write=lambda rows: None, close=lambda: made.append("closed"))

    def stop(self):
        raise RunError("far enough")

    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    monkeypatch.setitem(logs.WRITERS, "wandb", make_writer)
    monkeypatch.setattr(session.Session, "start", stop)
    for resume in (False, True):
        with pytest.raises(RunError, match="far enough"):
            run(tiny(), 64, run_dir=folder, resume=resume, log=["wandb"], **SMALL)
    first, closed, second, again = made
    assert closed == again == "closed"
    for (run_dir, config, resume), wanted in ((first, False), (second, True)):
        assert run_dir == folder and resume is wanted
        assert config["agent"]["gamma"] == 0.99 and config["env"] == "gymnax/CartPole-v1"
        assert config["seeds"] == [0] and config["log"] == ["wandb"]


def test_a_folder_in_use_sees_no_writer(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    monkeypatch.setitem(logs.WRITERS, "wandb", lambda *_: pytest.fail("a writer was made"))
    held = RunFolder(folder, {}, resume=False)
    (folder / "config.json").unlink()
    with pytest.raises(RunError, match="in use by process"):
        run(tiny(), 64, run_dir=folder, log=["wandb"], **SMALL)
    held.close()
