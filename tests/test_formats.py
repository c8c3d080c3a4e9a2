"""Readers of D4RL, Minari and OGBench, each against a plain loop over its rows."""

from __future__ import annotations

import io
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from jaxrl import UsageError
from jaxrl.data.formats import detect, load, reading, reference
from jaxrl.data.formats.ogbench import cache_of
from jaxrl.data.formats.spaces import dump
from jaxrl.types import Box, Discrete

BOUNDS = Box([-2.0, -1.0], [2.0, 3.0], (2,))


def same(found, expected):
    """Every field of a dataset, its extras included."""
    a, b = jax.tree.flatten_with_path(found)[0], jax.tree.flatten_with_path(expected)[0]
    assert [path for path, _ in a] == [path for path, _ in b]
    for (path, x), (_, y) in zip(a, b, strict=True):
        assert x.dtype == y.dtype, path
        np.testing.assert_array_equal(x, y, err_msg=str(path))


# --- D4RL ---------------------------------------------------------------------------------------


def flat(rows=60, seed=0):
    """Random rows; some end by a terminal, some by a time-out, one by both."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(4, rows, p=[0.7, 0.14, 0.14, 0.02])
    kind[7] = 3
    return {
        "observations": rng.normal(size=(rows, 3)),  # float64
        "actions": np.float32(rng.uniform(-1, 1, (rows, 2))),
        "rewards": rng.normal(size=rows),
        "terminals": np.isin(kind, (1, 3)),
        "timeouts": np.isin(kind, (2, 3)),
    }


def write_h5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["infos/qpos"] = np.zeros((3, 1))
    return path


def extraction(arrays):
    """D4RL's transitions, row by row; the next actions too, and where an episode is cut."""
    out = {name: [] for name in ("obs", "action", "reward", "next_obs", "dead", "next", "has")}
    episode, episodes = 0, []
    for i in range(len(arrays["rewards"]) - 1):
        dead, late = arrays["terminals"][i], arrays["timeouts"][i]
        if not late:
            episodes.append(episode)
            out["obs"].append(arrays["observations"][i])
            out["next_obs"].append(arrays["observations"][i + 1])
            out["action"].append(arrays["actions"][i])
            out["reward"].append(arrays["rewards"][i])
            out["dead"].append(dead)
            out["has"].append(not dead)
            out["next"].append(np.where(dead, 0.0, arrays["actions"][i + 1]))
        episode += dead or late
    last = [i + 1 == len(episodes) or episodes[i + 1] != e for i, e in enumerate(episodes)]
    return {name: np.array(rows) for name, rows in out.items()}, np.array(last)


@pytest.mark.parametrize("seed", range(4))
def test_d4rl_drops_time_outs_and_keeps_deaths(tmp_path, seed):
    arrays = flat(seed=seed)
    data = load(write_h5(tmp_path / "some.hdf5", arrays))
    data.check()
    expected, last = extraction(arrays)
    for name in ("obs", "action", "reward", "next_obs"):
        field = getattr(data, name)
        assert field.dtype == np.float32
        np.testing.assert_array_equal(field, np.float32(expected[name]))
    np.testing.assert_array_equal(data.terminated, expected["dead"])
    np.testing.assert_array_equal(data.truncated, last & ~expected["dead"])
    # The action of a dropped row is known, and with_next_action keeps it.
    followed = data.with_next_action().extras
    np.testing.assert_array_equal(followed["has_next_action"], expected["has"])
    np.testing.assert_array_equal(followed["next_action"], np.float32(expected["next"]))
    ends_by_time = followed["has_next_action"] & data.truncated
    assert ends_by_time.sum() > 2


def test_d4rl_without_timeouts_is_cut_where_observations_jump(tmp_path):
    arrays = flat()
    arrays["timeouts"] &= ~arrays["terminals"]
    follow = np.roll(arrays["observations"], -1, axis=0)
    follow[arrays["timeouts"] | arrays["terminals"]] += 0.5
    whole = load(write_h5(tmp_path / "whole.hdf5", arrays))
    del arrays["timeouts"]
    jumps = load(write_h5(tmp_path / "jumps.hdf5", {**arrays, "next_observations": follow}))
    same(jumps, whole)


