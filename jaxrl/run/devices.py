"""The programs of a run on the devices of its placement. Algorithms are unaware of this.

The members of a run (configurations x seeds) are spread over devices first, which needs no
communication. The remaining devices share each member's environments, which only requires summing
gradients and statistics. Within a device the members run under one ``vmap``; on a CPU, members with
large gradient steps are trained one after another instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxrl import hyper
from jaxrl.agents import protocol
from jaxrl.memory import nbytes
from jaxrl.metrics import Metrics
from jaxrl.run.placement import MEMBER, SHARD, Placement
from jaxrl.training.evaluate import Evaluation
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Key, Mode, PyTree, TrainState

_MEMBER: Any = P(MEMBER)

# Batch rows x agent bytes. With TD3 and batches of 256, taking turns gains nothing at 64x64 (70
# MB), and 8 % at 128x128 (240 MB).
LARGE = 120_000_000

# The mesh axes for the leading axes of a stacked TrainState.
STATE = TrainState(
    agent=P(MEMBER),
    env=P(MEMBER, SHARD),
    carry=P(MEMBER, SHARD),
    store=P(MEMBER, None, SHARD),
    key=_MEMBER,
    env_steps=_MEMBER,
    gradient_steps=_MEMBER,
    iterations=_MEMBER,
)


class Compiled(NamedTuple):
    """The programs of a run, ready to call."""

    chunk: Callable[..., tuple[TrainState, Metrics]]
    evaluate: Callable[..., Evaluation] | None = None  # None without an environment


@dataclasses.dataclass(frozen=True)
class Programs:
    """The functions of a phase over all members, ready to be jitted.

    ``sweep`` is ``{hyper-parameter: [M]}``, the swept values of every member; ``keys`` are ``[M]``.
    ``data`` is one dataset for all members and devices, or ``()``.
    """

    trainer: Trainer
    placement: Placement
    eval_mode: Mode = "greedy"

    def place(self, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """Return ``f`` over the placement's devices, with arguments split by ``in_specs``."""
        if self.placement.members * self.placement.shards == 1:
            return f
        mesh = self.placement.mesh
        return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _member(self, sweep: dict[str, Array]) -> Trainer:
        trainer = hyper.replace(self.trainer, sweep)
        return dataclasses.replace(trainer, axis=SHARD if self.placement.shards > 1 else None)

    def takes_turns(self, ts: TrainState) -> bool:
        """Return whether the members of a device are trained one after another.

        A CPU multiplies one pair of large matrices faster than a batch of several pairs, and one
        member's networks stay in the cache. Environments are stepped faster together, so taking
        turns requires a gradient step for each environment step.
        """
        trainer = self.trainer
        rows = getattr(trainer, "batch_size", 0)  # for trainers that learn from batches
        work = rows * nbytes(ts.agent) // ts.key.shape[0]
        steps = trainer.steps_per_iteration // trainer.env.num_envs
        learns = trainer.gradient_steps_per_iteration >= steps and work >= LARGE
        return learns and jax.default_backend() == "cpu"

    def init(
        self, sweep: dict[str, Array], keys: Key, data: PyTree = (), policies: PyTree = ()
    ) -> TrainState:
        """Return the initial states ``[M, ...]``, starting from ``policies[M, ...]`` if given.

        Given policies are treated as the result of an earlier phase of zero steps.
        """

        def start(sweep: dict[str, Array], key: Key, policy: PyTree, data: PyTree) -> TrainState:
            trainer = self._member(sweep)
            ts = trainer.init(key, data)
            if not jax.tree.leaves(policy):
                return ts
            agent = protocol.with_policy(trainer.agent, ts.agent, policy)
            before = ts._replace(agent=agent, env_steps=jnp.zeros_like(ts.env_steps))
            return trainer.continue_from(before, data)

        specs = (P(MEMBER), P(MEMBER), P(MEMBER), P())
        place = self.place(over_members(start, shared=1), specs, STATE)
        return place(sweep, keys, policies, data)

    def continue_from(
        self, sweep: dict[str, Array], ts: TrainState, data: PyTree = ()
    ) -> TrainState:
        """Return the first states of this phase, given the last states of the previous phase."""

        def go_on(sweep: dict[str, Array], ts: TrainState, data: PyTree) -> TrainState:
            return self._member(sweep).continue_from(ts, data)

        specs = (P(MEMBER), STATE, P())
        place = self.place(over_members(go_on, shared=1), specs, STATE)
        return place(sweep, ts, data)

    def chunk(
        self,
        sweep: dict[str, Array],
        ts: TrainState,
        data: PyTree,
        iterations: Array | int,
        first: Array | int,
    ) -> tuple[TrainState, Metrics]:
        """Train every member for ``iterations``; return states and metrics ``[M, ...]``.

        ``first`` is the number of iterations the phase has already run.
        """

        def advance(
            ts: TrainState, sweep: dict[str, Array], data: PyTree, iterations: Array, first: Array
        ) -> tuple[TrainState, Metrics]:
            return self._member(sweep).chunk(ts, data, iterations, first)

        over = in_turn if self.takes_turns(ts) else over_members
        specs = (STATE, P(MEMBER), P(), P(), P())
        place = self.place(over(advance, shared=3), specs, (STATE, P(MEMBER)))
        return place(ts, sweep, data, iterations, first)

    def evaluate(self, sweep: dict[str, Array], ts: TrainState, keys: Key) -> Evaluation:
        """Run episodes in ``eval_mode`` from the same ``keys[E]`` for every member: ``[M, E]``.

        The episodes are spread over the shards if their number divides evenly.
        """

        def play(sweep: dict[str, Array], ts: TrainState, keys: Key) -> Evaluation:
            return self._member(sweep).evaluate_from(ts, keys, self.eval_mode)

        split = SHARD if keys.shape[0] % self.placement.shards == 0 else None
        specs = (P(MEMBER), STATE, P(split))
        place = self.place(over_members(play, shared=1), specs, P(MEMBER, split))
        return place(sweep, ts, keys)

    def compiled(
        self, sweep: dict[str, Array], ts: TrainState, data: PyTree, keys: Key
    ) -> Compiled:
        """Compile ``chunk`` and ``evaluate`` in parallel, for arguments like these."""
        count = jnp.int32(0)
        lowered = [jax.jit(self.chunk, donate_argnums=1).lower(sweep, ts, data, count, count)]
        if self.trainer.evaluates:
            lowered.append(jax.jit(self.evaluate).lower(sweep, ts, keys))
        with ThreadPoolExecutor(len(lowered)) as pool:
            return Compiled(*pool.map(lambda program: program.compile(), lowered))

    def put(self, ts: TrainState) -> TrainState:
        """Put a state from the host onto the devices, as the programs expect it."""
        put = self.placement.put
        return TrainState(*(put(part, spec) for part, spec in zip(ts, STATE, strict=True)))

    def put_policies(self, policies: PyTree) -> PyTree:
        """Put policies ``[M, ...]`` from the host onto the devices of their members."""
        return self.placement.put(policies, STATE.agent)

    def put_data(self, data: PyTree) -> PyTree:
        """Put a dataset onto the devices: one copy on each, shared by all members."""
        return self.placement.put(data, P())


