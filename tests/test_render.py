"""Episodes drawn: true to Gymnasium and to evaluation, and never the end of a run."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import sys
import zlib
from pathlib import Path

import gymnasium
import imageio.v3 as iio
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from PIL import Image

import jaxrl.analysis
from jaxrl import PPO, OnPolicy, VectorEnv, _startup, cli, hyper, make, run
from jaxrl.analysis import Episode, render_episode, rollout
from jaxrl.analysis.__main__ import main
from jaxrl.analysis.frames import render_frames
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.record import Policy
from jaxrl.training.evaluate import EVALUATION_SEED, evaluate
from jaxrl.types import Box, Spec, Step

ASSETS = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
PICTURES = ["episode.gif", "episode.mp4", "episode.npz"]

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def gl(monkeypatch):
    """EGL, or no test: a machine may lack it."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    try:
        from mujoco.egl import GLContext

        GLContext(8, 8).free()
    except Exception as error:
        pytest.skip(f"no EGL on this machine: {error}")


def ppo(width, kind=PPO):
    """PPO, or an agent of its kind, with networks of one small layer."""
    networks = {
        "policy": AutoPolicy(hidden_dims=(width,)),
        "critic": ValueFunction(hidden_dims=(width,)),
    }
    return kind(**networks, update_epochs=1, num_minibatches=1)


class Constant:
    """An agent that acts the same everywhere."""

    def bind(self, spec):
        return self

    def act(self, state, carry, obs, key, mode):
        rows = jax.tree.leaves(obs)[0].shape[0]
        return jnp.broadcast_to(state, (rows, *state.shape)), carry, {}


@dataclasses.dataclass
class Sliding:
    """A cheetah on rails: it slides by the action; finite until it has come too far."""

    dt: float = 0.05
    far: float = 1e9
    name: str = "stub/sliding"
    cheap: bool = True
    mj_model = mujoco.MjModel.from_xml_path(str(ASSETS / "half_cheetah.xml"))
    spec = Spec({"state": Box(-np.inf, np.inf, (1,))}, Box(-1, 1, (1,)), 25)

    def reset(self, key):
        qpos = jnp.asarray(self.mj_model.qpos0, jnp.float32)
        return qpos, {"state": qpos[:1]}

    def step(self, key, state, action):
        qpos = state.at[0].add(action[0])
        reward = jnp.where(qpos[0] < self.far, action[0], jnp.nan)
        return qpos, Step({"state": qpos[:1]}, reward, jnp.array(False), jnp.array(False), {})

    def pose(self, state):
        return {"qpos": np.asarray(state)}


def constant(env, action):
    """A policy of one action."""
    return Policy(Constant(), jnp.asarray(action, jnp.float32), env.spec, "greedy")


def slide(env, steps=None):
    return rollout(env, constant(env, [0.1]), jax.random.key(0), steps)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- episodes


@pytest.fixture(scope="module")
def cart_pole(tmp_path_factory):
    """A short run on CartPole, with a time limit of its own."""
    agent = ppo(8)
    env = VectorEnv(make("gymnax/CartPole-v1"), 2, max_steps=30)
    folder = tmp_path_factory.mktemp("render") / "run"
    options = {"seeds": [3, 5], "eval_every": 32, "eval_episodes": 4, "devices": 1, "quiet": True}
    return run(OnPolicy(agent, env, num_steps=16), 32, run_dir=folder, **options)


@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_an_episode_is_that_of_the_evaluation(cart_pole, mode):
    env, policy = make("gymnax/CartPole-v1"), cart_pole.policy(1, mode)
    keys = jax.random.split(jax.random.key(EVALUATION_SEED), 4)
    alone = jax.jit(lambda key: evaluate(policy.agent, policy.state, env, key[None], mode, 30))
    for key in keys[:2]:
        played, length = rollout(env, policy, key), alone(key).lengths[0]
        assert played.length == played.episode_return == length
        assert played.end == ("truncated" if length == 30 else "terminated")
        assert played.obs.shape == (length + 1, 4) and len(played.states) == length + 1
        assert played.action.shape == (length,) and played.action.dtype == np.int32
    assert rollout(env, policy, keys[0], 3).length == 3