def cut_by_jumps(folder, obs, follow):
    """The dataset of a file without time-outs, whose observations these are."""
    arrays = {**flat(len(obs)), "observations": obs, "next_observations": follow}
    del arrays["timeouts"]
    arrays["terminals"] = np.zeros(len(obs), bool)
    return load(write_h5(folder / "some.hdf5", arrays))


@pytest.mark.parametrize("magnitude", [1e-3, 50.0, 1e6])
@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize("kept", ["float32", "float64"])
def test_d4rl_jumps_are_judged_in_the_precision_of_the_observations(
    tmp_path, stored, kept, magnitude
):
    obs = magnitude * np.random.default_rng(0).normal(size=(40, 3))
    follow = np.roll(obs, -1, axis=0)
    follow[[11, 30], 1] += 0.01 * magnitude
    follow[:, 2] = np.nextafter(np.float32(follow[:, 2]), np.float32(np.inf))  # computed elsewhere
    data = cut_by_jumps(tmp_path, obs.astype(stored), follow.astype(kept))
    assert data.size == 37  # neither the last row nor the two jumps
    assert np.flatnonzero(data.truncated).tolist() == [10, 28, 36]
    np.testing.assert_array_equal(data.obs, np.delete(np.float32(obs), [11, 30, 39], axis=0))


def test_d4rl_jumps_of_small_numbers_are_longer_than_a_millionth(tmp_path):
    obs, follow = np.zeros((2, 8, 3))
    follow[1, 0], follow[3, 2] = 8e-7, 2e-6
    assert np.flatnonzero(cut_by_jumps(tmp_path, obs, follow).truncated).tolist() == [2, 5]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.int64])
def test_d4rl_jumps_of_integers_are_found(tmp_path, dtype):
    obs = (np.arange(24).reshape(8, 3) % 2).astype(dtype)
    follow = np.roll(obs, -1, axis=0)
    follow[2, 1] ^= 1
    assert np.flatnonzero(cut_by_jumps(tmp_path, obs, follow).truncated).tolist() == [1, 5]


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_d4rl_jumps_to_what_float32_does_not_hold_are_found(tmp_path, value):
    obs, follow = np.zeros((2, 8, 3))
    follow[2, 1] = value
    assert np.flatnonzero(cut_by_jumps(tmp_path, obs, follow).truncated).tolist() == [1, 5]


def test_actions_are_converted_from_the_files_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", 64)  # several blocks
    arrays = flat()
    agent = arrays["actions"]
    agent[3] = 1.00005  # rounding is clipped
    written = {**arrays, "actions": agent * [2.0, 2.0] + [0.0, 1.0]}
    path = write_h5(tmp_path / "bounds.hdf5", written)
    expected, _ = extraction({**arrays, "actions": np.minimum(agent, 1.0)})
    np.testing.assert_allclose(
        load(path, action_space=BOUNDS).action, expected["action"], atol=1e-6
    )
    index = {**arrays, "actions": np.arange(60) % 4}
    path = write_h5(tmp_path / "index.hdf5", index)
    data = load(path, action_space=Discrete(4))
    assert data.action.dtype == np.int32 and data.action.shape == (data.size,)
    with pytest.raises(UsageError, match="actions row 3 is 3; it must be in 0 .. 2"):
        load(path, action_space=Discrete(3))
    with pytest.raises(
        UsageError, match=r"actions is int32 of shape \(\) in each row, and the action .*"
    ):
        load(path, action_space=BOUNDS)


def put(arrays, name, row, value):
    arrays[name] = np.array(arrays[name])
    arrays[name][row] = value


