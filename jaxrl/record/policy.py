"""Trained policies, loaded from run folders."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl.agents
from jaxrl import envs, hyper
from jaxrl.envs.vector import rescale
from jaxrl.errors import UsageError
from jaxrl.record import checkpoint
from jaxrl.types import Agent, Array, Environment, Key, Mode, PyTree, Spec

AGENTS: dict[str, type] = {name: getattr(jaxrl.agents, name) for name in jaxrl.agents.__all__}


class Policy:
    """A trained policy: ``policy(obs, key) -> action`` in the environment's own units.

    Statistics of observations are part of it.

    Attributes:
        agent, state: the agent and its state, for ``agent.act`` and for losses of your own.
        spec: the specification of the environment it was trained in.
        mode: how it acts, "greedy" or "sample".
    """

    def __init__(self, agent: Agent, state: PyTree, spec: Spec, mode: Mode) -> None:
        hyper.require_choice("mode", mode, Mode)
        self.agent, self.state, self.spec, self.mode = agent, state, spec, mode
        self._act = jax.jit(lambda state, obs, key: agent.act(state, obs, key, mode)[0])

    def __call__(self, obs: Any, key: Key | None = None) -> Array:
        """Return the action for ``obs[..., *O]``: ``[..., *A]``. A greedy policy needs no key.

        Raises:
            UsageError: if a sampling policy gets no key.
        """
        if key is None:
            if self.mode != "greedy":
                raise UsageError(f"a policy of mode {self.mode!r} needs a key: policy(obs, key)")
            key = jax.random.key(0)
        return rescale(self.spec.action, self._act(self.state, obs, key))


def load_policy(
    run_dir: str | Path,
    seed: int | None = None,
    mode: Mode = "greedy",
    step: int | None = None,
    config: int = 0,
    *,
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> Policy:
    """Load the policy of a run from its newest intact checkpoint, or from that of ``step``.

    Args:
        run_dir: the folder of the run.
        seed: one of its seeds; default the first.
        mode: "greedy", or "sample" to act as in training.
        step: the step of the checkpoint; default the newest intact one.
        config: the index of a configuration, if the run was a sweep.
        classes: your own classes of agents and of their parts, beside those of the library. The
            record names the classes that it needs; none is ever imported because of its name.
        env: the environment it was trained in, if ``make`` does not know it by its name.

    Raises:
        UsageError: if the folder holds no run, the run has no such seed or configuration, or a
            class or the environment is unknown.
        CheckpointError: if no checkpoint is intact.
    """
    folder = Path(run_dir)
    stored = _read_config(folder)
    seeds = stored["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise UsageError(f"seed {seed} is not in {folder}; it has {', '.join(map(str, seeds))}")
    configurations = stored["sweep"] or [{}]
    if not 0 <= config < len(configurations):
        raise UsageError(f"config is {config}; {folder} has 0 to {len(configurations) - 1}")

    agent = make_agent(stored["agent"], classes)
    agent = hyper.replace(agent, configurations[config])
    spec = make_env(stored, env).spec
    spec = dataclasses.replace(spec, max_steps=stored["max_steps"])
    members = len(seeds) * len(configurations)
    one = jax.eval_shape(lambda key: agent.init(key, spec), jax.random.key(0))
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), one)
    restored = checkpoint.restore(
        folder / "checkpoints", template, step, prefix="agent", report=warnings.warn
    )
    member = config * len(seeds) + seeds.index(seed)
    state = jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x)[member]), restored.state)
    return Policy(agent, state, spec, mode)


def make_agent(config: Mapping[str, Any], classes: Sequence[type] = ()) -> Any:
    """Return the recorded agent, made of the library's classes and of ``classes``.

    Raises:
        UsageError: if a class is unknown, or a hyper-parameter is unknown or missing.
    """
    known = AGENTS | {each.__name__: each for each in classes}
    for name in _class_names(config):
        if name not in known:
            raise UsageError(
                f"unknown agent class {name!r}; pass your own classes, as classes=[{name}]"
            )
    return hyper.from_config(config, known)


def classes_of(agent: Any) -> list[type]:
    """Return the classes of an agent and of its parts, as ``load_policy`` takes them."""
    parts = [getattr(agent, field.name) for field in dataclasses.fields(agent)]
    inner = [each for part in parts if dataclasses.is_dataclass(part) for each in classes_of(part)]
    return [type(agent), *inner]


def make_env(config: Mapping[str, Any], env: Environment | None = None) -> Environment:
    """Return ``env`` if it is given, else the environment that the configuration names.

    Raises:
        UsageError: if ``make`` does not know the name.
    """
    if env is not None:
        return env
    name = config["env"]
    if name not in envs.names():
        raise UsageError(
            f"unknown environment {name!r}; pass the environment of the run, as env=..."
        )
    return envs.make_recorded(name, config["env_options"])


def _read_config(folder: Path) -> dict[str, Any]:
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
