"""Behaviour cloning: imitate the actions of a dataset."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl import hyper, optim
from jaxrl.agents import protocol
from jaxrl.hyper import number, part
from jaxrl.metrics import Metrics
from jaxrl.nn.policies import AutoPolicy
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class BCState(NamedTuple):
    """The trained policy, and the moving average of its parameters; () without ``ema_decay``."""

    policy: Trained
    ema: PyTree = ()


@hyper.dataclass
class BC:
    """Behaviour cloning with any policy family; the family defines the loss.

    Families with a density maximise the likelihood of the dataset's actions, ``Deterministic``
    minimises squared errors, and denoising families learn to predict what was added to an action.

    With ``ema_decay``, acting and validation use an exponential moving average of the parameters:
    ``ema <- decay ema + (1 - decay) params`` after every gradient step.

    Action elements that a batch's extra ``valid`` marks false are left out of the loss.
    """

    learns_from: ClassVar = "batches"
    imitates: ClassVar = ("policy",)
    policy_at: ClassVar = ("policy.params",)
    reads_valid: ClassVar = True

    policy: Any = part(AutoPolicy(), help="policy family")
    optimizer: Any = part(Adam(), help="optimiser")
    learning_rate: float = number(3e-4, above=0, help="step size")
    ema_decay: float | None = number(
        None, 0, 1, help="decay of a moving average of the policy, which then acts; None has none"
    )

    def bind(self, spec: Spec) -> BC:
        """Return the agent for ``spec``. Raises UsageError if the policy does."""
        protocol.require_methods(self, "policy", ["sample", "mode", "fit_loss"], "Gaussian")
        return dataclasses.replace(self, policy=self.policy.bind(spec))

    def init(self, key: Key) -> BCState:
        """Return a fresh policy."""
        params = self.policy.init(key)
        ema = () if self.ema_decay is None else jax.tree.map(jnp.copy, params)
        return BCState(self.optimizer.start(params), ema)

    def policy_loss(self, params: PyTree, batch: Batch, key: Key) -> tuple[Array, None]:
        """The mean of the family's ``fit_loss`` over ``[B]``.

        With an extra ``valid[B, A]`` or ``[B]``, only valid elements are summed.
        """
        valid = batch.extras.get("valid")
        if valid is None:
            return jnp.mean(self.policy.fit_loss(params, batch.obs, batch.action, key)), None
        errors = self.policy.errors(params, batch.obs, batch.action, key)
        valid = valid.reshape(*valid.shape, *[1] * (errors.ndim - valid.ndim))
        return jnp.sum(jnp.where(valid, errors, 0.0)) / valid[..., 0].size, None

    def validation_loss(self, state: BCState, batch: Batch, key: Key) -> Array:
        """Return the loss, without dropout, on ``[B]`` rows that the agent does not learn from."""
        agent = self
        if getattr(self.policy, "dropout", None) is not None:
            agent = dataclasses.replace(self, policy=dataclasses.replace(self.policy, dropout=None))
        return agent.policy_loss(self.acting(state), batch, key)[0]

    def acting(self, state: BCState) -> PyTree:
        """Return the parameters that act: the moving average, if there is one."""
        return state.policy.params if self.ema_decay is None else state.ema

    def update(self, state: BCState, batch: Batch, key: Key) -> tuple[BCState, Metrics]:
        """One gradient step on ``[B]``."""
        policy, _, metrics = self.optimizer.minimize(
            self.policy_loss, state.policy, self.learning_rate, batch, key
        )
        if self.ema_decay is None:
            return BCState(policy), metrics
        return BCState(policy, optim.polyak(state.ema, policy.params, 1 - self.ema_decay)), metrics

    def act(
        self, state: BCState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return an action ``[..., *A]`` (a sample; the mode if ``greedy``), carry and extras."""
        if mode == "greedy":
            return self.policy.mode(self.acting(state), obs, key), carry, {}
        return self.policy.sample(self.acting(state), obs, key)[0], carry, {}
