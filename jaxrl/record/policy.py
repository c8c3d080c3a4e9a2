"""Trained policies, loaded from run folders."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxrl import envs, hyper
from jaxrl.agents import protocol
from jaxrl.envs.vector import rescale
from jaxrl.errors import UsageError
from jaxrl.record.checkpoint import restore
from jaxrl.record.rebuild import make_agent, make_env, read_config
from jaxrl.require import require_choice, require_integer
from jaxrl.rng import require_key
from jaxrl.types import Agent, Array, Environment, Key, Mode, PyTree, Spec

Which = Literal["last", "best"]  # which policy of a checkpoint


class Policy:
    """A trained policy, with actions in the environment's own units.

    ``policy(obs, key) -> action`` works for agents without memory. ``carry = policy.start(n)`` and
    ``action, carry = policy.step(carry, obs, key)`` play ``n`` episodes and work for all agents.
    Observation statistics are part of the policy.

    Attributes:
        agent, state: the agent and its state, for ``agent.act`` and for custom losses.
        spec: the specification of the environment it was trained in.
        mode: how it acts, "greedy" or "sample".
        evaluation: for a policy chosen by its best evaluation, that evaluation: ``step``,
            ``iteration``, ``phase`` (the index) and ``episode_return``; else None.
    """

    def __init__(
        self,
        agent: Agent,
        state: PyTree,
        spec: Spec,
        mode: Mode,
        evaluation: Mapping[str, Any] | None = None,
    ) -> None:
        require_choice("mode", mode, Mode)
        self.evaluation = evaluation
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
        """Whether actions depend on a memory; memory used only for exploration does not count."""
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
        """Return the initial memory ``[n, ...]`` of ``n`` episodes; ``()`` without memory."""
        return protocol.init_carry(self.agent, jax.random.key(0) if key is None else key, n)

    def step(self, carry: PyTree, obs: Any, key: Key | None = None) -> tuple[Array, PyTree]:
        """Return actions ``[n, *A]`` for ``obs[n, *O]``, and the memory for the next step.

        When an episode ends, replace its row of the memory with a row of ``start``.

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
            require_key(key)
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
    checkpoint: Which = "last",
    sample_steps: int | None = None,
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> Policy:
    """Load a run's policy from its newest intact checkpoint, or the checkpoint of ``iteration``.

    Args:
        run_dir: the folder of the run.
        seed: one of its seeds; default the first.
        mode: "greedy", or "sample" to act as in training.
        iteration: the number of the checkpoint; default the newest intact one.
        config: the index of a configuration, if the run was a sweep. With PBT, the agent has the
            values that were in force when its state was kept.
        checkpoint: "last", or "best" for the policy at the seed's best evaluation so far. That
            score is biased upwards, as the best of many (``jaxrl.analysis.evaluate_run`` evaluates
            it again).
        sample_steps: another number of steps for a policy that denoises; fewer are faster.
        classes: your own classes of agents and parts, in addition to the library's. The record
            names the classes it needs; none is ever imported because of its name.
        env: the environment it was trained in, if ``make`` does not know it by its name.

    Raises:
        UsageError: if the folder holds no run, the run has no such seed or configuration, a class
            or the environment is unknown, the policy cannot use that many steps, or no best policy
            was kept.
        CheckpointError: if no checkpoint is intact.
    """
    policy, _ = load_policy_and_env(
        run_dir, seed, mode, iteration, config, checkpoint=checkpoint, classes=classes, env=env
    )
    if sample_steps is None:
        return policy
    inner: Any = protocol.innermost(policy.agent)
    name = getattr(inner, "acts_with", "policy")
    family: Any = getattr(inner, name, None)
    why = "" if hasattr(family, "sample_steps") else "does not denoise"
    if getattr(inner, "frozen_steps", 0) and sample_steps != family.chain_steps:
        why = f"has an older network for the first {inner.frozen_steps} of its steps"
    if why:
        given = f"sample_steps is {sample_steps}, and the policy of {run_dir}"
        raise UsageError(f"{given} {why}; leave it None")
    require_integer("sample_steps", sample_steps)
    fewer = dataclasses.replace(family, sample_steps=sample_steps)
    agent = protocol.with_parts(policy.agent, **{name: fewer})
    return Policy(agent, policy.state, policy.spec, mode, policy.evaluation)


def load_policy_and_env(
    run_dir: str | Path,
    seed: int | None = None,
    mode: Mode = "greedy",
    iteration: int | None = None,
    config: int = 0,
    *,
    checkpoint: Which = "last",
    classes: Sequence[type] = (),
    env: Environment | None = None,
) -> tuple[Policy, Environment]:
    """Load a policy as ``load_policy`` does, and the environment of its phase."""
    folder = Path(run_dir)
    require_choice("checkpoint", checkpoint, Which)
    stored = read_config(folder)
    seeds = stored["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise UsageError(f"seed {seed} is not in {folder}; it has {', '.join(map(str, seeds))}")
    configurations = stored["sweep"] or [{}]
    require_integer("config", config, -math.inf)
    require_integer("iteration", iteration, -math.inf, optional=True)
    if not 0 <= config < len(configurations):
        raise UsageError(f"config is {config}; {folder} has 0 to {len(configurations) - 1}")
    reader = _Reader(folder, stored, config, classes, env)
    found = (reader.best if checkpoint == "best" else reader.last)(seed, iteration)
    member = reader.member(found.seeds, seed)
    state = jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x)[member]), found.states)
    chosen_by = None if found.best is None else found.best[member]
    return Policy(found.agent, state, found.spec, mode, chosen_by), found.env


