"""Renderings of a trained policy: one episode as MP4 and GIF or as HTML, and always as arrays.

MuJoCo tasks, and the gymnax tasks that gymnax can draw, give ``episode.mp4`` and ``episode.gif``.
Brax gives an interactive ``episode.html`` (its viewer needs a network connection). Other
environments are not drawn. ``episode.npz`` is always written: ``obs[T+1, *O]``, ``action[T, *A]``,
``reward[T]``, ``end``, and for physics ``qpos[T+1, nq]``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl.analysis.episode import Episode, rollout
from jaxrl.analysis.frames import CannotDraw, Size, Video, is_mujoco, render_frames
from jaxrl.envs.brax import BraxEnv, quiet
from jaxrl.errors import UsageError
from jaxrl.record.policy import Which, load_policy_and_env
from jaxrl.require import require
from jaxrl.training.evaluate import EVALUATION_SEED
from jaxrl.types import Environment, Mode

NAMES = ("episode.mp4", "episode.gif", "episode.html", "episode.npz")
ENDS = {
    "terminated": "",
    "truncated": " (time limit)",
    "cut": " (cut off)",
    "not finite": " (the physics was not finite after that)",
}


class Rendering(NamedTuple):
    """The files of an episode; ``notes`` has a line for each file that could not be written."""

    episode: Episode
    files: list[Path]
    notes: list[str]

    def __repr__(self) -> str:
        return str(self)  # a notebook would show all arrays

    def __str__(self) -> str:
        names = ", ".join([str(self.files[0]), *(path.name for path in self.files[1:])])
        steps, how = self.episode.length, ENDS[self.episode.end]
        return (
            f"episode of {steps:,} steps{how}, return {self.episode.episode_return:,.1f}: {names}"
        )


def render_run(
    run_dir: str | Path,
    *,
    seed: int | None = None,
    config: int = 0,
    iteration: int | None = None,
    checkpoint: Which = "last",
    mode: Mode = "greedy",
    episode: int = 0,
    max_steps: int | None = None,
    size: Size | None = None,
    out: str | Path | None = None,
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> Rendering:
    """Draw an episode of a run's policy.

    The files are written to the run's folder, replacing those of an earlier call, or to ``out``,
    where nothing is replaced.

    Args:
        run_dir: the folder of the run.
        seed, config, iteration, checkpoint, mode, classes, env: the policy, as in ``load_policy``.
        episode: the index of the evaluation episode with the same start; the first is 0.
        max_steps: cut the episode off after this number of steps; default the run's time limit.
        size: width and height of MuJoCo's pictures in pixels; default the environment's own.
        out: an alternative folder; it is created if needed.

    Raises:
        UsageError: if ``run_dir`` is not a run folder or lacks the policy, a file in ``out`` would
            be replaced, or the size is not possible.
        CheckpointError: if no checkpoint is intact.
        OSError: if the files cannot be written.
    """
    require("episode", episode, 0, 2**31 - 1)
    require("steps", max_steps, 1)
    folder = _folder(Path(run_dir), out)
    policy, env = load_policy_and_env(
        run_dir, seed, mode, iteration, config, checkpoint=checkpoint, classes=classes, env=env
    )
    check_size(env, size)
    # The key that ``split`` returns at this index, for any number of keys.
    key = jax.random.fold_in(jax.random.key(EVALUATION_SEED), episode)
    return render_episode(env, rollout(env, policy, key, max_steps), folder, size)


def render_episode(
    env: Environment, episode: Episode, folder: str | Path, size: Size | None = None
) -> Rendering:
    """Draw an episode into a folder, replacing the files of an earlier call.

    A failure to draw is a note, not an error.

    Raises:
        OSError: if the files cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".episode-") as name:
        draft = Path(name)
        try:
            if isinstance(env, BraxEnv):
                _write_html(env, episode, draft / "episode.html")
            else:
                notes += _write_video(render_frames(env, episode, size), draft)
        except Exception as error:  # graphics stacks raise many types
            notes.append(f"no pictures: {_one_line(error)}")
            for path in draft.iterdir():  # unfinished files
                path.unlink()
        episode.save(draft / "episode.npz", _poses(env, episode))
        made = [name for name in NAMES if (draft / name).exists()]
        for name in made:
            os.replace(draft / name, folder / name)
    for name in set(NAMES) - set(made):  # from another episode
        (folder / name).unlink(missing_ok=True)
    return Rendering(episode, [folder / name for name in made], notes)


