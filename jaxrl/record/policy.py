"""Trained policies, loaded from run folders."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrl.agents
from jaxrl import envs, hyper, optim
from jaxrl.agents import protocol
from jaxrl.config import from_config
from jaxrl.envs.absent import NO_ENVIRONMENT, NoEnvironment
from jaxrl.envs.vector import rescale
from jaxrl.errors import UsageError
from jaxrl.nn import composition, critics, diffusion, edm, encoders, flow, policies
from jaxrl.record import checkpoint
from jaxrl.require import require_choice, require_integer
from jaxrl.types import Agent, Array, Environment, Key, Mode, PyTree, Spec


def _classes(module: ModuleType) -> dict[str, type]:
    """Return the public classes of parts that a module defines, by name."""
    found = [each for each in vars(module).values() if dataclasses.is_dataclass(each)]
    own = [each for each in found if isinstance(each, type) and each.__module__ == module.__name__]
    return {each.__name__: each for each in own if not each.__name__.startswith("_")}


# The library's classes that a record may name: agents, wrappers, and all kinds of parts.
CLASSES: dict[str, type] = {name: getattr(jaxrl.agents, name) for name in jaxrl.agents.__all__}
for _module in (policies, diffusion, edm, flow, composition, critics, encoders, optim):
    CLASSES |= _classes(_module)


class Policy:
    """A trained policy, in the environment's own units of actions.

    ``policy(obs, key) -> action`` serves agents without memory. ``carry = policy.start(n)`` and
    ``action, carry = policy.step(carry, obs, key)`` play ``n`` episodes and serve all agents.
    Statistics of observations are part of the policy.

    Attributes:
        agent, state: the agent and its state, for ``agent.act`` and for losses of your own.
        spec: the specification of the environment it was trained in.
        mode: how it acts, "greedy" or "sample".
    """

    def __init__(self, agent: Agent, state: PyTree, spec: Spec, mode: Mode) -> None:
        require_choice("mode", mode, Mode)
        self.agent: Agent = agent.bind(spec)
        self.state, self.spec, self.mode = state, spec, mode
        self._remembers = self._reads_memory()

        def act(state: PyTree, carry: PyTree, obs: PyTree, key: Key) -> tuple[Array, PyTree]:
            action, carry, _ = self.agent.act(state, carry, obs, key, mode)
            return rescale(spec.action, action), carry

        self._act = jax.jit(act)

    def __call__(self, obs: Any, key: Key | None = None) -> Array:
        """Return the action for ``obs[..., *O]``: ``[..., *A]``. A greedy policy needs no key.

        Raises:
            UsageError: if the agent has a memory, or a sampling policy gets no key.
        """
        if self._remembers:
            name = type(protocol.innermost(self.agent)).__name__
            raise UsageError(
                f"{name} has a memory; play it with carry = policy.start(n) and "
                "action, carry = policy.step(carry, obs, key)"
            )
        return self._play(self.start(1), obs, self._key(key, "policy(obs, key)"))[0]

    def _reads_memory(self) -> bool:
        """Whether actions depend on a memory; that of exploration alone is not read here."""
        carry = jax.eval_shape(lambda: self.start(1))
        if not jax.tree.leaves(carry):
            return False
        obs = jax.tree.map(
            lambda box: jax.ShapeDtypeStruct((1, *box.shape), box.dtype), self.spec.observation
        )

        def act(carry: PyTree, obs: PyTree) -> Array:
            return self.agent.act(self.state, carry, obs, jax.random.key(0), self.mode)[0]

        program = jax.make_jaxpr(act)(carry, obs).jaxpr
        read = [var for equation in program.eqns for var in equation.invars] + program.outvars
        memory = program.invars[: len(jax.tree.leaves(carry))]
        return any(var is each for var in read for each in memory)

    def start(self, n: int = 1, key: Key | None = None) -> PyTree:
        """Return the memory ``[n, ...]`` with which ``n`` episodes begin; ``()`` without memory."""
        return protocol.init_carry(self.agent, jax.random.key(0) if key is None else key, n)

    def step(self, carry: PyTree, obs: Any, key: Key | None = None) -> tuple[Array, PyTree]:
        """Return actions ``[n, *A]`` for ``obs[n, *O]``, and the memory of the next step.

        Where an episode ends, the next one begins with a row of ``start``.

        Raises:
            UsageError: if a sampling policy gets no key.
        """
        return self._play(carry, obs, self._key(key, "policy.step(carry, obs, key)"))

    def _play(self, carry: PyTree, obs: Any, key: Key) -> tuple[Array, PyTree]:
        try:
            action, carry = self._act(self.state, carry, obs, key)
        except KeyError as error:
            (name,), seen = error.args[:1], self.spec.observation
            if isinstance(obs, Mapping) and isinstance(seen, dict) and name in seen.keys() - obs:
                raise UsageError(
                    f"the policy sees the entry {name!r}, which obs lacks; "
                    f"it has {', '.join(map(str, obs))}"
                ) from None
            raise
        return action, carry

    def _key(self, key: Key | None, call: str) -> Key:
        if key is not None:
            return key
        if self.mode != "greedy":
            raise UsageError(f"a policy of mode {self.mode!r} needs a key: {call}")
        return jax.random.key(0)


def load_policy(
    run_dir: str | Path,
    seed: int | None = None,
    mode: Mode = "greedy",
    iteration: int | None = None,
    config: int = 0,
    *,
    sample_steps: int | None = None,
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> Policy:
    """Load the policy of a run from its newest intact checkpoint, or from that of ``iteration``.

    Args:
        run_dir: the folder of the run.
        seed: one of its seeds; default the first.
        mode: "greedy", or "sample" to act as in training.
        iteration: the number of the checkpoint; default the newest intact one.
        config: the index of a configuration, if the run was a sweep.
        sample_steps: another number of steps for a policy that denoises; fewer are faster.
        classes: your own classes of agents and of their parts, beside those of the library. The
            record names the classes that it needs; none is ever imported because of its name.
        env: the environment it was trained in, if ``make`` does not know it by its name.

    Raises:
        UsageError: if the folder holds no run, the run has no such seed or configuration, a class
            or the environment is unknown, or the policy cannot take that many steps.
        CheckpointError: if no checkpoint is intact.
    """
    policy, _ = load_policy_and_env(
        run_dir, seed, mode, iteration, config, classes=classes, env=env
    )
    if sample_steps is None:
        return policy
    family: Any = getattr(protocol.innermost(policy.agent), "policy", None)
    if not hasattr(family, "sample_steps"):
        raise UsageError(
            f"sample_steps is {sample_steps}, and the policy of {run_dir} does not denoise; "
            "leave it None"
        )
    require_integer("sample_steps", sample_steps)
    fewer = dataclasses.replace(family, sample_steps=sample_steps)
    agent = protocol.with_parts(policy.agent, policy=fewer)
    return Policy(agent, policy.state, policy.spec, mode)


def load_policy_and_env(
    run_dir: str | Path,
    seed: int | None = None,
    mode: Mode = "greedy",
    iteration: int | None = None,
    config: int = 0,
    *,
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> tuple[Policy, Environment]:
    """Load a policy as ``load_policy`` does, and the environment of its phase."""
    folder = Path(run_dir)
    stored = _read_config(folder)
    seeds = stored["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise UsageError(f"seed {seed} is not in {folder}; it has {', '.join(map(str, seeds))}")
    configurations = stored["sweep"] or [{}]
    if not 0 <= config < len(configurations):
        raise UsageError(f"config is {config}; {folder} has 0 to {len(configurations) - 1}")
    found = _restore(folder, stored, config, iteration, classes, env)
    member = config * len(seeds) + seeds.index(seed)
    state = jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x)[member]), found.states)
    return Policy(found.agent, state, found.spec, mode), found.env


class Recorded(NamedTuple):
    """The agent of a run, not bound, with the states of all members, and its environment."""

    agent: Any
    states: PyTree  # numpy [M, ...], seeds varying fastest
    spec: Spec
    env: Environment
    seeds: list[int]


def load_members(run_dir: str | Path, *, classes: Sequence[type], instead: Spec) -> Recorded:
    """Load the agent of a run without a sweep, and its states for all seeds, as ``load_policy``.

    The environment is ``instead`` if ``make`` does not know the run's own.

    Raises:
        UsageError: for a run with a sweep, beside what ``load_policy`` refuses.
        CheckpointError: if no checkpoint is intact.
    """
    folder = Path(run_dir)
    stored = _read_config(folder)
    if len(stored["sweep"]) > 1:
        raise UsageError(
            f"{folder} has {len(stored['sweep'])} configurations, and one is needed; "
            "give a run without a sweep"
        )
    env = None if stored["env"] in envs.names() else instead
    return _restore(folder, stored, 0, None, classes, env)


def _restore(
    folder: Path,
    stored: dict[str, Any],
    config: int,
    iteration: int | None,
    classes: Sequence[type],
    env: Environment | Spec | None,
) -> Recorded:
    """Read the agent's states from a checkpoint; ``stored`` is the run's ``config.json``."""
    seeds, configurations = stored["seeds"], stored["sweep"] or [{}]
    members = len(seeds) * len(configurations)
    made: list[tuple[Any, Spec, Environment]] = []

    def template(meta: Mapping[str, Any]) -> PyTree:
        phase = stored | (stored["phases"][meta["phase"]] if "phases" in stored else {})
        task = make_env(phase, env)
        spec = dataclasses.replace(task.spec, max_steps=phase["max_steps"])
        agent = hyper.replace(make_agent(phase["agent"], classes), configurations[config])
        made.append((agent, spec, task))
        one = jax.eval_shape(agent.bind(spec).init, jax.random.key(0))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), one)

    restored = checkpoint.restore(
        folder / "checkpoints", template, iteration, prefix="agent", report=warnings.warn
    )
    agent, spec, task = made[-1]
    return Recorded(agent, restored.state, spec, task, seeds)


def make_agent(config: Mapping[str, Any], classes: Sequence[type] = ()) -> Any:
    """Return the recorded agent, made of the library's classes and of ``classes``.

    Raises:
        UsageError: if a class is unknown, or a hyper-parameter is unknown or missing.
    """
    known = CLASSES | {each.__name__: each for each in classes}
    for name in _class_names(config):
        if name not in known:
            raise UsageError(
                f"unknown agent class {name!r}; pass your own classes, as classes=[{name}]"
            )
    return from_config(config, known)


def classes_of(agent: Any) -> list[type]:
    """Return the classes of an agent and of its parts, as ``load_policy`` takes them."""
    fields = filter(hyper.is_option, dataclasses.fields(agent))
    parts = [getattr(agent, field.name) for field in fields]
    inner = [each for part in parts if dataclasses.is_dataclass(part) for each in classes_of(part)]
    return [type(agent), *inner]


def make_env(config: Mapping[str, Any], env: Any = None) -> Environment:
    """Return ``env`` if it is given (a ``Spec`` alone cannot be played in), else the recorded one.

    Raises:
        UsageError: if ``make`` does not know the name.
    """
    if env is not None:
        return NoEnvironment(env) if isinstance(env, Spec) else env  # type: ignore[return-value]
    name = config["env"]
    if name == NO_ENVIRONMENT:
        raise UsageError("the run had no environment; pass one, or the spec, as env=spec")
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