D4RL_REFUSED = {
    "missing": (lambda x: x.pop("rewards"), "has no 'rewards'; it holds 'actions', .*"),
    "no cut": (lambda x: x.pop("timeouts"), "has neither 'timeouts' nor 'next_observations'; .*"),
    "short": (
        lambda x: x.update(actions=x["actions"][:-2]),
        "actions has 58 rows, and rewards 60; row 58 is in one of them alone",
    ),
    "shape": (lambda x: x.update(timeouts=np.zeros((60, 2))), r"timeouts has shape \(60, 2\); .*"),
    "NaN": (
        lambda x: put(x, "observations", (17, 1), np.nan),
        "observations row 17 is not finite.*",
    ),
    "overflow": (lambda x: put(x, "rewards", 4, 1e300), "rewards row 4 is not finite; .*"),
    "bounds": (
        lambda x: put(x, "actions", (11, 0), -1.01),
        r"actions row 11 is \[-1.0.*\]; it must be in \[-1, 1\]; if it has other bounds, give .*",
    ),
    "flag": (
        lambda x: x.update(terminals=np.arange(60) // 30 * 2),
        "terminals row 30 is 2; a flag must be 0 or 1",
    ),
    "images": (
        lambda x: x.update(observations=np.zeros((60, 4, 4, 3), np.uint8)),
        r"observations are images \(uint8\[4, 4, 3\]\); only vectors are read",
    ),
    "text": (
        lambda x: x.update(rewards=np.array([b"1"] * 60, object)),
        "rewards is object; it must be an array of numbers with a row each",
    ),
    "elsewhere": (
        lambda x: x.update(rewards=h5py.ExternalLink("/etc/passwd", "/rewards")),
        "rewards is a link; only arrays in the file itself are read",
    ),
    "all cut": (
        lambda x: x.update(timeouts=np.ones(60, bool)),
        "timeouts is 1 in every row; no transition is left",
    ),
}


@pytest.mark.parametrize("name", D4RL_REFUSED)
def test_malformed_d4rl_is_refused_with_key_and_row(tmp_path, name):
    arrays = flat()
    change, message = D4RL_REFUSED[name]
    change(arrays)
    with pytest.raises(UsageError, match=message) as caught:
        load(write_h5(tmp_path / "bad.hdf5", arrays))
    assert "\n" not in str(caught.value)


def test_what_is_no_dataset_is_refused(tmp_path):
    (tmp_path / "some.txt").write_text("observations")
    truncated = write_h5(tmp_path / "cut.hdf5", flat()).read_bytes()[:900]
    (tmp_path / "cut.hdf5").write_bytes(truncated)
    for path, message in {
        tmp_path / "some.txt": "some.txt is of no known format; .*",
        tmp_path / "nowhere": "nowhere cannot be read: No such file or directory",
        tmp_path: "holds neither metadata.json .* nor .npz files .*",
        tmp_path / "cut.hdf5": "cut.hdf5 cannot be read as HDF5: .*",
    }.items():
        with pytest.raises(UsageError, match=message):
            load(path)
    with pytest.raises(
        UsageError, match="rewards is for OGBench's files, and .* is d4rl; leave .*"
    ):
        load(write_h5(tmp_path / "hopper_medium-v2.hdf5", flat()), rewards=[0.0])
    assert reference(tmp_path / "hopper_medium-v2.hdf5").expert == 3234.3


# --- Minari -------------------------------------------------------------------------------------

SPACES = {
    "type": "Dict",
    "subspaces": {
        "place": dump(Box(-9.0, 9.0, (2,), np.float64)),
        "parts": {"type": "Tuple", "subspaces": [dump(Box(-9.0, 9.0, (1,)))] * 2},
    },
}


def episodes(seed=0):
    """Twelve episodes, so that their order by name is another; lengths from 1 to 5."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(12):
        rows = 1 + number % 5
        ends = np.arange(rows) == rows - 1
        made.append(
            {
                "observations/place": rng.normal(size=(rows + 1, 2)),
                "observations/parts/_index_0": np.float32(rng.normal(size=(rows + 1, 1))),
                "observations/parts/_index_1": np.float32(rng.normal(size=(rows + 1, 1))),
                "actions": np.float32(rng.uniform([-2, -1], [2, 3], (rows, 2))),
                "rewards": rng.normal(size=rows),
                "terminations": ends & (number % 3 > 0),
                "truncations": ends & (number % 3 < 2),  # every third has both flags
            }
        )
    return made


def write_folder(folder, made, **described):
    folder.mkdir(parents=True)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for number, arrays in enumerate(made):
            for name, array in arrays.items():
                file[f"episode_{number}/{name}"] = array
    spaces = {"observation_space": json.dumps(SPACES), "action_space": json.dumps(dump(BOUNDS))}
    text = json.dumps({"data_format": "hdf5", **spaces, **described})
    (folder / "metadata.json").write_text(text)
    return folder


def test_minari_keeps_every_transition(tmp_path):
    made = episodes()
    folder = write_folder(tmp_path / "some" / "data", made, ref_min_score=-3, ref_max_score=9.5)
    data = load(tmp_path / "some")  # the folder above will do, and so does the file
    same(load(folder), data)
    same(load(folder / "main_data.hdf5"), data)
    data.check()
    assert data.num_episodes == 12 and list(data.lengths()) == [1 + i % 5 for i in range(12)]
    first = 0
    for arrays in made:
        rows = slice(first, first + len(arrays["rewards"]))
        for key, name in (("place", "place"), ("parts/1", "parts/_index_1")):
            values = np.float32(arrays[f"observations/{name}"])
            np.testing.assert_array_equal(data.obs[key][rows], values[:-1])
            np.testing.assert_array_equal(data.next_obs[key][rows], values[1:])
        scaled = (arrays["actions"] - [0, 1]) / 2
        np.testing.assert_allclose(data.action[rows], scaled, atol=1e-6)
        np.testing.assert_array_equal(data.reward[rows], np.float32(arrays["rewards"]))
        np.testing.assert_array_equal(data.terminated[rows], arrays["terminations"])
        cut = arrays["truncations"] & ~arrays["terminations"]
        np.testing.assert_array_equal(data.truncated[rows], cut)
        first = rows.stop
    assert sorted(data.obs) == ["parts/0", "parts/1", "place"]
    assert reference(folder) == (-3.0, 9.5, "the dataset's metadata")


def test_minari_without_spaces_is_read_by_its_layout(tmp_path):
    whole = load(write_folder(tmp_path / "whole", episodes()))
    bare = write_folder(tmp_path / "bare", episodes())
    (bare / "metadata.json").write_text('{"env_spec": "{\\"id\\": \\"os:system\\"}"}')
    with pytest.raises(UsageError, match="action_space is missing; give action_space=.*"):
        load(bare)
    same(load(bare, action_space=BOUNDS), whole)


def test_minari_discrete_actions_begin_at_zero(tmp_path):
    made = [{**each, "actions": np.arange(len(each["rewards"])) % 3 + 5} for each in episodes()]
    space = json.dumps({"type": "Discrete", "n": 3, "start": 5})
    data = load(write_folder(tmp_path / "some", made, action_space=space))
    expected = np.concatenate([each["actions"] - 5 for each in made])
    np.testing.assert_array_equal(data.action, expected)
    space = json.dumps({"type": "Discrete", "n": 2, "start": 5})
    with pytest.raises(UsageError, match="episode_2/actions row 2 is 2; it must be in 0 .. 1"):
        load(write_folder(tmp_path / "few", made, action_space=space))


IMAGE = json.dumps(dump(Box(0, 255, (8, 8, 3), np.uint8)))
MINARI_REFUSED = {
    "image": ({"observation_space": IMAGE}, {}, r"is images \(uint8\[8, 8, 3\]\); only vectors .*"),
    "text": ({"observation_space": '{"type": "Text"}'}, {}, "observation_space is Text; only .*"),
    "multi": (
        {"action_space": '{"type": "MultiDiscrete"}'},
        {},
        "is MultiDiscrete; only Box and .*",
    ),
    "no JSON": ({"action_space": "__import__('os')"}, {}, "action_space is no space; it must .*"),
    "format": ({"data_format": "lance"}, {}, "data_format is 'lance'; hdf5 and arrow are read"),
    "missing": ({}, {"actions": None}, "episode_8 has no 'actions'; .*"),
    "group": ({}, {"actions": None, "actions/x": np.ones(4)}, "episode_8/actions is a group; .*"),
    "array": (
        {},
        {
            "observations/parts/_index_0": None,
            "observations/parts/_index_1": None,
            "observations/parts": np.zeros((5, 2)),
        },
        "episode_8/observations/parts is an array; it must be a group of arrays",
    ),
    "elsewhere": (
        {},
        {"rewards": h5py.SoftLink("/episode_0/rewards")},
        "episode_8/rewards is a link; only arrays in the file itself are read",
    ),
    "objects": (
        {},
        {"rewards": np.array([b"1"] * 4, object)},
        "episode_8/rewards is object; it must be an array of numbers with a row each",
    ),
    "short": (
        {},
        {"observations/place": np.zeros((4, 2))},
        r"episode_8/observations/place has shape \(4, 2\); it must be \(5, 2\), .*",
    ),
    "kind": (
        {},
        {"observations/place": np.zeros((5, 2), np.int32)},
        "episode_8/observations/place is int32, and its space float64; .*",
    ),
    "flags": (
        {},
        {"truncations": np.array([0, 1, 0, 1], bool)},
        "episode_8/truncations row 1 is True; only the last row, 3, may end the episode",
    ),
    "NaN": (
        {},
        {"observations/place": np.append(np.zeros((4, 2)), [[0, np.nan]], axis=0)},
        "episode_8/observations/place row 4 is not finite; .*",
    ),
    "reward": ({}, {"rewards": np.array([0, 0, np.inf, 0])}, "episode_8/rewards row 2 is not .*"),
    "bounds": (
        {},
        {"actions": np.array([[0, 0], [0, 3.1], [0, 0], [0, 0]])},
        r"episode_8/actions row 1 is \[0.0, 3.09.*\]; it must be in the action space, .*",
    ),
}


@pytest.mark.parametrize("name", MINARI_REFUSED)
def test_malformed_minari_is_refused_with_episode_and_row(tmp_path, name):
    described, arrays, message = MINARI_REFUSED[name]
    made = episodes()
    made[8] = {k: v for k, v in {**made[8], **arrays}.items() if v is not None}
    with pytest.raises(UsageError, match=message) as caught:
        load(write_folder(tmp_path / "bad", made, **described))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["arrow", "parquet"])
def test_minaris_arrow_layout_equals_its_hdf5(tmp_path, layout):
    """Written by the package."""
    pytest.importorskip("pyarrow")
    made = episodes()
    folder = write_folder(tmp_path / "hdf5", made)
    storage_module = pytest.importorskip("minari.dataset.minari_storage")
    serialization = pytest.importorskip("minari.serialization")
    from minari.data_collector import EpisodeBuffer

    target = tmp_path / layout
    space = serialization.deserialize_space(json.dumps(SPACES))
    action = serialization.deserialize_space(json.dumps(dump(BOUNDS)))
    storage = storage_module.MinariStorage.new(target, space, action, data_format=layout)
    for each in made:
        parts = tuple(each[f"observations/parts/_index_{i}"] for i in (0, 1))
        flat = {k: each[k] for k in ("actions", "rewards", "terminations", "truncations")}
        obs = {"place": each["observations/place"], "parts": parts}
        storage.update_episodes([EpisodeBuffer(observations=obs, infos={}, **flat)])
    same(load(target), load(folder))


@pytest.mark.parametrize("layout", ["arrow", "parquet"])
def test_minaris_arrow_layout_is_refused_without_pyarrow(tmp_path, monkeypatch, layout):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    folder = write_folder(tmp_path / "some", episodes())
    described = {"data_format": layout, "action_space": json.dumps(dump(BOUNDS))}
    (folder / "metadata.json").write_text(json.dumps(described))
    with pytest.raises(UsageError, match="layout, which needs pyarrow; pip install") as error:
        load(folder)
    assert "\n" not in str(error.value)


# --- OGBench ------------------------------------------------------------------------------------


def trajectories(lengths=(3, 1, 4), seed=0):
    """``T+1`` rows each; the last action of each is out of bounds, as it means nothing."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths) + len(lengths)
    ends = np.zeros(rows, np.float32)
    ends[np.cumsum(np.array(lengths) + 1) - 1] = 1
    action = np.float32(rng.uniform(-1, 1, (rows, 2)))
    action[ends == 1] = 7.0
    obs = rng.normal(size=(rows, 3))
    return {"observations": obs, "actions": action, "terminals": ends, "qpos": obs[:, :2]}


def expected_of(parts, rewards, masks):
    """The transitions row by row: obs, action, reward, next_obs, terminated, truncated."""
    rows, at = [], 0
    for arrays in parts:
        for i in range(len(arrays["terminals"]) - 1):
            if arrays["terminals"][i]:
                continue
            obs = np.float32(arrays["observations"])
            dead, last = masks[at] == 0, arrays["terminals"][i + 1] == 1
            rows.append((obs[i], arrays["actions"][i], np.float32(rewards[at]), obs[i + 1],
                         dead, last and not dead))  # fmt: skip
            at += 1
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_ogbench_with_rewards_of_the_users(tmp_path):
    arrays = trajectories()
    path = tmp_path / "some-v0.npz"
    np.savez(path, **arrays)
    rewards, masks = np.arange(8.0), np.array([1, 1, 1, 1, 0, 1, 1, 1])
    data = load(path, rewards=rewards, masks=masks)
    data.check()
    for found, column in zip(data[:6], expected_of([arrays], rewards, masks), strict=True):
        np.testing.assert_array_equal(found, column)
    # Nothing terminates without masks: ``terminals`` is never a death.
    alive = load(path, rewards=rewards)
    assert not alive.terminated.any() and list(alive.lengths()) == [3, 1, 4]
    # The same from arrays with a value for every row, and from the file's own.
    inner = arrays["terminals"] == 0
    whole = np.where(inner, 0.0, -9.0)
    whole[inner] = rewards
    same(load(path, rewards=whole), alive)
    mask_rows = np.zeros(len(inner))
    mask_rows[inner] = masks
    np.savez(tmp_path / "own.npz", **arrays, rewards=whole, masks=mask_rows)
    same(load(tmp_path / "own.npz"), data)


def test_ogbench_slices_are_one_dataset(tmp_path):
    parts = [trajectories(seed=seed) for seed in range(11)]
    for number, arrays in enumerate(parts):
        np.savez_compressed(tmp_path / f"some-{number}.npz", **arrays)
    np.savez(tmp_path / "some-0-val.npz", **trajectories(seed=99))
    rewards = np.arange(8.0 * 11)
    data = load(tmp_path, rewards=rewards)
    expected = expected_of(parts, rewards, np.ones(88))
    for found, column in zip(data[:6], expected, strict=True):
        np.testing.assert_array_equal(found, column)


def test_ogbench_rewards_of_a_task_are_kept_beside_the_file(tmp_path, monkeypatch):
    arrays = trajectories()
    path = tmp_path / "pointmaze-medium-navigate-v0.npz"
    np.savez(path, **arrays)
    task, calls = "pointmaze-medium-navigate-singletask-task2-v0", []

    def relabel_dataset(name, env, dataset):
        calls.append((name, dataset["qpos"].shape))
        dataset["rewards"] = np.float32(dataset["qpos"][:, 0])
        dataset["masks"] = np.float32(dataset["qpos"][:, 0] < 1.0)

    package, tools = types.ModuleType("ogbench"), types.ModuleType("ogbench.relabel_utils")
    env = types.SimpleNamespace(close=lambda: None)
    package.make_env_and_datasets = lambda name, env_only: env
    package.relabel_utils, tools.relabel_dataset = tools, relabel_dataset
    monkeypatch.setitem(sys.modules, "ogbench", package)
    monkeypatch.setitem(sys.modules, "ogbench.relabel_utils", tools)
    data = load(path, task=task)
    qpos = np.float32(arrays["qpos"][arrays["terminals"] == 0, 0])
    np.testing.assert_array_equal(data.reward, qpos)
    np.testing.assert_array_equal(data.terminated, qpos >= 1.0)
    same(load(path, task=task), data)
    assert calls == [("pointmaze-medium-singletask-task2-v0", (8, 2))]
    assert cache_of(path, task).is_file()
    (tmp_path / "some").mkdir()
    monkeypatch.chdir(tmp_path / "some")
    for inside in (Path("."), Path("../some")):
        assert cache_of(inside, task) == tmp_path / f"some.{task}.rewards"
    np.savez(path, **trajectories(seed=1))  # other data of the same name
    load(path, task=task)
    assert len(calls) == 2

    for name in ("ogbench", "ogbench.relabel_utils"):
        monkeypatch.setitem(sys.modules, name, None)
    np.savez(path, **trajectories(seed=2))
    with pytest.raises(
        UsageError, match="by the package ogbench; pip install 'jaxrl.ogbench.', .*"
    ):
        load(path, task=task)
    with pytest.raises(UsageError, match="task is 'maze'; give one of OGBench's single tasks, .*"):
        load(path, task="maze")


def test_ogbench_equals_the_package(tmp_path):
    utils = pytest.importorskip("ogbench.utils")
    arrays = trajectories()
    path = tmp_path / "some.npz"
    np.savez(path, **arrays)
    data, theirs = load(path, rewards=np.zeros(8)), utils.load_dataset(str(path))
    np.testing.assert_array_equal(data.obs, theirs["observations"])
    np.testing.assert_array_equal(data.next_obs, theirs["next_observations"])
    np.testing.assert_array_equal(data.action, theirs["actions"])
    np.testing.assert_array_equal(data.truncated, theirs["terminals"] == 1)


class Bomb:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return (open, ("unpickled", "w"))


OGBENCH_REFUSED = {
    "missing": (lambda x: x.pop("terminals"), {}, "has no 'terminals'; it holds .*"),
    "no rewards": (
        lambda x: None,
        {"rewards": None},
        "has no rewards; give rewards=..., or task=.*",
    ),
    "count": (
        lambda x: None,
        {"rewards": np.zeros(9)},
        r"rewards is float64\[9\]; .* \[8\], .* \[11\].*",
    ),
    "reward": (
        lambda x: None,
        {"rewards": np.full(8, np.nan)},
        "rewards at transition 0 is not .*",
    ),
    "half a mask": (
        lambda x: None,
        {"masks": np.array([1, 1, 0, 1, 0.5, 1, 1, 1])},
        "masks at transition 4 is 0.5; a flag must be 0 or 1",
    ),
    "masks alone": (lambda x: None, {"rewards": None, "masks": np.ones(8)}, "masks are given .*"),
    "short": (
        lambda x: x.update(actions=x["actions"][:9]),
        {},
        "actions has 9 rows, and .* row 9 .*",
    ),
    "open end": (
        lambda x: put(x, "terminals", -1, 0),
        {},
        "terminals row 10 is 0; the last row .*",
    ),
    "NaN": (
        lambda x: put(x, "observations", (6, 0), np.nan),
        {},
        "observations row 6 is not finite.*",
    ),
    "bounds": (lambda x: put(x, "actions", (2, 1), 1.2), {}, r"actions row 2 is \[.*\]; .*"),
    "images": (
        lambda x: x.update(observations=np.zeros((11, 4, 4, 3), np.uint8)),
        {},
        r"observations are images \(uint8\[4, 4, 3\]\); only vectors are read",
    ),
    "objects": (
        lambda x: x.update(actions=np.array([Bomb()] * 11, object)),
        {},
        "actions cannot be read as plain numbers: Object arrays cannot be loaded .*",
    ),
}


@pytest.mark.parametrize("name", OGBENCH_REFUSED)
def test_malformed_ogbench_is_refused_with_key_and_row(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    arrays = trajectories()
    change, options, message = OGBENCH_REFUSED[name]
    change(arrays)
    np.savez("bad.npz", **arrays)
    with pytest.raises(UsageError, match=message) as caught:
        load("bad.npz", **{"rewards": np.zeros(8), **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "unpickled").exists()


def test_a_pickle_in_an_archive_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key in ("observations", "actions", "terminals"):
            archive.writestr(f"{key}.npy", pickle.dumps(Bomb()))
    (tmp_path / "bad.npz").write_bytes(buffer.getvalue())
    assert detect("bad.npz") == "ogbench"
    with pytest.raises(UsageError, match="bad.npz: observations .*"):
        load("bad.npz", rewards=[0.0])
    assert not (tmp_path / "unpickled").exists()
