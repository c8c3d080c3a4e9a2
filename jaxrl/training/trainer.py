"""The iteration loop shared by all trainers, and evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import hyper
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.config import recorded, recorded_options, to_config
from jaxrl.counters import counter_add, counter_zero
from jaxrl.envs.absent import NoEnvironment
from jaxrl.envs.vector import VectorEnv
from jaxrl.errors import UsageError
from jaxrl.require import (
    INT32_MAX,
    require_choice,
    require_instance,
    require_integer,
)
from jaxrl.rng import require_key
from jaxrl.sharding import reducing_over, shard_count
from jaxrl.training.evaluate import Evaluation, evaluate
from jaxrl.training.sampling import check_source, check_split
from jaxrl.training.sizes import check_gradient_steps, require_divides
from jaxrl.types import Array, Key, Mode, PyTree, Spec, TrainState

INSTEAD = {
    "batches": "learns from batches of transitions; train it with OffPolicy or Offline, or give "
    "another agent, such as PPO",
    "rollouts": "learns from its own rollouts; train it with OnPolicy, or give another agent, such "
    "as SAC",
}


@struct.dataclass
class Trainer:
    """An agent, its vector environment, and a static schedule of iterations.

    A trainer is a frozen pytree like the agents: numbers are leaves, so ``vmap`` over trainers
    sweeps them. The constructor binds the agent to the environment's spec.

    Attributes:
        agent: the agent, wrapped or not.
        env: the vector environment.
        axis: the mesh axis over which the environments are sharded inside ``shard_map``, or None.

    Raises:
        UsageError: for an agent that learns from different data than the trainer provides, or that
            cannot work in the environment. Numbers and sizes are checked by ``check``, which
            ``init``, ``train`` and ``run`` call.
    """

    agent: Any
    env: VectorEnv = struct.field(pytree_node=False)
    axis: str | None = struct.field(pytree_node=False, default=None, kw_only=True)

    learns_from: ClassVar[str]
    plays: ClassVar[bool] = True  # whether training needs an environment, or only its spec
    validates: ClassVar[bool] = False  # whether it computes a validation loss of a Split
    unit: ClassVar[str] = "env_steps"  # the unit of a run's length

    def __post_init__(self) -> None:
        hyper.simplify(self)
        node = self.agent
        while node is not None:  # through all wrappers
            require_instance("agent", node)
            node = getattr(node, "agent", None)
        if isinstance(self.env, Spec) and not self.plays:
            absent: Any = NoEnvironment(self.env)
            object.__setattr__(self, "env", VectorEnv(absent, 1))
        if not isinstance(self.env, VectorEnv):
            name = type(self.env).__name__
            raise UsageError(f"env is a {name}; give a vector of them, as VectorEnv(env, 8)")
        if hasattr(self.agent, "bind"):  # not a placeholder that JAX uses in trees
            self._check_kind()
            hyper.check(self.agent, numbers=False)
            object.__setattr__(self, "agent", self.agent.bind(self.env.spec))

    def _check_kind(self) -> None:
        """Raise UsageError for an agent that learns from data this trainer does not provide."""
        found = protocol.learns_from(self.agent)
        if found != self.learns_from:
            raise UsageError(f"{type(protocol.innermost(self.agent)).__name__} {INSTEAD[found]}")

    # Sizes

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps per iteration, over all environments and shards."""
        raise AssertionError("a trainer defines its schedule")

    @property
    def gradient_steps_per_iteration(self) -> int:
        """Gradient steps per iteration."""
        raise AssertionError("a trainer defines its schedule")

    @property
    def units_per_iteration(self) -> int:
        """Steps per iteration, in the trainer's ``unit``."""
        steps = {
            "env_steps": self.steps_per_iteration,
            "gradient_steps": self.gradient_steps_per_iteration,
        }
        return steps[self.unit]

    @property
    def first_step(self) -> int:
        """Environment steps taken before the first iteration."""
        return 0

    @property
    def most_iterations(self) -> int:
        """The maximum number of iterations, so that no counter overflows."""
        return INT32_MAX

    @property
    def shares_environments(self) -> bool:
        """Whether a run benefits from distributing its environments over devices.

        Toy dynamics do not: summing gradients would cost more than it saves. Environments that
        already use all cores do not either, nor do batches of a few hundred rows.
        """
        env = self.env.env
        rollouts = self.learns_from == "rollouts"
        return rollouts and not (env.cheap or getattr(env, "threaded", False))

    @property
    def evaluates(self) -> bool:
        """Whether there is an environment to evaluate in."""
        return not isinstance(self.env.env, NoEnvironment)

    @property
    def sampling(self) -> Any:
        """The sampler in force; None for trainers that learn from rollouts."""
        return None

    def iterations(self, steps: int) -> int:
        """Return the iterations needed for at least ``steps`` steps in total, in the ``unit``.

        Raises:
            UsageError: if all are taken before the first iteration, or cannot be counted.
        """
        if steps <= self.first_step:
            raise UsageError(
                f"total_steps is {steps}, and {self.first_step} are made before the first update; "
                f"give more, such as {10 * max(self.first_step, 1)}"
            )
        found = -(-(steps - self.first_step) // self.units_per_iteration)
        if found > self.most_iterations:
            most = self.first_step + self.most_iterations * self.units_per_iteration
            raise UsageError(f"total_steps is {steps}; these sizes can count at most {most}")
        return found

    # Checks

    def check(self, shards: int = 1) -> None:
        """Raise UsageError for incompatible settings, before anything is compiled."""
        if jnp.result_type(float) == jnp.float64:
            raise UsageError(
                "jax_enable_x64 is on, and training is in float32; unset JAX_ENABLE_X64"
            )
        hyper.check_fields(self)
        if self.plays:
            require_divides("num_envs", self.env.num_envs, shards)
        check_gradient_steps(self)

    @property
    def needs_data(self) -> bool:
        """Whether batches are sampled from a dataset."""
        return bool(getattr(self.sampling, "needs_data", False))

    def check_data(self, data: PyTree) -> None:
        """Raise UsageError if the sampler needs a dataset and there is none, or vice versa.

        A dataset must match the environment's spec.
        """
        check_source(self.sampling or self, self.needs_data, data, self.env.spec)

    def check_learning(self, data: PyTree) -> None:
        """Raise UsageError for batches that the agent cannot learn from.

        ``run`` calls this before it writes anything; only shapes are traced.
        """

    def check_memory(self, members: int, devices: int) -> str | None:
        """Return a line about the replay memory that ``members`` runs need, if any.

        Raises:
            UsageError: if it cannot fit.
        """
        return None

    def config(self) -> dict[str, Any]:
        """Return everything that defines the run, except its seeds and length, as JSON.

        Raises:
            UsageError: for an environment with options that JSON cannot hold.
        """
        venv = self.env
        own = [f for f in dataclasses.fields(self) if f.name not in ("agent", "env", "axis")]
        fields = {field.name: recorded(getattr(self, field.name)) for field in own}
        return {
            "algorithm": type(protocol.innermost(self.agent)).__name__,
            "env": venv.env.name,
            "env_options": recorded_options(venv.env),
            "num_envs": venv.num_envs,
            "reset_mode": venv.reset_mode,
            "pool_size": venv.pool_size,
            "max_steps": venv.spec.max_steps,
            "agent": to_config(self.agent),
            "trainer": {"class": type(self).__name__} | fields,
        }

    # Training

    def start(self, key: Key, agent: PyTree, data: PyTree) -> TrainState:
        """Return the state before the first iteration; traced under the shard axis."""
        raise AssertionError("a trainer defines its first state")

    def advance(self, ts: TrainState, data: PyTree, index: Array) -> tuple[TrainState, m.Metrics]:
        """Run iteration ``index``, traced under the shard axis; metrics are this shard's only."""
        raise AssertionError("a trainer defines its iteration")

    def first_state(
        self, key: Key, agent: PyTree, env: PyTree, carry: PyTree, store: PyTree
    ) -> TrainState:
        """Return a state after ``first_step`` environment steps and no gradient steps."""
        env_steps = counter_add(counter_zero(), self.first_step)
        return TrainState(agent, env, carry, store, key, env_steps, counter_zero(), jnp.int32(0))

    def init(self, key: Key, data: PyTree = ()) -> TrainState:
        """Return the state before the first iteration.

        Raises:
            UsageError: for what cannot work together.
        """
        require_key(key)
        with reducing_over(self.axis):
            self.check(shard_count())
            self.check_data(data)
            agent_key, key = jax.random.split(key)
            return self.start(key, self.agent.init(agent_key), data)

    def continue_from(self, ts: TrainState, data: PyTree = ()) -> TrainState:
        """Return the first state of a phase that continues with another trainer's agent.

        The agent state, the key and the environment and gradient step counts are kept.
        Environments, carry, store and the iteration count start anew.
        """
        with reducing_over(self.axis):
            self.check(shard_count())
            self.check_data(data)
            start_key, key = jax.random.split(ts.key)
            fresh = self.start(start_key, ts.agent, data)
            return fresh._replace(
                key=key,
                env_steps=counter_add(ts.env_steps, self.first_step),
                gradient_steps=ts.gradient_steps,
            )

    def iteration(
        self, ts: TrainState, data: PyTree = (), index: Array | None = None
    ) -> tuple[TrainState, m.Metrics]:
        """Run one iteration. The metrics are scalars that can be combined (see ``jaxrl.metrics``).

        ``index`` counts this trainer's iterations from 0; the default is the state's count. Loops
        pass it separately: under ``vmap`` the state's count has a member axis, while ``index``
        stays a single number, so that the replay buffer is written in place.
        """
        with reducing_over(self.axis):
            index = ts.iterations if index is None else index
            ts, metrics = self.advance(ts, data, index)
            return ts, m.over_shards(metrics)

    def chunk(
        self,
        ts: TrainState,
        data: PyTree,
        iterations: Array | int,
        first: Array | None = None,
    ) -> tuple[TrainState, m.Metrics]:
        """Run ``iterations`` iterations and combine their metrics.

        ``iterations`` may be traced: one program serves chunks of every length. ``first`` is the
        number of iterations this trainer has already run; the default is the state's count.
        """
        start = ts.iterations if first is None else first
        # Under ``jit`` the body was already traced for the shapes and is not traced again.
        iteration = jax.jit(lambda ts, index: self.iteration(ts, data, index), inline=True)
        _, shapes = jax.eval_shape(iteration, ts, start)

        def body(i: Array, carry: tuple[TrainState, m.Metrics]) -> tuple[TrainState, m.Metrics]:
            ts, metrics = carry
            ts, new = iteration(ts, start + i)
            return ts, m.combine(metrics, new)

        return jax.lax.fori_loop(0, iterations, body, (ts, m.empty_like(shapes)))

    def train(self, key: Key, steps: int, data: PyTree = ()) -> tuple[TrainState, dict[str, Array]]:
        """Run at least ``steps`` steps as one function that can be jitted, vmapped and sharded.

        Steps are counted in the trainer's ``unit``. Returns the final state and every metric per
        iteration ``[I]``. Means are NaN where there was nothing to average, e.g. ``episode_return``
        before any episode has ended.

        Raises:
            UsageError: for anything ``run`` refuses too: incompatible settings, a run that does not
                fit in memory even once, or a ``steps`` that is not a whole number.
        """
        require_integer("steps", steps)
        check_split([self], data)
        with reducing_over(self.axis):
            self.check(shard_count())
        if self.axis is None:
            self.check_memory(1, 1)

        def body(ts: TrainState, index: Array) -> tuple[TrainState, dict[str, Array]]:
            ts, metrics = self.iteration(ts, data, index)
            return ts, m.values(metrics)

        return jax.lax.scan(body, self.init(key, data), jnp.arange(self.iterations(steps)))

    def evaluate(
        self, ts: TrainState, key: Key, episodes: int = 32, mode: Mode = "greedy"
    ) -> Evaluation:
        """Play ``episodes`` whole episodes of the current policy; equal keys give equal starts.

        Raises:
            UsageError: unless ``episodes`` is an integer of at least 1, ``key`` a typed key, and
                ``mode`` a known one.
        """
        require_integer("episodes", episodes)
        require_key(key)
        return self.evaluate_from(ts, jax.random.split(key, episodes), mode)

    def evaluate_from(self, ts: TrainState, keys: Key, mode: Mode = "greedy") -> Evaluation:
        """Play one episode from each of ``keys[E]``. Raises UsageError for an unknown ``mode``."""
        require_choice("mode", mode, Mode)
        limit = self.env.spec.max_steps
        return evaluate(self.agent, ts.agent, self.env.env, keys, mode, limit)