def test_an_episode_ends_where_it_stops_being_finite_or_is_cut():
    cut, lost, late = slide(Sliding(), 4), slide(Sliding(far=0.45)), slide(Sliding(), 99)
    assert [(e.length, e.end) for e in (cut, late)] == [(4, "cut"), (25, "truncated")]
    assert (lost.length, lost.end, len(lost.states)) == (4, "not finite", 5)
    np.testing.assert_allclose(lost.obs["state"][:, 0], np.arange(5) * 0.1, rtol=1e-6)
    assert lost.episode_return == pytest.approx(0.4)


# --- MuJoCo


def test_frames_are_gymnasiums_pixel_by_pixel(gl, monkeypatch):
    env = make("mjx/HalfCheetah-v5", engine="c")
    played = rollout(env, constant(env, jnp.full(6, 0.7)), jax.random.key(1), 30)
    frames = list(render_frames(env, played).frames)
    assert len(frames) == 31 and render_frames(env, played).seconds == pytest.approx(0.05)

    monkeypatch.setenv("MUJOCO_GL", "egl")
    theirs = gymnasium.make("HalfCheetah-v5", render_mode="rgb_array")
    theirs.reset(seed=0)
    for i in (0, 15, 30):
        qpos = env.pose(played.states[i])["qpos"]
        theirs.unwrapped.set_state(qpos, np.zeros(9))
        wanted = theirs.render()
        assert frames[i].shape == wanted.shape == (480, 480, 3) and wanted.std() > 30
        np.testing.assert_array_equal(frames[i], wanted)
    theirs.close()


def test_a_playground_task_is_filmed_with_its_mocap_target_by_a_camera_that_follows(gl):
    """A fish in three places and a target that MuJoCo moves by hand: states, no physics."""
    pytest.importorskip("mujoco_playground")
    env = make("playground/FishSwim")
    model = env.mj_model
    poses = [(0.0, (0.1, 0.1, 0.2)), (3.0, (3.1, 0.1, 0.2)), (3.0, (2.9, -0.1, 0.2))]
    states = []
    for x, target in poses:
        qpos = model.qpos0.astype(np.float32)
        qpos[0] = x
        mocap = {"mocap_pos": np.float32([target]), "mocap_quat": np.float32([[1, 0, 0, 0]])}
        states.append({"data": {"qpos": qpos, **mocap}})
    still = np.zeros(2, np.float32)
    episode = Episode(states, {}, np.zeros((2, model.nu)), still, "cut")
    drawn = render_frames(env, episode, (160, 160))
    assert drawn.seconds == pytest.approx(env.dt)
    places = []
    for frame in drawn.frames:
        red, green, blue = np.moveaxis(frame.astype(int), -1, 0)
        fins, ball = (green > 170) & (blue < 190), (red > 100) & (green < red / 1.5) & (blue > 60)
        places.append([np.argwhere(mask).mean(axis=0) for mask in (fins, ball)])
    (fish, target), (fish_after, target_after), (_, elsewhere) = places
    assert np.abs(fish_after - fish).max() < 3 and np.abs(target_after - target).max() < 3
    assert np.abs(elsewhere - target_after).max() > 10