def in_turn(f: Callable, shared: int = 0) -> Callable:
    """Return ``f(state, ...) -> (state, metrics)`` over members, one after another.

    The last ``shared`` arguments are the same for all. Every member's result is bit-identical to
    training it alone, and its state is updated in place.
    """

    def run(states: PyTree, *args: PyTree) -> PyTree:
        own, same = args[: len(args) - shared], args[len(args) - shared :]
        members = jax.tree.leaves(states)[0].shape[0]
        if members == 1:
            return over_members(f, shared)(states, *args)

        def one(states: PyTree, i: Array | int) -> PyTree:
            state, *mine = jax.tree.map(lambda x: x[i], (states, *own))
            return f(state, *mine, *same)

        def body(i: Array, carry: PyTree) -> PyTree:
            return jax.tree.map(lambda x, new: x.at[i].set(new), carry, one(carry[0], i))

        _, like = jax.eval_shape(one, states, 0)
        metrics = jax.tree.map(lambda x: jnp.zeros((members, *x.shape), x.dtype), like)
        return jax.lax.fori_loop(0, members, body, (states, metrics))

    return run


def over_members(f: Callable, shared: int = 0) -> Callable:
    """Return the ``vmap`` of ``f``; its last ``shared`` arguments are the same for all members.

    A single member runs without ``vmap``: a batch of one is a different, slower program.
    """

    def run(*args: PyTree) -> PyTree:
        own, same = args[: len(args) - shared], args[len(args) - shared :]
        if jax.tree.leaves(own)[0].shape[0] == 1:
            one = jax.tree.map(lambda x: x[0], own)
            return jax.tree.map(lambda x: x[None], f(*one, *same))
        return jax.vmap(f, in_axes=(0,) * len(own) + (None,) * shared)(*args)

    return run
