"""Frames of an episode, drawn by Gymnasium's MuJoCo renderer or gymnax's own tools.

Nothing here needs a display. MuJoCo draws environments with ``mj_model`` and ``pose(state)``, which
returns arrays of MuJoCo's data on the host (``qpos[nq]``, optionally ``mocap_pos`` and
``mocap_quat``). Such an environment may also have ``dt``, the seconds per step, and ``camera``, the
arguments of Gymnasium's renderer. An environment with ``picture(state)``, which returns ``uint8[H,
W, 3]``, draws itself.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import math
import os
import platform
import warnings
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl.analysis.episode import Episode
from jaxrl.envs.gymnax import GymnaxEnv
from jaxrl.errors import RunError
from jaxrl.types import Environment

MAX_FPS = 50  # the limit of GIF players; for faster environments every n-th state is drawn
DEFAULT_FPS = 30  # for environments that do not define their step length
Size = tuple[int, int]  # width and height in pixels
Frames = Generator[np.ndarray, None, None]


class CannotDraw(RunError):
    """Pictures cannot be drawn; the message is one line."""


class Video(NamedTuple):
    """Frames ``uint8[H, W, 3]``, drawn lazily, and the seconds each is shown."""

    frames: Frames
    seconds: float


def is_mujoco(env: Environment) -> bool:
    """Return whether MuJoCo can draw the environment."""
    return hasattr(env, "mj_model") and hasattr(env, "pose")


def render_frames(env: Any, episode: Episode, size: Size | None = None) -> Video:
    """Render the episode in real time, or at gymnax's display speed for its tasks.

    Args:
        env: the environment of the episode.
        episode: the episode to draw.
        size: width and height of MuJoCo's pictures; default the environment's own, else 480.

    Raises:
        CannotDraw: if the environment cannot be drawn, or a package or GL is missing. Iterating
            over the frames may raise it too, since drawing begins with the first frame.
    """
    if is_mujoco(env):
        stride, seconds = _pace(getattr(env, "dt", 1 / DEFAULT_FPS))
        poses = [env.pose(state) for state in episode.states[::stride]]
        return Video(_mujoco_frames(env, poses, size), seconds)
    if hasattr(env, "picture"):
        pictures = (env.picture(state) for state in episode.states)
        return Video(pictures, 1 / DEFAULT_FPS)
    if not isinstance(env, GymnaxEnv):
        raise CannotDraw(f"there is no picture of {env.name}")

    from gymnax.visualize.vis_gym import SUPPORTED_GYM_ENVS

    if env.env.name in SUPPORTED_GYM_ENVS:
        return _classic(env, episode.states)
    return _gymnax(env, episode)


def _pace(dt: float) -> tuple[int, float]:
    """Return the frame stride, in states, and the seconds each frame is shown."""
    stride = max(math.ceil(1 / (MAX_FPS * dt) - 1e-6), 1)
    return stride, stride * dt


# --- MuJoCo


def _mujoco_frames(env: Any, poses: Sequence[dict[str, np.ndarray]], size: Size | None) -> Frames:
    import mujoco
    from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

    model = copy.copy(env.mj_model)
    camera = _camera(env, model)
    width, height = size or (camera.pop("width", 480), camera.pop("height", 480))
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    data = mujoco.MjData(model)
    renderer = MujocoRenderer(model, data, **camera | {"width": width, "height": height})
    try:
        for i, pose in enumerate(poses):
            for name, value in pose.items():
                getattr(data, name)[:] = value
            mujoco.mj_forward(model, data)
            with _gl(width, height) if i == 0 else contextlib.nullcontext():
                frame = renderer.render("rgb_array")
            yield np.ascontiguousarray(frame)
    finally:
        renderer.close()


def _camera(env: Any, model: Any) -> dict[str, Any]:
    """Return the arguments of Gymnasium's renderer.

    The default camera is the model's camera named "track", else its first camera, else a free one.
    """
    if not hasattr(env, "camera"):
        names = [model.camera(i).name for i in range(model.ncam)]
        tracking = names.index("track") if "track" in names else 0
        return {"camera_id": tracking if names else -1}
    given = {name: value for name, value in env.camera.items() if value is not None}
    if "default_camera_config" in given:
        given["default_cam_config"] = given.pop("default_camera_config")
    return given


@contextlib.contextmanager
def _gl(width: int, height: int) -> Iterator[None]:
    """Choose EGL, which needs no display, for the first picture, unless the user made a choice.

    The choice is undone afterwards: without EGL, child processes could not even import MuJoCo with
    ``MUJOCO_GL=egl``.

    Raises:
        CannotDraw: if there is no working GL.
    """
    chosen = os.environ.get("MUJOCO_GL")
    backend = chosen or ("egl" if platform.system() == "Linux" else None)
    try:
        if backend:
            os.environ["MUJOCO_GL"] = backend
        with warnings.catch_warnings(action="ignore"):  # GLFW warns before it raises
            if backend:
                # Without a context, Gymnasium's viewer would complain again when it is deleted.
                importlib.import_module(f"mujoco.{backend}").GLContext(width, height).free()
            yield
    except Exception as error:  # PyOpenGL and drivers raise many types
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        packages = "install EGL, on Debian by apt-get install libegl1 libgl1-mesa-dri"
        cure = "without MUJOCO_GL, EGL would be tried" if chosen else packages
        raise CannotDraw(f"no GL works under MUJOCO_GL={backend} ({reason}); {cure}") from error
    finally:
        if not chosen:
            os.environ.pop("MUJOCO_GL", None)


# --- gymnax


def _classic(env: GymnaxEnv, states: Sequence[Any]) -> Video:
    """Render classic control with Gymnasium's drawing code, after translating gymnax's states."""
    import gymnasium
    from gymnax.visualize.vis_gym import get_gym_state, set_gym_params

    # By default pygame opens sound and a screen and prints a greeting.
    for name in ("SDL_AUDIODRIVER", "SDL_VIDEODRIVER"):
        os.environ.setdefault(name, "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if importlib.util.find_spec("pygame") is None:
        raise CannotDraw("classic control is drawn by pygame; pip install 'jaxrl[video]'")
    task = env.env.name
    viewer = gymnasium.make(task, render_mode="rgb_array", disable_env_checker=True)
    inner: Any = viewer.unwrapped

    def frames() -> Frames:
        try:
            viewer.reset()
            set_gym_params(inner, task, env.params)
            for state in states:
                inner.state = get_gym_state(state, task)
                inner.last_u = np.asarray(getattr(state, "last_u", 0.0))  # Pendulum's arrow
                yield np.asarray(viewer.render())
        finally:
            viewer.close()

    return Video(frames(), 1 / viewer.metadata["render_fps"])


def _gymnax(env: GymnaxEnv, episode: Episode) -> Video:
    """Render grids and MinAtar with gymnax's visualizer, which shows the step and return."""
    import matplotlib.pyplot as plt
    from gymnax.visualize import Visualizer
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    returns = np.concatenate([[0.0], np.cumsum(episode.reward)])
    with plt.ioff():
        visualizer = Visualizer(env.env, env.params, episode.states, returns)
    canvas = FigureCanvasAgg(visualizer.fig)
    visualizer.init()
    if not hasattr(visualizer, "im"):
        plt.close(visualizer.fig)
        raise CannotDraw(f"gymnax does not draw {env.env.name}")

    def frames() -> Frames:
        try:
            for i in range(len(episode.states)):
                visualizer.update(i)
                canvas.draw()
                yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
        finally:
            plt.close(visualizer.fig)

    return Video(frames(), visualizer.interval / 1000)