def test_mp4_and_gif_last_as_long_as_the_episode(gl, tmp_path):
    env = Sliding(dt=0.008)  # 125 states a second: every third is drawn, 24 ms apart
    drawn = render_episode(env, slide(env), tmp_path, (65, 48))
    assert drawn.notes == [] and names(tmp_path) == PICTURES
    assert "25 steps (time limit), return 2.5:" in str(drawn)
    movie = iio.imread(tmp_path / "episode.mp4", plugin="pyav")
    assert movie.shape == (9, 48, 64, 3)  # H.264 has even sizes alone
    rate = iio.immeta(tmp_path / "episode.mp4", plugin="pyav")["fps"]
    assert rate == pytest.approx(1 / 0.024, rel=1e-3)

    shown, frames = [], []
    with Image.open(tmp_path / "episode.gif") as gif:
        assert gif.size == (65, 48)
        for i in range(gif.n_frames):
            gif.seek(i)
            shown.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB"), float))
    assert sum(shown) == 220 and set(shown) <= {20, 30}  # 9 frames of 24 ms
    assert np.abs(frames[0][:, :64] - movie[0]).mean() < 12 < np.abs(frames[0] - frames[-1]).mean()

    with np.load(tmp_path / "episode.npz") as arrays:
        assert {"obs.state", "action", "reward", "end", "qpos"} == set(arrays)
        np.testing.assert_allclose(arrays["qpos"][:, 0], np.arange(26) * 0.1, rtol=1e-5)
        np.testing.assert_array_equal(arrays["obs.state"], arrays["qpos"][:, :1])
        assert arrays["action"].shape == (25, 1) and arrays["reward"].sum() == pytest.approx(2.5)


