"""Checkpoints: exact round trips, and every kind of damage either found or harmless."""

import asyncio
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.record import checkpoint, manifest


class Policy(NamedTuple):
    params: Any
    step: Any


class State(NamedTuple):
    agent: Any
    store: Any
    key: Any


def make_state(seed: int = 0) -> State:
    key = jax.random.key(seed)
    params = {
        "kernel": jax.random.normal(key, (3, 4)),
        "half": jax.random.normal(key, (5,)).astype(jnp.bfloat16),
        "layers": [jnp.array([-0.0, jnp.nan, jnp.inf]), (jnp.zeros((2,)),)],
    }
    replay = {
        "done": jnp.array([True, False]),
        "counter": jnp.array([2**32 - 1, seed], jnp.uint32),
        "pixels": jnp.array([[-128, 127]], jnp.int8),
        "empty": jnp.zeros((0, 3), jnp.bfloat16),
        "none": None,
    }
    keys = {"one": key, "many": jax.random.split(key, (2, 3)), "rbg": jax.random.key(1, impl="rbg")}
    return State(Policy(params, jnp.int32(seed)), replay, keys)


def shapes(state: Any) -> Any:
    return jax.eval_shape(lambda: state)


def assert_same(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def no_report(text: str) -> None:
    raise AssertionError(f"unexpected report: {text}")


def test_round_trip_is_exact(tmp_path, capfd):
    state = make_state()
    meta = {"config": {"learning_rate": 3e-4, "name": "é"}, "metrics_bytes": 12}
    path = checkpoint.save(tmp_path, 100, state, meta)
    assert path == tmp_path / "100"
    found = checkpoint.restore(tmp_path, shapes(state), report=no_report)
    assert found.meta == meta and found.iteration == 100
    assert_same(found.state, state)
    jax.random.uniform(found.state.key["one"])  # a usable typed key
    assert capfd.readouterr() == ("", "")


def test_sharded_and_vmapped_states_are_saved_whole(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("seed",))
    seeds = len(jax.devices()) * 2
    keys = jax.random.split(jax.random.key(0), seeds)
    state = {"key": keys, "value": jax.vmap(jax.random.normal)(keys)}
    state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.P("seed")))
    checkpoint.save(tmp_path, 1, state, {})
    assert_same(checkpoint.restore(tmp_path, shapes(state)).state, state)


def test_one_subtree_can_be_read_alone(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 1, state, {"a": 1})
    found = checkpoint.restore(tmp_path, shapes(state.agent), prefix="agent")
    assert_same(found.state, state.agent)
    flat = checkpoint.restore(tmp_path, None, prefix="agent").state
    assert sorted(flat) == [
        "agent/params/half",
        "agent/params/kernel",
        "agent/params/layers/0",
        "agent/params/layers/1/0",
        "agent/step",
    ]
    np.testing.assert_array_equal(flat["agent/params/kernel"], state.agent.params["kernel"])


def test_works_inside_a_running_event_loop(tmp_path):
    """As in a notebook."""

    async def cell() -> Any:
        checkpoint.save(tmp_path, 1, {"a": jnp.arange(3)}, {})
        return checkpoint.restore(tmp_path, {"a": jax.ShapeDtypeStruct((3,), jnp.int32)}).state

    np.testing.assert_array_equal(asyncio.run(cell())["a"], [0, 1, 2])