def parse_size(text: str) -> Size:
    """Parse ``"640x480"`` into width and height.

    Raises:
        UsageError: if the text has a different form.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"size is {text!r}; give width and height in pixels, as 640x480")
    return int(parts[0]), int(parts[1])


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, CannotDraw) else f"{type(error).__name__}: {text}"


def check_size(env: Environment, size: Size | None) -> None:
    """Raise UsageError unless the environment can be drawn at this size."""
    if size is None:
        return
    if not is_mujoco(env):
        raise UsageError(f"size is for MuJoCo's pictures only; {env.name} is drawn without it")
    if any(not 16 <= number <= 4096 for number in size):
        raise UsageError(f"size is {size[0]}x{size[1]}; both must be 16 to 4096, as 640x480")


def _folder(run_dir: Path, out: str | Path | None) -> Path:
    """Return the output folder. Only in the run's own folder is ``episode.*`` surely ours."""
    if out is None or Path(out).resolve() == run_dir.resolve():
        return run_dir
    taken = [name for name in NAMES if (Path(out) / name).exists()]
    if taken:
        raise UsageError(f"out {out} has an {taken[0]} already; remove it, or give another --out")
    if Path(out).exists() and not Path(out).is_dir():
        raise UsageError(f"out {out} is not a folder; give another --out")
    return Path(out)


def _poses(env: Any, episode: Episode) -> dict[str, np.ndarray]:
    """Return the arrays that describe the bodies over time, each ``[T + 1, ...]``."""
    if isinstance(env, BraxEnv):
        return {"qpos": np.stack([state["q"] for state in episode.states])}
    if not is_mujoco(env):
        return {}
    poses = [env.pose(state) for state in episode.states]
    return {name: np.stack([pose[name] for pose in poses]) for name in poses[0]}


def _write_html(env: BraxEnv, episode: Episode, path: Path) -> None:
    with quiet():
        from brax.io import html

    # The viewer uses the time of a physics step as the time between two states.
    system = env.env.sys.tree_replace({"opt.timestep": env.env.dt})
    states = [env.pipeline_state(state) for state in episode.states]
    path.write_text(html.render(system, states, height="100vh", colab=False))


def _write_video(video: Video, folder: Path) -> Sequence[str]:
    """Write ``episode.gif`` and, if PyAV is installed, ``episode.mp4``; return notes."""
    from PIL import Image

    with contextlib.ExitStack() as stack:
        stack.callback(video.frames.close)
        mp4: Any = None
        if importlib.util.find_spec("av") is not None:
            import imageio.v3 as iio

            mp4 = stack.enter_context(iio.imopen(folder / "episode.mp4", "w", plugin="pyav"))
            mp4.init_video_stream("libx264", fps=1 / video.seconds)
        pictures = []
        for frame in video.frames:
            pictures.append(Image.fromarray(frame).quantize())  # a third of the memory
            if mp4 is not None:
                height, width = (number // 2 * 2 for number in frame.shape[:2])  # H.264's
                mp4.write_frame(frame[:height, :width])
    # GIF counts in hundredths of a second; rounding cumulative times keeps the total in real time.
    times = np.round(np.arange(len(pictures) + 1) * video.seconds * 100)
    durations = (np.diff(times) * 10).astype(int).tolist()
    first, *rest = pictures
    first.save(
        folder / "episode.gif", save_all=True, append_images=rest, duration=durations, loop=0
    )
    if mp4 is None:
        return ["no MP4: it needs PyAV; pip install 'jaxrl[video]'"]
    return []
