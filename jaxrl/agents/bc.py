"""Behaviour cloning: imitate the actions of a dataset."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.agents import protocol
from jaxrl.hyper import number, part
from jaxrl.metrics import Metrics
from jaxrl.nn.policies import AutoPolicy
from jaxrl.optim import Adam, Trained
from jaxrl.types import Array, Batch, Extras, Key, Mode, PyTree, Spec


class BCState(NamedTuple):
    """The trained policy."""

    policy: Trained


@hyper.dataclass
class BC:
    """Behaviour cloning with any policy family; the family defines the loss.

    Families with a density maximise the likelihood of the dataset's actions, ``Deterministic``
    minimises squared errors.
    """

    learns_from: ClassVar = "batches"
    policy_at: ClassVar = ("policy.params",)

    policy: Any = part(AutoPolicy(), help="policy family")
    optimizer: Any = part(Adam(), help="optimiser")
    learning_rate: float = number(3e-4, above=0, help="step size")

    def bind(self, spec: Spec) -> BC:
        """Return the agent for ``spec``. Raises UsageError as the policy does."""
        protocol.require_methods(self, "policy", ["sample", "mode", "fit_loss"], "Gaussian")
        return dataclasses.replace(self, policy=self.policy.bind(spec))

    def init(self, key: Key) -> BCState:
        """Return a fresh policy."""
        return BCState(self.optimizer.start(self.policy.init(key)))

    def policy_loss(self, params: PyTree, batch: Batch, key: Key) -> tuple[Array, None]:
        """The mean of the family's ``fit_loss`` over ``[B]``."""
        return jnp.mean(self.policy.fit_loss(params, batch.obs, batch.action, key)), None

    def validation_loss(self, state: BCState, batch: Batch, key: Key) -> Array:
        """Return the loss on ``[B]`` that are not learnt from."""
        return self.policy_loss(state.policy.params, batch, key)[0]

    def update(self, state: BCState, batch: Batch, key: Key) -> tuple[BCState, Metrics]:
        """One gradient step on ``[B]``."""
        policy, _, metrics = self.optimizer.minimize(
            self.policy_loss, state.policy, self.learning_rate, batch, key
        )
        return BCState(policy), metrics

    def act(
        self, state: BCState, carry: PyTree, obs: PyTree, key: Key, mode: Mode
    ) -> tuple[Array, PyTree, Extras]:
        """Return a sampled action ``[..., *A]``, or with ``greedy`` the mode, carry and extras."""
        if mode == "greedy":
            return self.policy.mode(state.policy.params, obs, key), carry, {}
        return self.policy.sample(state.policy.params, obs, key)[0], carry, {}
