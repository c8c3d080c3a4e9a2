"""The parts shared by Gymnasium's MuJoCo tasks, written once for all engines.

A task computes starts, observations, rewards and terminations from *readings*: the fields of
MuJoCo's data that it names in ``reads``, with any leading axes. These are JAX arrays with MJX and
float64 numpy arrays with the native engine, so the same code serves both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.errors import UsageError
from jaxrl.types import Array, Key

Reading = Any  # a JAX or numpy array

_MOST = 1e10  # MuJoCo's mjMAXVAL
MOVING = ("qpos", "qvel", "qacc_warmstart")  # show whether the physics diverged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """The arguments common to all tasks; subclasses set defaults and add their own.

    All have the names and defaults of Gymnasium's v5 classes; ``V4`` holds the defaults that differ
    in v4. The camera arguments are only used for rendering.

    Attributes:
        xml_file: one of Gymnasium's models, or a path that begins with ``.``, ``/`` or ``~``.
        frame_skip: physics steps per environment step.
        version: the version of Gymnasium's class, 4 or 5.
    """

    xml_file: str
    frame_skip: int
    default_camera_config: dict[str, Any] | None = None
    width: int = 480
    height: int = 480
    camera_id: int | None = None
    camera_name: str | None = None
    max_geom: int = 1000
    visual_options: dict[int, bool] | None = None
    version: int = 5  # from the task's name
    legacy_margin: bool = False  # from the option ``margin``

    READS: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    V4: ClassVar[Mapping[str, Any]] = {}
    MAX_STEPS: ClassVar[int] = 1000
    ITERATIONS: ClassVar[tuple[int, int]] = (4, 8)  # MJX's default budget: Newton, line search

    @functools.cached_property
    def model(self) -> Any:
        """The ``mujoco.MjModel``, read from the XML file.

        Raises:
            UsageError: the file is missing or not a model, or the model has delays or plugins.
        """
        import mujoco

        path = _path(self.xml_file)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "missing"
            raise UsageError(f"xml_file is {self.xml_file!r}, but {path} is {kind}")
        try:
            with old_xml_unsaid():
                model = mujoco.MjModel.from_xml_path(str(path))
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"xml_file is {self.xml_file!r}: {reason}") from error
        if getattr(model, "nhistory", 0) or model.npluginstate:
            raise UsageError(
                f"xml_file is {self.xml_file!r}, which has delays (nsample) or plugins, whose "
                "state the engines do not keep; leave them out"
            )
        if self.legacy_margin:
            # MuJoCo 3.5 adds the margins of two geoms; it used to take the larger.
            model.geom_margin *= 0.5
        return model

    @property
    def dt(self) -> float:
        """Seconds per environment step."""
        return float(self.model.opt.timestep) * self.frame_skip

    @property
    def camera(self) -> dict[str, Any]:
        """The camera's arguments, as Gymnasium's renderer takes them."""
        names = ("default_camera_config", "width", "height", "camera_id", "camera_name")
        return {name: getattr(self, name) for name in (*names, "max_geom", "visual_options")}

    # What a task defines

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of MuJoCo's data, or of its model, that readings hold. Default ``READS``."""
        return self.READS

    def start(self, key: Key) -> tuple[Array, Array]:
        """Draw ``qpos[nq], qvel[nv]`` of a first state."""
        raise AssertionError("a task defines its starts")

    def position(self, d: Reading) -> Any:
        """``[..., P]``: what the next reward needs from the previous state. Default none."""
        return d.qpos[..., :0]

    def observe(self, d: Reading) -> Any:
        """The observation ``[..., O]``."""
        raise AssertionError("a task defines its observations")

    def reward(self, d: Reading, before: Any, action: Any) -> Any:
        """The reward ``[...]`` of ``action[..., A]``, which led from ``before[..., P]`` to here."""
        raise AssertionError("a task defines its rewards")

    def terminated(self, d: Reading) -> Any:
        """Whether the episode terminates: ``bool[...]``. Default never."""
        return d.qpos[..., 0] != d.qpos[..., 0]

    # Starts

    def init(self) -> tuple[Array, Array]:
        """The model's own ``qpos[nq], qvel[nv]``."""
        return jnp.asarray(self.model.qpos0), jnp.zeros(self.model.nv)

    def uniform_start(self, key: Key, scale: float) -> tuple[Array, Array]:
        """The model's own state with uniform noise in ``[-scale, scale]``."""
        qpos_key, qvel_key = jax.random.split(key)
        qpos, qvel = self.init()
        return (
            qpos + jax.random.uniform(qpos_key, qpos.shape, minval=-scale, maxval=scale),
            qvel + jax.random.uniform(qvel_key, qvel.shape, minval=-scale, maxval=scale),
        )

    def normal_start(self, key: Key, scale: float) -> tuple[Array, Array]:
        """Uniform noise on positions as in ``uniform_start``; normal noise on velocities."""
        qpos_key, qvel_key = jax.random.split(key)
        qpos, qvel = self.init()
        return (
            qpos + jax.random.uniform(qpos_key, qpos.shape, minval=-scale, maxval=scale),
            qvel + scale * jax.random.normal(qvel_key, qvel.shape),
        )

    def body(self, name: str | int) -> int:
        """The index of a body.

        Raises:
            UsageError: the model has no such body.
        """
        try:
            return int(self.model.body(name).id)
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(f"{self.xml_file}: no body {name!r}: {error}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Healthy(Task):
    """A task that rewards being healthy, and terminates otherwise."""

    healthy_reward: float = 1.0
    terminate_when_unhealthy: bool = True

    def is_healthy(self, d: Reading) -> Any:
        """Whether the state is healthy: ``bool[...]``."""
        raise AssertionError("a task defines what is healthy")

    def bonus(self, d: Reading) -> Any:
        """``healthy_reward`` for a healthy state, else 0.

        In v4, any state earns it if unhealthy states end the episode, so the last step does too.
        """
        if self.version == 4 and self.terminate_when_unhealthy:
            return self.healthy_reward
        return self.is_healthy(d) * self.healthy_reward

    def terminated(self, d: Reading) -> Any:
        return ~self.is_healthy(d) & self.terminate_when_unhealthy


def of_version(version: int, default: Any) -> Any:
    """A field that is an argument of only one version of Gymnasium's class."""
    return dataclasses.field(default=default, metadata={"version": version})


@contextlib.contextmanager
def old_xml_unsaid() -> Iterator[None]:
    """Raise MuJoCo's warnings in Python, except about deprecated XML, which is not the user's.

    Otherwise MuJoCo prints them and writes a log file into the working directory.
    """
    import mujoco

    def report(text: str) -> None:
        if "deprecated" not in text:
            warnings.warn(text, stacklevel=2)

    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(report)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(handler)


def numbers(x: Any) -> Any:
    """The functions for this kind of array: ``numpy`` or ``jax.numpy``."""
    return np if isinstance(x, np.ndarray) else jnp


def square_sum(x: Any) -> Any:
    """``sum x^2`` over the last axis."""
    return numbers(x).sum(numbers(x).square(x), axis=-1)


def norm(x: Any) -> Any:
    """``|x|`` over the last axis, whose gradient at 0 is 0."""
    if isinstance(x, np.ndarray):
        return np.linalg.norm(x, axis=-1)
    squares = jnp.sum(jnp.square(x), axis=-1)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def between(low: float, x: Any, high: float) -> Any:
    """``low < x < high``."""
    return (low < x) & (x < high)


def diverged(*states: Any) -> Any:
    """Whether any number of ``states[..., n]`` has left the range in which MuJoCo simulates.

    MuJoCo, and so Gymnasium, would then return to the model's first state. ``bool[...]``
    """
    within = (numbers(x).abs(x) <= _MOST for x in states)  # false for NaN
    return ~join(*within).all(axis=-1)


def flat(x: Any) -> Any:
    """Merge the last two axes."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def join(*parts: Any) -> Any:
    """Concatenate vectors along the last axis."""
    return numbers(parts[0]).concatenate(parts, axis=-1)


def _path(xml_file: str) -> Path:
    if xml_file.startswith(("~", ".", "/")):
        return Path(xml_file).expanduser()
    import gymnasium

    return Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / xml_file
