"""On-policy training: rollouts and updates in turn."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.counters import counter_add
from jaxrl.errors import UsageError
from jaxrl.hyper import size
from jaxrl.memory import free_over, gib, nbytes
from jaxrl.training.rollout import report_nonfinite, rollout
from jaxrl.training.trainer import Trainer
from jaxrl.types import Array, Key, PyTree, TrainState


@struct.dataclass
class OnPolicy(Trainer):
    """Repeats a rollout of ``num_steps`` steps, ``agent.update`` on it, and ``agent.observe``."""

    num_steps: int = size(128, help="steps of every environment between two updates")

    learns_from: ClassVar[str] = "rollouts"

    @property
    def steps_per_iteration(self) -> int:
        """``num_steps * num_envs``."""
        return self.num_steps * self.env.num_envs

    @property
    def gradient_steps_per_iteration(self) -> int:
        """Gradient steps per update if the agent defines them, else 1."""
        return protocol.gradient_steps(self.agent)

    def check(self, shards: int = 1) -> None:
        """Raise UsageError for sizes that do not fit each other."""
        Trainer.check(self, shards)
        protocol.check(self.agent, self.steps_per_iteration // shards)

    def check_memory(self, members: int, devices: int) -> None:
        """Refuse rollouts that cannot fit in memory.

        Raises:
            UsageError: with the sizes, and a number of environments that fits.
        """
        total = free_over(devices)
        if total is None:
            return
        needed = members * self._rollout_bytes()
        if needed > total:
            fitting = max(int(0.8 * self.env.num_envs * total / needed), 1)
            raise UsageError(
                f"num_envs is {self.env.num_envs}, whose rollouts of {self.num_steps} steps need "
                f"{gib(needed)} for all members, and {gib(total)} are free; "
                f"{fitting} would fit, or a smaller num_steps"
            )

    def _rollout_bytes(self) -> int:
        """The memory of one rollout and of the fresh starts drawn for it, in bytes.

        Only shapes are traced. The environment's step is not, since tracing it may take long.
        """
        spec = self.env.spec

        def step() -> tuple:
            init, act, reset, key = jax.random.split(jax.random.key(0), 4)
            obs = jax.tree.map(lambda box: jnp.zeros((1, *box.shape), box.dtype), spec.observation)
            carry = protocol.init_carry(self.agent, act, 1)
            action, _, extras = self.agent.act(self.agent.init(init), carry, obs, act, "explore")
            fresh = self.env.env.reset(reset) if self.env.reset_mode == "fresh" else ()
            return obs, obs, action, extras, fresh, key, jnp.zeros(()), jnp.zeros((2,), bool)

        return self.num_steps * self.env.num_envs * nbytes(jax.eval_shape(step))

    def start(self, key: Key, agent: PyTree, data: PyTree) -> TrainState:
        """Fresh environments."""
        env_key, carry_key, key = jax.random.split(key, 3)
        carry = protocol.init_carry(self.agent, carry_key, self.env.local_envs)
        return self.first_state(key, agent, self.env.reset(env_key), carry, ())

    def advance(self, ts: TrainState, data: PyTree, index: Array) -> tuple[TrainState, m.Metrics]:
        """One rollout and one update."""
        rollout_key, update_key, key = jax.random.split(ts.key, 3)
        env, carry, transitions, episodes = rollout(
            self.agent, ts.agent, self.env, ts.env, ts.carry, rollout_key, self.num_steps
        )
        env, nonfinite = report_nonfinite(env)
        agent, metrics = self.agent.update(ts.agent, transitions, update_key)
        agent = protocol.observe(self.agent, agent, transitions)
        ts = ts._replace(
            agent=agent,
            env=env,
            carry=carry,
            key=key,
            env_steps=counter_add(ts.env_steps, self.steps_per_iteration),
            gradient_steps=counter_add(ts.gradient_steps, self.gradient_steps_per_iteration),
            iterations=ts.iterations + 1,
        )
        return ts, episodes | nonfinite | metrics
