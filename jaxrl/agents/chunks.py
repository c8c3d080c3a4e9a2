"""Action chunks: a policy predicts several actions at once, from the last few observations."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.agents import protocol
from jaxrl.chunked import chunked, pushed, repeated
from jaxrl.errors import UsageError
from jaxrl.hyper import bound, size
from jaxrl.metrics import Metrics
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class ChunksCarry(NamedTuple):
    """The memory for acting. Unused fields are ``()``."""

    agent: PyTree  # the inner agent's
    queue: PyTree  # [N, h, A], the upcoming actions, the next one first
    left: PyTree  # int32[N], the number of upcoming actions
    history: PyTree  # [N, n, *O], the last observations
    begun: PyTree  # bool[N], whether there has been an observation


@hyper.dataclass
class Chunks:
    """The inner agent predicts ``horizon`` actions at once; the first ``execute`` are played.

    (Chi et al. 2023, "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion"; Zhao et
    al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware".) It sees the
    last ``obs_horizon`` observations; steps before an episode's start repeat its first observation.

    It learns from windows of a dataset: ``Offline(Chunks(BC(), 8), env, sampler=Windows(8, 1))``.
    Steps after an episode's end are left out of the loss, and repeat the last action in the inner
    agent's input. A critic's reward is the discounted sum over the valid steps.

    A queue in the agent's memory holds the upcoming actions, and a new chunk replaces it when it is
    empty. Queues of different environments empty at different steps, so a chunk is computed at
    every step, but used only once in ``execute`` steps. Online, ``ChunkActions`` wraps the
    environment instead, and computes a chunk only when it is played.
    """

    batch_extras: ClassVar = ("valid", "observed")

    agent: Any
    horizon: int = size(8, help="actions that are predicted at once")
    execute: int | None = size(None, help="actions of each chunk that are played; default all")
    obs_horizon: int = size(1, help="observations that the policy sees, the newest included")
    spec: Spec | None = bound(None)

    def bind(self, spec: Spec) -> Chunks:
        """Return the wrapper of the inner agent, bound to whole chunks and histories.

        Raises:
            UsageError: for discrete actions, ``execute`` above ``horizon``, and an agent that
                cannot leave steps out of its loss, or is itself a wrapper.
        """
        kind = type(self.agent).__name__
        if hasattr(self.agent, "agent"):
            raise UsageError(
                f"Chunks wraps an algorithm itself, and this is a {kind}; wrap it in turn, as "
                f"{kind}(Chunks(agent))"
            )
        if not getattr(self.agent, "reads_valid", False):
            raise UsageError(
                f"Chunks needs an agent that leaves steps after an episode's end out of its loss, "
                f"which {kind} does not; give another, such as BC"
            )
        if self.played > self.horizon:
            raise UsageError(
                f"execute is {self.execute}, and horizon {self.horizon}; give at most "
                f"{self.horizon}"
            )
        protocol.require_methods(self.agent, "policy", ["errors"], "Gaussian")
        inner = self.agent.bind(chunked(spec, self.horizon, self.obs_horizon))
        return dataclasses.replace(self, agent=inner, spec=spec)

    @property
    def played(self) -> int:
        """The number of played actions per chunk."""
        return self.execute or self.horizon

    def init(self, key: Key) -> PyTree:
        """Return the inner agent's state."""
        return self.agent.init(key)

    # Learning

    def update(self, state: PyTree, batch: Batch, key: Key, *args: Any) -> tuple[PyTree, Metrics]:
        """The inner agent's update on windows ``[B, H, ...]``."""
        return self.agent.update(state, self.seen(batch), key, *args)

    def validation_loss(self, state: PyTree, batch: Batch, key: Key) -> Array:
        """Return the inner agent's loss on windows ``[B, H, ...]``."""
        return protocol.validation_loss(self.agent, state, self.seen(batch), key)

    def seen(self, batch: Batch) -> Batch:
        """Return windows ``[B, H, ...]`` as the inner agent sees them: each is one transition.

        Raises:
            UsageError: for window lengths other than ``horizon`` and ``obs_horizon``.
        """
        valid = batch.extras["valid"]
        found = valid.shape[1], batch.extras["observed"].shape[1]
        if found != (self.horizon, self.obs_horizon):
            raise UsageError(
                f"the batch's windows have {found[0]} actions and {found[1]} observations; the "
                f"agent needs sampler=Windows({self.horizon}, {self.obs_horizon})"
            )
        last = jnp.sum(valid, axis=1, keepdims=True) - 1
        index = jnp.minimum(jnp.arange(self.horizon), last)
        action = jnp.take_along_axis(batch.action, index[..., None], axis=1)
        rows, elements = valid.shape[0], action.shape[-1]
        discount = jnp.where(valid, batch.discount, 1.0)
        before = jnp.cumprod(jnp.concatenate([jnp.ones((rows, 1)), discount[:, :-1]], 1), 1)
        squeeze = partial(jax.tree.map, lambda x: x[:, 0] if self.obs_horizon == 1 else x)
        return Batch(
            obs=squeeze(batch.obs),
            action=action.reshape(rows, -1),
            reward=jnp.sum(jnp.where(valid, before * batch.reward, 0.0), axis=1),
            discount=jnp.prod(discount, axis=1),
            next_obs=squeeze(batch.next_obs),
            extras={"valid": jnp.repeat(valid, elements, axis=1)},
        )

    # Acting

    def init_carry(self, key: Key, n: int) -> ChunksCarry:
        """Return the memory ``[n, ...]`` for new episodes: empty queues."""
        assert self.spec is not None, "bind the agent before init_carry"
        queue: PyTree = ()
        history: PyTree = ()
        if self.played > 1:
            queue = jnp.zeros((n, self.played, *self.spec.action.shape))
        if self.obs_horizon > 1:
            one = jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), self.spec.observation)
            history = repeated(one, self.obs_horizon, axis=1)
        return ChunksCarry(
            agent=protocol.init_carry(self.agent, key, n),
            queue=queue,
            left=jnp.zeros(n, jnp.int32) if self.played > 1 else (),
            history=history,
            begun=jnp.zeros(n, bool) if self.obs_horizon > 1 else (),
        )

    def act(
        self, state: PyTree, carry: ChunksCarry, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, ChunksCarry, Extras]:
        """Return the next actions ``[N, A]`` from the queues, refilled where they are empty."""
        history = obs
        if self.obs_horizon > 1:
            begins = repeated(obs, self.obs_horizon, axis=1)
            history = pushed(carry.history, obs, self.obs_horizon, axis=1)
            history = _select(carry.begun, history, begins)
            carry = carry._replace(history=history, begun=jnp.ones_like(carry.begun))
        flat, inner, _ = self.agent.act(state, carry.agent, history, key, mode)
        chunk = flat.reshape(*flat.shape[:-1], self.horizon, -1)[..., : self.played, :]
        if self.played == 1:
            return chunk[..., 0, :], carry._replace(agent=inner), {}
        empty = carry.left == 0
        queue, inner = _select(empty, (chunk, inner), (carry.queue, carry.agent))
        left = jnp.where(empty, self.played, carry.left) - 1
        coming = jnp.roll(queue, -1, axis=1)
        return queue[:, 0], carry._replace(agent=inner, queue=coming, left=left), {}


def _select(where: Array, a: PyTree, b: PyTree) -> PyTree:
    """Return rows of ``a`` where ``where[N]`` is true, else rows of ``b``."""

    def pick(x: Array, y: Array) -> Array:
        return jnp.where(where.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(pick, a, b)
