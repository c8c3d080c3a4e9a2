"""Environments by name: ``make("gymnax/CartPole-v1")``, ``make("brax/ant", backend="mjx")``.

With the option ``execute``, an environment plays chunks of actions: ``make("mjx/Hopper-v5",
execute=4)`` is ``ChunkActions(make("mjx/Hopper-v5"), 4)``. The other options of ``ChunkActions``
work too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jaxrl.envs import brax, chunks, gymnax, maze, mjx, playground, probe
from jaxrl.envs.chunks import ChunkActions
from jaxrl.envs.vector import VectorEnv
from jaxrl.errors import UsageError, nearest
from jaxrl.types import Environment

__all__ = ["SUITES", "ChunkActions", "VectorEnv", "make", "make_recorded", "names"]

# A suite is a module with ``TASKS``, a tuple of names, and ``make(task, **options)``.
SUITES: dict[str, ModuleType] = {
    "brax": brax,
    "gymnax": gymnax,
    "maze": maze,
    "mjx": mjx,
    "playground": playground,
    "probe": probe,
}
# Options of the engine that steps a task, which is the same task with any.
OF_ENGINE = frozenset({"engine", "exact", "iterations", "ls_iterations", "impl"})


def names(suite: str | None = None) -> list[str]:
    """The names that ``make`` accepts: ``"<suite>/<task>"``, for one suite or all.

    Raises:
        UsageError: unknown suite.
    """
    if suite is not None and suite not in SUITES:
        raise UsageError(f"unknown suite {suite!r}; {nearest(suite, SUITES)}")
    chosen = SUITES if suite is None else (suite,)
    return [f"{one}/{task}" for one in chosen for task in SUITES[one].TASKS]


def make(name: str, /, **options: Any) -> Environment:
    """The environment ``"<suite>/<task>"``. Options are described in the suites' modules.

    With the option ``execute`` it is a ``ChunkActions`` environment.

    Raises:
        UsageError: unknown name, option or value. A wrong name is reported before any heavy import.
    """
    suite, _, task = name.partition("/")
    if suite in SUITES and task in SUITES[suite].TASKS:
        known = chunks.OPTIONS if "execute" in options else ()
        chunking = {option: options.pop(option) for option in known if option in options}
        env: Any = SUITES[suite].make(task, **options)
        # A run records its environment by name and options, as JSON.
        if not isinstance(getattr(type(env), "options", None), property):
            chosen = getattr(env, "options", options)
            object.__setattr__(env, "options", _as_json(chosen))
        if chunking:
            env = ChunkActions(env, **chunking)
        return env
    wanted = (task or suite).lower()
    same = [known for known in names() if known.partition("/")[2].lower() == wanted]
    near = names(suite) if suite in SUITES else names()
    hint = f"did you mean {', '.join(same)}?" if same else nearest(name, near)
    raise UsageError(f"unknown environment {name!r}; {hint}")


def _as_json(value: Any) -> Any:
    """Return options with arrays as lists, at any depth of dictionaries and tuples."""
    if isinstance(value, Mapping):
        return {name: _as_json(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_as_json(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def make_recorded(name: str, options: Mapping[str, Any]) -> Environment:
    """The environment recorded in a run's ``config.json``, for playing its policy.

    It uses this machine's physics engine, so a policy trained on a GPU also plays on a laptop.
    """
    elsewhere = OF_ENGINE | ({"naconmax"} if name.startswith("mjx/") else set())
    kept = {option: value for option, value in options.items() if option not in elsewhere}
    tuples = {option: tuple(v) if isinstance(v, list) else v for option, v in kept.items()}
    return make(name, **tuples)
