"""What all trainers share: the loop over iterations, and evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import hyper
from jaxrl import metrics as m
from jaxrl.envs.vector import VectorEnv
from jaxrl.errors import UsageError
from jaxrl.sharding import reducing_over
from jaxrl.training.evaluate import Evaluation, evaluate
from jaxrl.types import Array, Key, Mode, TrainState


@struct.dataclass
class Trainer:
    """An agent, its vector environment, and a static schedule: one ``iteration`` after another.

    A frozen pytree like the agents: numbers are leaves, so ``vmap`` over trainers sweeps them.

    Attributes:
        agent: the agent, wrapped or not.
        env: the vector environment.
        axis: the mesh axis over which the environments are sharded inside ``shard_map``, or None.
    """

    agent: Any
    env: VectorEnv = struct.field(pytree_node=False)
    axis: str | None = struct.field(pytree_node=False, default=None, kw_only=True)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one iteration, over all environments and shards."""
        raise AssertionError("a trainer defines its schedule")

    @property
    def updates_per_iteration(self) -> int:
        """Calls of ``agent.update``, or gradient steps where one call makes a known number."""
        return 1

    @property
    def first_step(self) -> int:
        """Environment steps that are made before the first iteration."""
        return 0

    @property
    def shares_environments(self) -> bool:
        """Whether a run gains by sharing its environments out over devices.

        Those of toy dynamics do not, whose gradient sums would cost more than they save, nor those
        that use all cores by themselves.
        """
        env = self.env.env
        return not (env.cheap or getattr(env, "threaded", False))

    def check_memory(self, members: int, devices: int) -> str | None:
        """What so many runs ask for beside networks and environments, in words, if anything.

        Raises:
            UsageError: if it cannot fit.
        """
        return None

    def start(self, key: Key) -> TrainState:
        """The state before the first iteration, traced under the shards' axis."""
        raise AssertionError("a trainer defines its first state")

    def advance(self, ts: TrainState, index: Array) -> tuple[TrainState, m.Metrics]:
        """Iteration ``index``, traced under the shards' axis; metrics of this shard alone."""
        raise AssertionError("a trainer defines its iteration")

    def check(self, shards: int = 1) -> None:
        """Raise UsageError for what cannot work together, before anything is compiled."""
        if jnp.result_type(float) == jnp.float64:
            raise UsageError(
                "jax_enable_x64 is on, and training is in float32; unset JAX_ENABLE_X64"
            )
        if self.env.num_envs % shards:
            raise UsageError(
                f"num_envs is {self.env.num_envs}, which does not divide over {shards} devices; "
                f"{-(-self.env.num_envs // shards) * shards} would"
            )

    def config(self) -> dict[str, Any]:
        """Everything that defines the run but its seeds and length, as JSON."""
        venv, inner = self.env, self.agent
        while hasattr(inner, "agent"):
            inner = inner.agent
        own = [f.name for f in dataclasses.fields(self) if f.name not in ("agent", "env", "axis")]
        return {
            "algorithm": type(inner).__name__,
            "env": venv.env.name,
            "env_options": dict(getattr(venv.env, "options", {})),
            "num_envs": venv.num_envs,
            "resets": venv.policy,
            "bank_size": venv.bank_size,
            "max_steps": venv.spec.max_steps,
            "agent": hyper.to_config(self.agent),
            "trainer": {"class": type(self).__name__} | {name: getattr(self, name) for name in own},
        }

    def init(self, key: Key) -> TrainState:
        """The state before the first iteration."""
        with reducing_over(self.axis):
            return self.start(key)

    def iteration(self, ts: TrainState, index: Array | None = None) -> tuple[TrainState, m.Metrics]:
        """One iteration. The metrics are scalars that add up (see ``jaxrl.metrics``).

        ``index`` counts iterations from 0, as ``ts.updates`` does. Loops give it beside the state:
        under ``vmap`` the state's has an axis of members, and theirs stays one number for all.
        """
        with reducing_over(self.axis):
            ts, metrics = self.advance(ts, ts.updates if index is None else index)
            return ts, m.over_shards(metrics)

    def iterations(self, steps: int) -> int:
        """The number of iterations that make at least ``steps`` environment steps in all.

        Raises:
            UsageError: if so many are made before the first iteration.
        """
        if steps <= self.first_step:
            raise UsageError(
                f"total_steps is {steps}, and {self.first_step} are made before the first update; "
                f"give more, such as {10 * self.first_step}"
            )
        return -(-(steps - self.first_step) // self.steps_per_iteration)

    def chunk(
        self, ts: TrainState, iterations: Array | int, first: Array | None = None
    ) -> tuple[TrainState, m.Metrics]:
        """Some iterations, with their metrics reduced to one.

        ``iterations`` may be traced: one program serves chunks of every length. ``first`` is the
        number of iterations done; default the state's.
        """
        start = ts.updates if first is None else first
        # Under ``jit`` the loop's body is what was traced for the shapes, and not traced again.
        iteration = jax.jit(lambda ts, index: self.iteration(ts, index), inline=True)
        _, shapes = jax.eval_shape(iteration, ts, start)

        def body(i: Array, carry: tuple[TrainState, m.Metrics]) -> tuple[TrainState, m.Metrics]:
            ts, metrics = carry
            ts, new = iteration(ts, start + i)
            return ts, m.combine(metrics, new)

        return jax.lax.fori_loop(0, iterations, body, (ts, m.empty_like(shapes)))

    def train(self, key: Key, steps: int) -> tuple[TrainState, dict[str, Array]]:
        """A whole run of at least ``steps`` environment steps: one function to jit, vmap and shard.

        Returns the final state and every metric per iteration ``[I]``; means are NaN where there
        was nothing to average, as ``episode_return`` before any episode has ended.
        """

        def body(ts: TrainState, index: Array) -> tuple[TrainState, dict[str, Array]]:
            ts, metrics = self.iteration(ts, index)
            return ts, m.values(metrics)

        return jax.lax.scan(body, self.init(key), jnp.arange(self.iterations(steps)))

    def evaluate(
        self, ts: TrainState, key: Key, episodes: int = 32, mode: Mode = "greedy"
    ) -> Evaluation:
        """``episodes`` whole episodes of the current policy; equal keys give equal starts."""
        return self.evaluate_from(ts, jax.random.split(key, episodes), mode)

    def evaluate_from(self, ts: TrainState, keys: Key, mode: Mode = "greedy") -> Evaluation:
        """One episode from each of ``keys[E]``."""
        limit = self.env.spec.max_steps
        return evaluate(self.agent, ts.agent, self.env.env, keys, mode, limit)