def test_without_pyav_there_is_a_gif_and_a_line(gl, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    drawn = render_episode(Sliding(), slide(Sliding(), 3), tmp_path, (64, 48))
    assert drawn.notes == ["no MP4: it needs PyAV; pip install 'jaxrl[video]'"]
    assert names(tmp_path) == ["episode.gif", "episode.npz"]


@pytest.mark.parametrize("way", ["disable", "glfw", "egl"])
def test_without_gl_there_are_a_line_and_the_trajectory(way, tmp_path, monkeypatch, capfd, recwarn):
    if way == "egl":
        monkeypatch.delenv("MUJOCO_GL", raising=False)  # EGL is then chosen, and missing
        monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    else:
        monkeypatch.setenv("MUJOCO_GL", way)
        monkeypatch.delenv("DISPLAY", raising=False)
    for name in ("episode.gif", "episode.html"):
        (tmp_path / name).write_text("of an earlier episode")
    drawn = render_episode(Sliding(), slide(Sliding(), 3), tmp_path)
    assert len(drawn.notes) == 1 and "\n" not in drawn.notes[0]
    assert drawn.notes[0].startswith(f"no pictures: no GL works under MUJOCO_GL={way} (")
    assert names(tmp_path) == ["episode.npz"] and drawn.files == [tmp_path / "episode.npz"]
    assert np.load(tmp_path / "episode.npz")["qpos"].shape == (4, 9)
    assert capfd.readouterr() == ("", "") and not recwarn.list


# --- Brax, gymnax and others


@pytest.mark.parametrize("backend", ["spring", "positional", "generalized", "mjx"])
def test_brax_is_a_page_with_every_position_in_real_time(backend, tmp_path):
    env = make("brax/inverted_pendulum", backend=backend)
    state, obs = jax.device_get(jax.jit(env.reset)(jax.random.key(0)))
    end = {**state, "x": state["x"].replace(pos=state["x"].pos + np.array([0.5, 0, 0]))}
    played = Episode([state, end], np.stack([obs, obs]), np.zeros((1, 1)), np.ones(1), "cut")
    drawn = render_episode(env, played, tmp_path)
    assert drawn.notes == [] and names(tmp_path) == ["episode.html", "episode.npz"]
    packed = re.search(r'var system = "([^"]+)"', (tmp_path / "episode.html").read_text())
    system = json.loads(zlib.decompress(base64.b64decode(packed[1])))
    assert system["opt"]["timestep"] == pytest.approx(env.env.dt)
    first, second = (np.asarray(x["pos"]) for x in system["states"]["x"])
    np.testing.assert_allclose(first, state["x"].pos, atol=1e-6)
    np.testing.assert_allclose(second - first, np.tile([0.5, 0, 0], (2, 1)), atol=1e-6)
    assert np.load(tmp_path / "episode.npz")["qpos"].shape == (2, 2)


DRAWN = {  # task: an action, and seconds per frame
    "Pendulum-v1": ([1.0], 1 / 30),
    "Breakout-MinAtar": (1, 0.1),
    "FourRooms-misc": (0, 0.1),
    "PointRobot-misc": ([1.0, 1.0], 0.1),
}


@pytest.mark.parametrize("task", DRAWN)
def test_gymnax_tasks_are_drawn(task):
    import matplotlib.pyplot as plt

    env, (action, seconds) = make(f"gymnax/{task}"), DRAWN[task]
    policy = Policy(Constant(), jnp.asarray(action), env.spec, "greedy")
    video = render_frames(env, rollout(env, policy, jax.random.key(0), 4))
    frames = np.stack(list(video.frames))
    assert frames.dtype == np.uint8 and frames.shape[0] == 5 and frames.shape[-1] == 3
    assert video.seconds == pytest.approx(seconds)
    assert (frames[0] != frames[-1]).any() and not plt.get_fignums()


def test_cart_pole_stands_where_its_state_says():
    env = make("gymnax/CartPole-v1")
    state, _ = jax.device_get(jax.jit(env.reset)(jax.random.key(0)))
    states = [state.replace(x=np.float32(x), theta=np.float32(0)) for x in (-1.2, 1.2)]
    played = Episode(states, np.zeros((2, 4)), np.zeros(1), np.ones(1), "cut")
    left, right = render_frames(env, played).frames
    for frame, x in ((left, 150), (right, 450)):  # the track is 4.8 wide, the frame 600
        cart = np.flatnonzero(frame[305:312].sum(-1).max(0) == 0)  # black columns below the track
        assert cart.size and abs(cart.mean() - x) < 10


@pytest.mark.parametrize("task", ["gymnax/SimpleBandit-bsuite", "probe/action"])
def test_what_has_no_picture_is_told_and_kept_as_arrays(task, tmp_path):
    import matplotlib.pyplot as plt

    env = make(task)
    played = rollout(env, Policy(Constant(), jnp.int32(1), env.spec, "greedy"), jax.random.key(0))
    drawn = render_episode(env, played, tmp_path)
    (note,) = drawn.notes
    assert note.startswith("no pictures: ") and task.split("/")[1] in note
    assert names(tmp_path) == ["episode.npz"] and not plt.get_fignums()


def test_a_missing_pygame_is_named(monkeypatch, tmp_path, cart_pole):
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = make("gymnax/CartPole-v1")
    played = rollout(env, cart_pole.policy(0), jax.random.key(0), 2)
    assert "pip install 'jaxrl[video]'" in render_episode(env, played, tmp_path).notes[0]


# --- the command line


@pytest.fixture
def render(monkeypatch, tmp_path, capsys):
    """``python -m jaxrl.analysis render`` in this process: its code, and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_startup, "prepare", lambda: None)

    def call(*words):
        code = main(["render", *map(str, words)])
        return code, *capsys.readouterr()

    return call


def test_the_command_draws_into_the_runs_folder_and_again(render, cart_pole):
    before = names(cart_pole.run_dir)
    key = jax.random.split(jax.random.key(EVALUATION_SEED), 4)[2]
    played = rollout(make("gymnax/CartPole-v1"), cart_pole.policy(1), key)
    for _ in range(2):
        code, out, err = render(cart_pole.run_dir, "--seed", 5, "--episode", 2)
        assert (code, err) == (0, "") and f"return {played.episode_return:.1f}: " in out
        assert names(cart_pole.run_dir) == sorted([*before, *PICTURES])
    with np.load(cart_pole.run_dir / "episode.npz") as arrays:
        np.testing.assert_array_equal(arrays["action"], played.action)


def test_elsewhere_nothing_is_replaced(render, cart_pole, tmp_path):
    assert render(cart_pole.run_dir, "--out", "new/place", "--steps", 2)[0] == 0
    assert names(tmp_path / "new" / "place") == PICTURES
    kept = {name: (tmp_path / "new/place" / name).read_bytes() for name in PICTURES}
    code, out, err = render(cart_pole.run_dir, "--out", "new/place", "--seed", 5)
    assert (code, out) == (2, "") and "has an episode.mp4 already; remove it" in err
    assert kept == {name: (tmp_path / "new/place" / name).read_bytes() for name in PICTURES}


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        ("", 2, "required: RUN"),
        ("nowhere", 2, "nowhere is not a run folder"),
        ("RUN --seed 4", 2, "seed 4 is not in"),
        ("RUN --iteration 33", 1, "no checkpoint 33"),
        ("RUN --mode best", 2, "invalid choice: 'best'"),
        ("RUN --episode -1", 2, "episode is -1; it must be at least 0"),
        ("RUN --steps 0", 2, "steps is 0; it must be at least 1"),
        ("RUN --size 480", 2, "size is '480'; give width and height in pixels, as 640x480"),
        ("RUN --size 64x64", 2, "gymnax/CartPole-v1 is drawn without it"),
        ("RUN --out file", 2, "file is not a folder"),
    ],
)
def test_wrong_usage_is_one_line(render, cart_pole, tmp_path, words, code, reason):
    (tmp_path / "file").touch()
    found, out, err = render(*words.replace("RUN", str(cart_pole.run_dir)).split())
    assert (found, out, err.count("\n")) == (code, "", 1) and reason in err
    assert names(tmp_path) == ["file"]


def test_a_size_that_no_video_has_is_refused():
    for size in ((64, 0), (8192, 64)):
        with pytest.raises(jaxrl.UsageError, match="both must be 16 to 4096, as 640x480"):
            jaxrl.analysis.render.check_size(Sliding(), size)


# --- at the end of training


def small(folder, agent=None, env=None):
    """A run of nothing, and the options of a script that draws its episode."""
    env = VectorEnv(env or make("probe/action"), 2)
    trainer = OnPolicy(agent or ppo(4), env, num_steps=4)
    options = {"eval_every": 8, "eval_episodes": 1, "devices": 1, "quiet": True}
    result = run(trainer, 8, run_dir=folder, **options)
    return result, cli.Options(run_dir=str(folder), render=True, quiet=True)


def test_training_with_render_ends_with_the_episode(tmp_path, capsys):
    cli.report(*small(tmp_path / "run"))
    out, err = capsys.readouterr()
    assert (tmp_path / "run" / "episode.npz").exists()
    assert (out, err) == ("", "warning: no pictures: there is no picture of probe/action\n")


@hyper.dataclass
class Mine(PPO):
    """An agent that the library does not know."""


def test_own_agents_and_environments_are_drawn_at_the_end_of_training(tmp_path, capsys):
    env = make("probe/action")
    object.__setattr__(env, "name", "elsewhere/action")
    cli.report(*small(tmp_path / "run", ppo(4, Mine), env))
    assert (tmp_path / "run" / "episode.npz").exists()
    assert "no picture of elsewhere/action" in capsys.readouterr().err


def test_no_failure_to_draw_spoils_a_run(tmp_path, capsys, monkeypatch):
    def fail(folder, **options):
        raise RuntimeError("the renderer\nfell over")

    monkeypatch.setattr(jaxrl.analysis, "render_run", fail)
    result, options = small(tmp_path / "run")
    cli.report(result, options)
    assert result.summary["final_return"] and (tmp_path / "run" / "summary.json").exists()
    assert capsys.readouterr().err == "warning: no episode was drawn: the renderer fell over\n"
