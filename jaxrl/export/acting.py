"""A policy's actions as a function of lists of arrays, which every format supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxrl.agents import protocol
from jaxrl.envs.vector import rescale
from jaxrl.record.policy import Policy
from jaxrl.types import Array, Box, Key, Mode

# TensorFloat-32, a possible GPU default, has three digits; files must act alike everywhere.
PRECISION = "highest"


class Acting:
    """``action, carry = acting(obs, carry, key)`` for rows ``[B, ...]``, in the environment's
    units.

    ``obs`` is the list of arrays that ``boxes`` describes by name; ``carry`` is the list of the
    memory's arrays. Observations are named ``obs``; dictionary entries are named e.g.
    ``obs.state``.
    """

    def __init__(self, policy: Policy, mode: Mode) -> None:
        self.policy, self.mode = policy, mode
        self._state: Any = jax.tree.map(jnp.asarray, policy.state)  # vmap traces no numpy arrays
        observation = policy.spec.observation
        self.entries = tuple(observation) if isinstance(observation, dict) else ()
        self.boxes: dict[str, Box] = (
            {f"obs.{entry}": observation[entry] for entry in self.entries}
            if isinstance(observation, dict)
            else {"obs": observation}
        )
        memory = jax.eval_shape(lambda: self._start(jax.random.key(0), 1))
        self._memory: Any = jax.tree.structure(memory)

    @property
    def has_carry(self) -> bool:
        """Whether the agent has a memory, even if only for exploration."""
        return bool(self._memory.num_leaves)

    def __call__(
        self, obs: Sequence[Array], carry: Sequence[Any], key: Key
    ) -> tuple[Array, list[Any]]:
        """Return actions ``[B, *A]`` for ``obs[B, *O]``, and the memory for the next step."""
        given: Any = dict(zip(self.entries, obs, strict=True)) if self.entries else obs[0]
        memory = jax.tree.unflatten(self._memory, carry)
        policy = self.policy
        action, memory, _ = policy.agent.act(self._state, memory, given, key, self.mode)
        return rescale(policy.spec.action, action), jax.tree.leaves(memory)

    def start(self, key: Key, rows: Array) -> list[Any]:
        """Return the initial memory ``[B, ...]`` of episodes, one for each of ``rows[B]``."""
        return jax.tree.leaves(self._start(key, rows.shape[0]))

    def _start(self, key: Key, n: int) -> Any:
        return protocol.init_carry(self.policy.agent, key, n)

    def arguments(self, batch: Any) -> tuple[list[Any], list[Any], Any]:
        """Return shapes and dtypes of ``obs``, ``carry`` and ``key`` for ``batch`` rows."""
        obs = [
            jax.ShapeDtypeStruct((batch, *box.shape), jax.dtypes.canonicalize_dtype(box.dtype))
            for box in self.boxes.values()
        ]
        key = jax.eval_shape(lambda: jax.random.key(0))
        rows = jax.ShapeDtypeStruct((batch,), jnp.bool_)
        return obs, jax.eval_shape(self.start, key, rows), key

    def traced(self, batch: Any) -> Any:
        """Return the program as a ``ClosedJaxpr`` of the flat arguments, and its reads."""
        with jax.default_matmul_precision(PRECISION):
            return jax.make_jaxpr(self)(*self.arguments(batch))

    def reads(self) -> dict[str, bool]:
        """Return which observations the action or the next memory depends on, and ``memory``.

        ``memory`` says whether the action depends on the memory.
        """
        closed = self.traced(1)
        count, outputs = len(self.boxes), len(closed.jaxpr.outvars)
        _, action = partial_eval.dce_jaxpr(closed.jaxpr, [True] + [False] * (outputs - 1))
        _, every = partial_eval.dce_jaxpr(closed.jaxpr, [True] * outputs)
        names = dict(zip(self.boxes, every[:count], strict=True))
        return names | {"memory": any(action[count:-1])}
