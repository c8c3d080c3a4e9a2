"""Offline training: gradient steps on batches of a dataset."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.counters import counter_add
from jaxrl.data.dataset import Dataset, Split
from jaxrl.data.samplers import UniformDataset
from jaxrl.errors import UsageError
from jaxrl.hyper import size
from jaxrl.sharding import shard_count
from jaxrl.training.gradient_steps import gradient_steps
from jaxrl.training.sampling import sample, train_part
from jaxrl.training.sizes import check_batches, require_divides
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Key, PyTree, TrainState


@struct.dataclass
class Offline(Trainer):
    """Iterations of ``num_updates`` gradient steps on a dataset; environments are for evaluation.

    The dataset is the ``data`` argument of ``train``, ``iteration`` and ``run``. Without an
    environment, ``env`` is a ``Spec``, and nothing is evaluated.
    """

    batch_size: int = size(256, help="transitions per gradient step, over all shards")
    num_updates: int = size(64, help="gradient steps per iteration")
    sampler: Any = struct.field(pytree_node=False, default=UniformDataset())

    learns_from: ClassVar[str] = "batches"
    plays: ClassVar[bool] = False
    validates: ClassVar[bool] = True
    unit: ClassVar[str] = "gradient_steps"

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps per iteration: none."""
        return 0

    @property
    def gradient_steps_per_iteration(self) -> int:
        """``num_updates``."""
        return self.num_updates

    @property
    def sampling(self) -> Any:
        """The sampler in force."""
        return self.sampler

    def check(self, shards: int = 1) -> None:
        """Raise UsageError for sizes that do not fit each other."""
        Trainer.check(self, shards)
        self.sampler.check()
        if getattr(self.sampler, "needs_replay", False):
            name = type(self.sampler).__name__
            raise UsageError(
                f"{name} samples from a replay buffer, and Offline has none; give UniformDataset, "
                "or train with OffPolicy"
            )
        delay = protocol.policy_delay(self.agent) or 1
        if self.num_updates % delay:
            raise UsageError(
                f"num_updates is {self.num_updates}, and policy_delay {delay}; it must be a "
                f"multiple, as {-(-self.num_updates // delay) * delay}"
            )
        require_divides("batch_size", self.batch_size, shards)
        protocol.check(self.agent, self.batch_size // shards)

    def check_learning(self, data: PyTree) -> None:
        """Raise UsageError for batches that the agent cannot learn from; an iteration is traced."""

        def first(key: Key, data: PyTree) -> tuple[TrainState, m.Metrics]:
            return self.advance(self.start(key, self.agent.init(key), data), data, jnp.int32(0))

        jax.eval_shape(first, jax.random.key(0), data)

    def check_memory(self, members: int, devices: int) -> None:
        """Raise UsageError for batches of an iteration that cannot fit in memory."""
        check_batches(self, self.num_updates * self.batch_size, members, devices)

    def start(self, key: Key, agent: PyTree, data: PyTree) -> TrainState:
        """Start without environments. Agents with statistics compute them from the dataset once."""
        agent = protocol.observe_dataset(self.agent, agent, train_part(data))
        return self.first_state(key, agent, (), (), ())

    def advance(self, ts: TrainState, data: PyTree, index: Array) -> tuple[TrainState, m.Metrics]:
        """``num_updates`` gradient steps; with a ``Split``, a validation loss follows."""
        sample_key, update_key, key = jax.random.split(ts.key, 3)
        shape = (self.num_updates, self.batch_size // shard_count())
        batches = sample(self.agent, self.sampler, (), data, sample_key, shape)
        agent, metrics = gradient_steps(self.agent, ts.agent, batches, update_key)
        if isinstance(data, Split):
            metrics |= self._validate(agent, data.validation, update_key)
        ts = ts._replace(
            agent=agent,
            key=key,
            gradient_steps=counter_add(ts.gradient_steps, self.num_updates),
            iterations=ts.iterations + 1,
        )
        return ts, metrics

    def _validate(self, agent: PyTree, data: Dataset, key: Key) -> m.Metrics:
        """The loss on a batch sampled uniformly from the validation rows."""
        sample_key, loss_key = jax.random.split(jax.random.fold_in(key, 1))
        shape = (self.batch_size // shard_count(),)
        sampler = getattr(self.sampler, "uniform", UniformDataset)()
        batch = sample(self.agent, sampler, (), data, sample_key, shape)
        loss = protocol.validation_loss(self.agent, agent, batch, loss_key)
        return {"validation_loss": m.mean_of(loss)}
