"""Off-policy training: steps fill a replay buffer, gradient steps use batches sampled from it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.counters import counter_add
from jaxrl.data.replay import Precision, Replay, ReplayBuffer, check_memory
from jaxrl.data.samplers import UniformReplay
from jaxrl.envs.vector import VectorState
from jaxrl.errors import UsageError
from jaxrl.hyper import choice, size
from jaxrl.memory import gib
from jaxrl.require import INT32_MAX
from jaxrl.rng import row_key
from jaxrl.sharding import shard_count
from jaxrl.training.gradient_steps import gradient_steps
from jaxrl.training.rollout import exploring, play, report_nonfinite
from jaxrl.training.sampling import sample, train_part
from jaxrl.training.schedule import Schedule
from jaxrl.training.sizes import check_batches, require_divides
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Batch, Discrete, Extras, Key, PyTree, TrainState, Transition

Warmup = Literal["uniform", "agent"]


@struct.dataclass
class OffPolicy(Trainer):
    """Cycles of ``num_steps`` steps in every environment and ``num_updates`` gradient steps.

    One environment, ``num_steps=1`` and ``num_updates=1`` give the schedule of the papers;
    thousands of environments and large batches give the massively parallel one. If the actor is
    updated less often than the critics (``policy_delay``), ``num_updates`` must be a multiple of
    the delay or divide it.

    The default ``sampler`` (``jaxrl.data.samplers``) is uniform over the replay buffer and uses
    ``n_step``. A custom sampler defines how many rewards it sums.
    """

    buffer_size: int = size(
        1_000_000, help="transitions in the replay buffer, rounded up to whole cycles"
    )
    batch_size: int = size(256, help="transitions per gradient step, over all shards")
    learning_starts: int = size(
        5_000, help="transitions before the first gradient step, rounded up to whole cycles"
    )
    warmup_policy: Warmup = choice(
        "uniform", Warmup, help="policy before learning starts: uniform or the agent's current one"
    )
    num_steps: int = size(1, help="steps of every environment per cycle")
    num_updates: int = size(1, help="gradient steps per cycle")
    cycles: int | None = size(
        None, help="cycles per iteration; by default its random numbers fit in a cache"
    )
    n_step: int = size(1, help="n of n-step returns: rewards summed before the bootstrap")
    precision: Precision = choice(
        "full", Precision, help="half stores the buffer's observations in 16 bits"
    )
    sampler: Any = struct.field(pytree_node=False, default=None)

    learns_from: ClassVar[str] = "batches"

    @property
    def schedule(self) -> Schedule:
        """The static schedule."""
        return Schedule(
            num_envs=self.env.num_envs,
            num_steps=self.num_steps,
            num_updates=self.num_updates,
            batch_size=self.batch_size,
            policy_delay=protocol.policy_delay(self.agent) or 1,
            cycles=self.cycles,
            learning_starts=self.learning_starts,
        )

    @property
    def buffer(self) -> ReplayBuffer:
        """The replay buffer's dimensions."""
        return ReplayBuffer(self.schedule.slots(self.buffer_size), self.precision)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps per iteration."""
        return self.schedule.steps * self.env.num_envs

    @property
    def gradient_steps_per_iteration(self) -> int:
        """Gradient steps per iteration."""
        return self.schedule.gradient_steps

    @property
    def first_step(self) -> int:
        """Environment steps before the first gradient step."""
        return self.schedule.warmup_steps * self.env.num_envs

    @property
    def most_iterations(self) -> int:
        """The maximum number of iterations: steps per environment are counted in 32 bits."""
        return (INT32_MAX - self.schedule.warmup_steps) // self.schedule.steps

    @property
    def sampling(self) -> Any:
        """The sampler in force."""
        if self.sampler is not None:
            return self.sampler
        return UniformReplay(self.n_step, protocol.batch_extras(self.agent))

    def check(self, shards: int = 1) -> None:
        """Raise UsageError for sizes that do not fit each other."""
        Trainer.check(self, shards)
        self.sampling.check()
        self.schedule.check()
        if self.sampler is not None and self.n_step > 1:
            name = type(self.sampler).__name__
            raise UsageError(
                f"n_step is {self.n_step}, and {name} says itself how many rewards it sums; "
                "leave n_step out, and give the sampler its own"
            )
        n_step = getattr(self.sampling, "n_step", 1)
        least = n_step * self.env.num_envs
        if self.first_step < least:
            raise UsageError(
                f"learning_starts is {self.learning_starts}; n_step {n_step} needs {least}"
            )
        if self.buffer_size < self.first_step:
            raise UsageError(
                f"buffer_size is {self.buffer_size}, less than the {self.first_step} transitions "
                "before learning starts; give at least that"
            )
        require_divides("batch_size", self.batch_size, shards)
        protocol.check(self.agent, self.batch_size // shards)

    def check_learning(self, data: PyTree) -> None:
        """Raise UsageError for batches that the agent cannot learn from; one is traced.

        The environment is not: its spec has the shapes of the transitions.
        """
        n, spec = self.env.num_envs, self.env.spec

        def rows(shape: tuple[int, ...], dtype: Any) -> Any:
            return jax.ShapeDtypeStruct((n, *shape), dtype)

        obs = jax.tree.map(lambda box: rows(box.shape, box.dtype), spec.observation)
        action = rows(spec.action.shape, spec.action.dtype)
        reward, flags = rows((), jnp.float32), rows((), bool)
        like = Transition(obs, action, reward, obs, flags, flags, {})

        def batch(key: Key, data: PyTree) -> Batch:
            store = Replay(self.buffer, self.buffer.empty(like), jnp.int32(0))
            return sample(self.agent, self.sampling, store, data, key, (1, self.batch_size))

        jax.eval_shape(batch, jax.random.key(0), data)

    def check_memory(self, members: int, devices: int) -> str:
        """Return a line about the replay buffers' memory.

        Raises:
            UsageError: if they, or the batches of a cycle, cannot fit.
        """
        needed = members * self.buffer.nbytes(self._example())
        check_memory(needed, self.buffer_size, devices)
        schedule = self.schedule
        check_batches(self, schedule.merged * self.num_updates * self.batch_size, members, devices)
        return f"replay buffers: {members} x {self.buffer_size:,} transitions in {gib(needed)}"

    def _example(self) -> Any:
        """The shapes of the transitions of one step, ``[N, ...]``."""

        def one(key: Key) -> Transition:
            env_key, pool_key, play_key = jax.random.split(key, 3)
            env, pool = self.env.reset(env_key), self.env.reset_pool(pool_key)
            _, _, transitions, _ = play(
                self._uniform, self.agent, self.env, env, (), play_key, 1, pool
            )
            return jax.tree.map(lambda x: x[0], transitions._replace(carry=()))

        return jax.eval_shape(one, jax.random.key(0))

    def iterations(self, steps: int) -> int:
        """Return the iterations needed for at least ``steps`` environment steps, including warm-up.

        Raises:
            UsageError: if the warm-up alone takes that many.
        """
        if steps <= self.first_step:
            raise UsageError(
                f"total_steps is {steps}, and {self.first_step} are made before learning starts; "
                f"give more, such as {10 * self.first_step}, or a smaller learning_starts"
            )
        return Trainer.iterations(self, steps)

    # Training

    def start(self, key: Key, agent: PyTree, data: PyTree) -> TrainState:
        """Fresh environments, and a buffer filled with the warm-up transitions.

        Agents with empty statistics compute them from the dataset, if there is one.
        """
        if self.needs_data:
            agent = protocol.observe_dataset(self.agent, agent, train_part(data))
        env_key, carry_key, warmup_key, key = jax.random.split(key, 4)
        env = self.env.reset(env_key)
        carry = protocol.init_carry(self.agent, carry_key, self.env.local_envs)
        rows = self.buffer.empty(self._example())
        running = self._warm_up((agent, env, carry, rows), warmup_key)
        return self.first_state(key, *running)

    def _warm_up(self, running: tuple, key: Key) -> tuple:
        """Fill the buffer, one rollout after another."""
        count, steps = self.schedule.warmup

        def piece(running: tuple, x: tuple[Key, Array]) -> tuple[tuple, None]:
            (agent, env, carry, rows), ((pool_key, play_key), written) = running, x
            pool = self.env.reset_pool(pool_key)
            explores = self.warmup_policy == "agent"
            act = exploring(self.agent, agent) if explores else self._uniform
            env, carry, transitions, _ = play(
                act, self.agent, self.env, env, carry, play_key, steps, pool
            )
            rows = self.buffer.write(rows, transitions, written)
            return (protocol.observe(self.agent, agent, transitions), env, carry, rows), None

        # A plain scan: only one rollout's draws are in memory at a time.
        xs = (jax.random.split(key, (count, 2)), jnp.arange(count) * steps)
        return jax.lax.scan(piece, running, xs)[0]

    def _uniform(self, carry: PyTree, obs: PyTree, key: Key) -> tuple[Array, PyTree, Extras]:
        """Act uniformly at random in every environment; the signature is what a rollout expects."""
        space, n = self.env.spec.action, self.env.local_envs
        if isinstance(space, Discrete):
            return jax.random.randint(row_key(key), (n,), 0, space.n), carry, {}
        shape = (n, *space.shape)
        return jax.random.uniform(row_key(key), shape, minval=-1.0), carry, {}

    def advance(self, ts: TrainState, data: PyTree, index: Array) -> tuple[TrainState, m.Metrics]:
        """Run the cycles: each acts, writes, samples and learns."""
        schedule = self.schedule
        pool_key, cycle_key, key = jax.random.split(ts.key, 3)
        pool = self.env.reset_pool(pool_key)
        written = schedule.warmup_steps + index * schedule.steps
        written = written + jnp.arange(schedule.blocks) * schedule.block

        def cycle(keys: Key, running: tuple, written: Array) -> tuple[tuple, m.Metrics]:
            return self._cycle(keys, running, written, data, pool)

        running = (ts.agent, ts.env, ts.carry, ts.store)
        keys = jax.random.split(cycle_key, (schedule.blocks, 3))
        (agent, env, carry, rows), metrics = m.scan(cycle, running, keys, written)
        env, nonfinite = report_nonfinite(env)
        ts = ts._replace(
            agent=agent,
            env=env,
            carry=carry,
            store=rows,
            key=key,
            env_steps=counter_add(ts.env_steps, self.steps_per_iteration),
            gradient_steps=counter_add(ts.gradient_steps, schedule.gradient_steps),
            iterations=ts.iterations + 1,
        )
        return ts, metrics | nonfinite

    def _cycle(
        self, keys: Key, running: tuple, written: Array, data: PyTree, pool: PyTree
    ) -> tuple[tuple[PyTree, VectorState, PyTree, Transition], m.Metrics]:
        agent, env, carry, rows = running
        schedule = self.schedule
        play_key, sample_key, update_key = keys
        env, carry, transitions, metrics = play(
            exploring(self.agent, agent),
            self.agent,
            self.env,
            env,
            carry,
            play_key,
            schedule.block,
            pool,
        )
        rows = self.buffer.write(rows, transitions, written)
        store = Replay(self.buffer, rows, written + schedule.block)
        shape = (self.num_updates * schedule.merged, self.batch_size // shard_count())
        batches = sample(self.agent, self.sampling, store, data, sample_key, shape)
        agent, learnt = gradient_steps(self.agent, agent, batches, update_key)
        agent = protocol.observe(self.agent, agent, transitions)
        return (agent, env, carry, rows), metrics | learnt
