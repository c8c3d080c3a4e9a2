"""Gymnasium's MuJoCo v5 tasks, and four v4 tasks, on three engines.

Every task takes the arguments of its Gymnasium class, with the same names and defaults (except
``render_mode``; v4 tasks also take arguments added in v5, such as ``xml_file``), and:

- ``engine``: ``"mjx"`` (JAX: any device, differentiable), ``"warp"`` (MuJoCo Warp: NVIDIA GPUs),
  ``"c"`` (MuJoCo itself: the CPU's cores). Default ``"c"`` on a CPU, else ``"mjx"``.
- ``exact``: for engine ``"c"``. True (default): Gymnasium's trajectories bit for bit. False:
  ``mujoco.rollout``, which agrees to the solver's tolerance; only for tasks that read nothing but
  positions and velocities (HalfCheetah, Hopper, InvertedPendulum, Swimmer, Walker2d).
- ``iterations``, ``ls_iterations``: the maximum iterations of the constraint solver and of its line
  search. Default for MJX and Warp: 4 and 8 (Ant 6 and 8, HumanoidStandup 8 and 16), beyond which
  float32 shows no change. Default for C: the XML's values.
- ``naconmax``: for engine ``"warp"``. The maximum number of contacts over all environments; further
  contacts are dropped. Default: room for 16,384 environments.
- ``margin``: ``"current"``, or ``"legacy"`` for contact margins as before MuJoCo 3.5, with which
  most published scores of Hopper, Ant and Humanoid were obtained.
- ``randomize``: a ``jaxrl.envs.randomize.Randomize`` or a dictionary of its fields.
- ``max_steps``: the time limit.

On MJX, Humanoid and HumanoidStandup use Newton's method instead of PGS, which MJX lacks. For
reverse-mode gradients through MJX, set ``iterations=1``.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

import jax

from jaxrl._startup import cores, large_pool
from jaxrl.envs.checks import check_like, check_nvidia, check_positive
from jaxrl.envs.mjx.options import checked
from jaxrl.envs.randomize import as_option, randomize_option
from jaxrl.errors import UsageError, nearest
from jaxrl.types import Environment

EngineName = Literal["mjx", "warp", "c"]
Margin = Literal["current", "legacy"]

_MODULES = {
    "Ant": "ant",
    "HalfCheetah": "half_cheetah",
    "Hopper": "hopper",
    "Humanoid": "humanoid",
    "HumanoidStandup": "humanoid",
    "InvertedDoublePendulum": "inverted_pendulum",
    "InvertedPendulum": "inverted_pendulum",
    "Pusher": "pusher",
    "Reacher": "reacher",
    "Swimmer": "swimmer",
    "Walker2d": "walker2d",
}
# The tasks of D4RL's datasets, which keep v4's rewards, observations and models.
_V4 = ("Ant", "HalfCheetah", "Hopper", "Walker2d")
TASKS = (*(f"{name}-v5" for name in _MODULES), *(f"{name}-v4" for name in _V4))


def make(
    task: str,
    /,
    engine: EngineName | None = None,
    exact: bool = True,
    iterations: int | None = None,
    ls_iterations: int | None = None,
    naconmax: int | None = None,
    margin: Margin = "current",
    randomize: Any = None,
    max_steps: int | None = None,
    **options: Any,
) -> Environment:
    """The environment ``mjx/<task>``.

    Raises:
        UsageError: unknown option or value, an engine that cannot run here, a missing model.
    """
    from jaxrl.envs.mjx.env import MujocoEnv

    name = f"mjx/{task}"
    if margin not in get_args(Margin):
        raise UsageError(f"{name}: margin is {margin!r}; {nearest(str(margin), get_args(Margin))}")
    given = {"iterations": iterations, "ls_iterations": ls_iterations}
    given |= {"naconmax": naconmax, "max_steps": max_steps}
    given = {option: value for option, value in given.items() if value is not None}
    for option, value in given.items():
        check_positive(name, option, value)
    randomize = randomize_option(name, randomize)
    engine = choose_engine(name, engine)
    if naconmax is not None and engine != "warp":
        raise UsageError(
            f"{name}: naconmax is {naconmax}, which is for engine 'warp', and this is {engine!r}"
        )
    kind, version = _task_class(task)
    arguments = dict(kind.V4 if version == 4 else {}) | checked(name, kind, version, options)
    built = kind(version=version, legacy_margin=margin == "legacy", **arguments)
    check_like(name, "exact", exact, True)
    if not exact:
        _check_rollout(name, engine, built, randomize)

    budget = None
    if engine != "c" or "iterations" in given or "ls_iterations" in given:
        default = _budget(built, engine)
        budget = (iterations or default[0], ls_iterations or default[1])
    recorded: dict[str, Any] = {
        "engine": engine,
        "margin": margin,
        "randomize": as_option(randomize),
    }
    shown = budget or _budget(built, engine)
    recorded |= {"iterations": shown[0], "ls_iterations": shown[1]}
    if engine == "c":
        recorded["exact"] = exact
    return MujocoEnv(
        name=name,
        task=built,
        engine=_engine(built, engine, budget, exact, naconmax),
        max_steps=max_steps or built.MAX_STEPS,
        randomize=randomize,
        options=options | given | recorded,
        cheap_resets=engine == "mjx" and _reads_state_alone(built),
        threaded=engine == "c",
    )


def choose_engine(name: str, engine: str | None) -> EngineName:
    """The engine to use: the requested one if it can run here, or this machine's default.

    Raises:
        UsageError: unknown engine, or an engine that cannot run here.
    """
    known = get_args(EngineName)
    if engine is not None and engine not in known:
        raise UsageError(f"{name}: engine is {engine!r}; {nearest(str(engine), known)}")
    if engine == "mjx":
        large_pool()  # before JAX's first computation
    platform = jax.default_backend()
    if engine == "c" and platform != "cpu":
        raise UsageError(
            f"{name}: engine 'c' runs on the CPU, and JAX's backend is {platform}; "
            "choose engine mjx, or set JAX_PLATFORMS=cpu"
        )
    if engine == "warp":
        check_nvidia(name, "engine", engine, "mjx")
    if engine is None:
        return "c" if platform == "cpu" else "mjx"
    return engine  # type: ignore[return-value]


def _task_class(task: str) -> tuple[Any, int]:
    name, _, version = task.rpartition("-v")
    module = importlib.import_module(f"jaxrl.envs.mjx.{_MODULES[name]}")
    return getattr(module, name), int(version)


def _budget(task: Any, engine: EngineName) -> tuple[int, int]:
    if engine == "c":
        return int(task.model.opt.iterations), int(task.model.opt.ls_iterations)
    budget: tuple[int, int] = task.ITERATIONS
    return budget


def _reads_state_alone(task: Any) -> bool:
    return set(task.reads) <= {"qpos", "qvel"}


def _check_rollout(name: str, engine: EngineName, task: Any, randomize: Any) -> None:
    if engine != "c":
        raise UsageError(f"{name}: exact is False, which is for engine 'c', and this is {engine!r}")
    if not _reads_state_alone(task):
        raise UsageError(
            f"{name}: exact is False, but this task reads more than mujoco.rollout returns; "
            "leave exact at True"
        )
    if randomize is not None:
        raise UsageError(
            f"{name}: exact is False, which has no randomize; leave one of the two out"
        )


def _engine(
    task: Any,
    engine: EngineName,
    budget: tuple[int, int] | None,
    exact: bool,
    naconmax: int | None,
) -> Any:
    if engine == "c":
        if exact:
            from jaxrl.envs.mjx.engine_c import CEngine as Native
        else:
            from jaxrl.envs.mjx.engine_rollout import RolloutEngine as Native
        return Native(task, budget, threads=cores())
    from jaxrl.envs.mjx.engine_mjx import MjxEngine

    assert budget is not None
    return MjxEngine(task, budget, "warp" if engine == "warp" else "jax", naconmax)
