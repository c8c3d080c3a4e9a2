"""Agents, their parts and environments, rebuilt from a run's ``config.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxrl.agents
from jaxrl import envs, hyper, optim
from jaxrl.config import from_config
from jaxrl.envs.absent import NO_ENVIRONMENT, NoEnvironment
from jaxrl.errors import UsageError
from jaxrl.nn import composition, critics, diffusion, edm, encoders, flow, policies
from jaxrl.types import Environment, Spec


def _classes(module: ModuleType) -> dict[str, type]:
    """Return the public classes of parts that a module defines, by name."""
    found = [each for each in vars(module).values() if dataclasses.is_dataclass(each)]
    own = [each for each in found if isinstance(each, type) and each.__module__ == module.__name__]
    return {each.__name__: each for each in own if not each.__name__.startswith("_")}


# The library's classes that a record may name: agents, wrappers, and all types of parts.
CLASSES: dict[str, type] = {name: getattr(jaxrl.agents, name) for name in jaxrl.agents.__all__}
for _module in (policies, diffusion, edm, flow, composition, critics, encoders, optim):
    CLASSES |= _classes(_module)


def make_agent(config: Mapping[str, Any], classes: Sequence[type] = ()) -> Any:
    """Return the recorded agent, built from the library's classes and ``classes``.

    Raises:
        UsageError: if a class is unknown, or a hyper-parameter is unknown or missing.
    """
    known = CLASSES | {each.__name__: each for each in classes}
    for name in _class_names(config):
        if name not in known:
            raise UsageError(
                f"unknown agent class {name!r}; pass your own classes, as classes=[{name}], in "
                "Python"
            )
    return from_config(config, known)


def classes_of(agent: Any) -> list[type]:
    """Return the classes of an agent and its parts, for ``load_policy``."""
    fields = filter(hyper.is_option, dataclasses.fields(agent))
    parts = [getattr(agent, field.name) for field in fields]
    inner = [each for part in parts if dataclasses.is_dataclass(part) for each in classes_of(part)]
    return [type(agent), *inner]


def make_env(config: Mapping[str, Any], env: Any = None) -> Environment:
    """Return ``env`` if given (a ``Spec`` alone cannot be played), else the recorded environment.

    Raises:
        UsageError: if ``make`` does not know the name.
    """
    if env is not None:
        return NoEnvironment(env) if isinstance(env, Spec) else env  # type: ignore[return-value]
    name = config["env"]
    if name == NO_ENVIRONMENT:
        raise UsageError(
            "the run had no environment; pass one, or the spec, as env=spec, in Python"
        )
    if name not in envs.names():
        raise UsageError(
            f"unknown environment {name!r}; pass the environment of the run, as env=..., in Python"
        )
    return envs.make_recorded(name, config["env_options"])


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json``, which must describe a policy."""
    try:
        stored = json.loads((folder / "config.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} is not a run folder: it has no config.json") from None
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise UsageError(f"{folder / 'config.json'} is not a JSON object; it describes no policy")
    for name in ("agent", "env", "env_options", "max_steps", "seeds", "sweep"):
        if name not in stored:
            raise UsageError(f"{folder / 'config.json'} lacks {name!r}; it describes no policy")
    return stored


def _class_names(config: Mapping[str, Any]) -> Iterable[str]:
    """Yield the class names in a recorded agent, from the outermost inwards."""
    if isinstance(name := config.get("class"), str):
        yield name
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _class_names(value)