class Recorded(NamedTuple):
    """A run's unbound agent with the states of all members, and its environment."""

    agent: Any
    states: PyTree  # numpy [M, ...], seeds varying fastest
    spec: Spec
    env: Environment
    seeds: list[int]
    best: list[dict[str, Any]] | None  # the evaluations at which the members' states were kept


def load_members(run_dir: str | Path, *, classes: Sequence[type], instead: Spec) -> Recorded:
    """Load the agent of a run without a sweep, and its states for all seeds, like ``load_policy``.

    The environment is ``instead`` if ``make`` does not know the run's own.

    Raises:
        UsageError: for a run with a sweep, and for anything ``load_policy`` refuses.
        CheckpointError: if no checkpoint is intact.
    """
    folder = Path(run_dir)
    stored = read_config(folder)
    if len(stored["sweep"]) > 1:
        raise UsageError(
            f"{folder} has {len(stored['sweep'])} configurations, and one is needed; "
            "give a run without a sweep"
        )
    env = None if stored["env"] in envs.names() else instead
    return _Reader(folder, stored, 0, classes, env).last(stored["seeds"][0], None)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the agent's states from a checkpoint; ``stored`` is the run's ``config.json``.

    Seeds are those of the checkpoint, since seeds may have been added to the run later.
    """

    folder: Path
    stored: dict[str, Any]
    config: int
    classes: Sequence[type]
    env: Environment | Spec | None

    def last(self, seed: int, iteration: int | None) -> Recorded:
        """Return the states after the checkpoint's last iteration; the agent is the seed's."""
        return self._restore("agent", seed, iteration, lambda meta: meta["phase"])

    def best(self, seed: int, iteration: int | None) -> Recorded:
        """Return the states at the best evaluations; agent and environment are the given seed's."""

        def phase(meta: Mapping[str, Any]) -> int:
            if meta.get("best") is None:
                raise UsageError(
                    f"{self.folder} has kept no best policy; load the last, as checkpoint='last'"
                )
            found: int = meta["best"][self.member(self._seeds(meta), seed)]["phase"]
            return found

        return self._restore("best", seed, iteration, phase)

    def member(self, seeds: Sequence[int], seed: int) -> int:
        """Return the row of a seed among the members."""
        if seed not in seeds:
            raise UsageError(
                f"seed {seed} was added to {self.folder} after this checkpoint, which has "
                f"{', '.join(map(str, seeds))}; load a later one"
            )
        return self.config * len(seeds) + seeds.index(seed)

    def _seeds(self, meta: Mapping[str, Any]) -> list[int]:
        return list(meta.get("config", self.stored)["seeds"])

    def _values(self, part: str, seed: int, meta: Mapping[str, Any]) -> dict[str, float]:
        """Return the seed's swept values when the states were kept; PBT changes them."""
        values, seeds = dict((self.stored["sweep"] or [{}])[self.config]), self._seeds(meta)
        before = math.inf  # a best policy was evaluated before its interval's values changed
        if part == "best":
            before = meta["best"][self.member(seeds, seed)]["iteration"]
        for each in meta.get("extra", {}).get("lineage", []):
            if each["iteration"] < before:
                population = seeds.index(seed)
                values |= {n: x[self.config][population] for n, x in each["values"].items()}
        return values

    def _restore(
        self, part: str, seed: int, iteration: int | None, phase: Callable[[Mapping[str, Any]], int]
    ) -> Recorded:
        """Read a part of the checkpoint's tree; ``phase`` returns its agent's phase."""
        stored, configurations = self.stored, self.stored["sweep"] or [{}]
        made: list[tuple[Any, Spec, Environment, list[int]]] = []  # for every checkpoint tried

        def template(meta: Mapping[str, Any]) -> PyTree:
            seeds, at = self._seeds(meta), phase(meta)
            own = stored | (stored["phases"][at] if "phases" in stored else {})
            task = make_env(own, self.env)
            spec = dataclasses.replace(task.spec, max_steps=own["max_steps"])
            agent = make_agent(own["agent"], self.classes)
            agent = hyper.replace(agent, self._values(part, seed, meta))
            made.append((agent, spec, task, seeds))
            one = jax.eval_shape(agent.bind(spec).init, jax.random.key(0))
            members = len(seeds) * len(configurations)
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), one)

        folder = self.folder / "checkpoints"
        found = restore(folder, template, iteration, prefix=part, report=warnings.warn)
        agent, spec, task, seeds = made[-1]
        best = found.meta["best"] if part == "best" else None
        return Recorded(agent, found.state, spec, task, seeds, best)