def test_keeps_the_newest_and_ignores_temporaries(tmp_path):
    assert checkpoint.available(tmp_path / "missing") == []
    for step in (5, 10, 100, 20):  # 20: resumed from 10, because 100 was found damaged
        checkpoint.save(tmp_path, step, {"a": jnp.int32(step)}, {}, keep=2)
    (tmp_path / ".tmp-200-1").mkdir()
    (tmp_path / "300.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoint.available(tmp_path) == [10, 20, 100]
    checkpoint.clean(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["10", "100", "20", "notes.txt"]


def test_an_existing_step_is_replaced(tmp_path):
    template = {"a": jax.ShapeDtypeStruct((), jnp.int32)}
    checkpoint.save(tmp_path, 1, {"a": jnp.int32(1)}, {})
    (tmp_path / "1" / "manifest.json").unlink()
    checkpoint.save(tmp_path, 1, {"a": jnp.int32(2)}, {})
    assert checkpoint.restore(tmp_path, template).state["a"] == 2
    assert os.listdir(tmp_path) == ["1"]
    os.rename(tmp_path / "1", tmp_path / ".old-1")  # killed between the renames of a replacement
    checkpoint.clean(tmp_path)
    assert checkpoint.restore(tmp_path, template).state["a"] == 2


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("large_bytes", [manifest.LARGE_BYTES, 0])
@pytest.mark.parametrize("damage", [flip, halve, Path.unlink])
def test_damage_to_any_file_is_found_or_harmless(tmp_path, monkeypatch, damage, large_bytes):
    """With ``large_bytes=0`` no file has a checksum: orbax reads it and the leaves must tell."""
    monkeypatch.setattr(manifest, "LARGE_BYTES", large_bytes)
    state = make_state()
    checkpoint.save(tmp_path / "good", 1, state, {"learning_rate": 1e-3})
    names = [path.relative_to(tmp_path / "good") for path in files_of(tmp_path / "good")]
    assert len(names) > 5
    found = 0
    for name in names:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        damage(tmp_path / "bad" / name)
        try:
            restored = checkpoint.restore(tmp_path / "bad", shapes(state))
        except checkpoint.CheckpointError as error:
            found += 1
            assert "damaged" in str(error) and "\n" not in str(error) and len(str(error)) < 500
        else:
            assert_same(restored.state, state)
            assert restored.meta == {"learning_rate": 1e-3}
    assert found == len(names) if large_bytes or damage is not flip else found >= 3


def test_flipped_data_that_orbax_does_not_notice_is_named(tmp_path, monkeypatch):
    """A replay of raw bytes, in a file too large for a checksum of its own."""
    monkeypatch.setattr(manifest, "LARGE_BYTES", 1 << 17)
    noise = np.random.default_rng(0).integers(0, 256, 1 << 19, np.uint8)
    state = {"replay": noise, "small": np.arange(3, dtype=np.int32)}
    checkpoint.save(tmp_path, 1, state, {})
    flip(max(files_of(tmp_path), key=lambda path: path.stat().st_size))
    with pytest.raises(checkpoint.CheckpointError, match="leaf replay: checksum differs"):
        checkpoint.restore(tmp_path, shapes(state))
    restored = checkpoint.restore(tmp_path, shapes(state["small"]), prefix="small")
    np.testing.assert_array_equal(restored.state, np.arange(3))


def test_a_changed_number_in_the_manifest_is_damage(tmp_path):
    checkpoint.save(tmp_path, 1, {}, {"learning_rate": 0.001})
    path = tmp_path / "1" / "manifest.json"
    path.write_text(path.read_text().replace("0.001", "0.002"))
    with pytest.raises(checkpoint.CheckpointError, match="manifest.json: checksum differs"):
        checkpoint.restore(tmp_path, {})


def test_falls_back_to_the_newest_intact_one(tmp_path, capfd):
    states = {step: make_state(step) for step in (1, 2, 3)}
    for step, state in states.items():
        checkpoint.save(tmp_path, step, state, {"step": step}, keep=3)
    (tmp_path / "3" / "manifest.json").unlink()
    flip(tmp_path / "2" / "state" / "manifest.ocdbt")
    reports: list[str] = []
    found = checkpoint.restore(tmp_path, shapes(states[1]), report=reports.append)
    assert found.iteration == 1 and found.meta == {"step": 1}
    assert_same(found.state, states[1])
    assert reports == [
        f"checkpoint {tmp_path}/3 is damaged (manifest.json: No such file or directory); trying 2",
        f"checkpoint {tmp_path}/2 is damaged "
        "(file state/manifest.ocdbt: checksum differs); trying 1",
    ]
    with pytest.raises(checkpoint.CheckpointError, match="2 is damaged"):
        checkpoint.restore(tmp_path, shapes(states[1]), iteration=2)
    (tmp_path / "1" / "manifest.json").write_text("{}")
    with pytest.raises(checkpoint.CheckpointError, match="1 is damaged.*no intact one is left"):
        checkpoint.restore(tmp_path, shapes(states[1]), report=reports.append)
    assert capfd.readouterr() == ("", "")


def test_absent_checkpoints_are_said_to_be_absent(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        checkpoint.restore(tmp_path, {})
    checkpoint.save(tmp_path, 7, {"a": jnp.zeros(())}, {})
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint 8 in .*; there are 7"):
        checkpoint.restore(tmp_path, {}, iteration=8)


@pytest.mark.parametrize(
    "leaf, complaint",
    [
        (jax.ShapeDtypeStruct((3,), jnp.bfloat16), r"x/w is float32\[3\], expected bfloat16\[3\]"),
        (jax.ShapeDtypeStruct((4,), jnp.float32), r"x/w is float32\[3\], expected float32\[4\]"),
        (shapes(jax.random.key(0)), r"x/w is float32\[3\], expected key<fry>\[2\]"),
        ({"v": jax.ShapeDtypeStruct((), jnp.int32)}, r"x/w/v is nothing, expected int32\[\]; x/w"),
        (None, r"x/w is float32\[3\], expected nothing"),
    ],
)
def test_a_template_that_differs_is_refused_by_name(tmp_path, leaf, complaint):
    checkpoint.save(tmp_path, 1, {"x": {"w": jnp.zeros((3,))}, "y": jnp.zeros(())}, {})
    template = {"x": {"w": leaf}, "y": jax.ShapeDtypeStruct((), jnp.float32)}
    with pytest.raises(checkpoint.CheckpointError, match=complaint):
        checkpoint.restore(tmp_path, template)


# --- full disks and sudden deaths


def assert_save_fails_and_leaves_the_old(folder: Path, state: Any, reason: str) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=f"200 could not be saved: {reason}"):
        checkpoint.save(folder, 200, state, {})
    assert os.listdir(folder) == ["100"]


def test_a_full_disk_is_reported_by_the_save_that_meets_it(tmp_path, capfd, caplog):
    state = {"noise": np.random.default_rng(0).random(200_000, np.float32)}
    old = {"noise": np.zeros(10, np.float32)}
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        checkpoint.save(tmp_path, 100, old, {})
        assert_save_fails_and_leaves_the_old(tmp_path, state, "No space left on device$")
        assert_same(checkpoint.restore(tmp_path, shapes(old)).state, old)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_a_file_that_may_not_grow_is_reported_by_that_save(tmp_path):
    state = {"noise": np.random.default_rng(0).random(200_000, np.float32)}
    checkpoint.save(tmp_path, 100, {"noise": np.zeros(10)}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert_save_fails_and_leaves_the_old(tmp_path, state, "File too large$")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("late", ["sync", "_publish", "read_arrays"])
def test_an_error_at_the_very_end_still_fails_the_save(tmp_path, monkeypatch, late):
    checkpoint.save(tmp_path, 100, {"a": np.zeros(10)}, {})

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, late, fail)
    assert_save_fails_and_leaves_the_old(tmp_path, {"a": np.ones(10)}, "No space left on device$")


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="JSON"):
        checkpoint.save(tmp_path, 1, {"a": np.zeros(10)}, {"config": object()})
    assert os.listdir(tmp_path) == []


SAVE_FOREVER = """
import sys, numpy as np
from jaxrl.record import checkpoint
for step in range(int(sys.argv[2]), 10**9):
    checkpoint.save(sys.argv[1], step, {"a": np.full((50_000,), step)}, {"step": step})
    print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
    """Six deaths at random moments: what was announced as saved is there, intact, each time."""
    template = {"a": jax.ShapeDtypeStruct((50_000,), np.dtype(int))}
    draw, step = random.Random(0), 0
    for _ in range(6):
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path), str(step)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            announced = int(child.stdout.readline())
            time.sleep(draw.uniform(0, 0.4))
            child.send_signal(signal.SIGKILL)
            announced = max([announced, *map(int, child.stdout.read().split())])
        checkpoint.clean(tmp_path)
        assert all(name.isdecimal() for name in os.listdir(tmp_path))
        found = checkpoint.restore(tmp_path, template, report=no_report)
        assert found.iteration in (announced, announced + 1)
        assert found.meta == {"step": found.iteration}
        assert (found.state["a"] == found.iteration).all()
        step = found.iteration
