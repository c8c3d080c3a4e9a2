"""Critics: ensembles of ``Q(s, a)``, values ``V(s)``, and ``Q(s, .)`` over discrete actions.

critic.bind(spec) -> critic
critic.init(key) -> params
critic(params, obs, action) -> [E, ...]
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.hyper import bound, flag, size
from jaxrl.losses import value_of_action
from jaxrl.nn.encoders import CRITIC_KEYS, POLICY_KEYS
from jaxrl.nn.networks import MLP, Dueling, apply_ensemble, apply_members, init_ensemble
from jaxrl.nn.part import NetworkPart, split_key
from jaxrl.nn.policies import vector_size
from jaxrl.types import Array, Discrete, Key, PyTree, Spec


@hyper.dataclass
class Critic(NetworkPart):
    """An ensemble of action values ``Q_i(s, a)`` for continuous actions.

    All networks are evaluated as one batched product per layer; they share one encoder.
    The agent sets ``num_outputs``: with k > 1 outputs the critic returns ``[E, ..., k]``.
    """

    num_critics: int = size(2, help="networks in the ensemble")
    num_outputs: int = bound(1)

    @property
    def outputs(self) -> int:
        """The number of each network's outputs."""
        return self.num_outputs

    def bind(self, spec: Spec) -> Critic:
        """Return the critic for ``spec``. Raises UsageError for discrete actions."""
        encoder = self.encoder.bind(spec.observation, CRITIC_KEYS)
        return dataclasses.replace(self, encoder=encoder, action_dim=vector_size(self, spec))

    def init(self, key: Key) -> PyTree:
        """Return fresh parameters; network parameters have a leading axis ``[E]``."""
        encoder_key, network_key = split_key(self.encoder, key)
        inputs = self.encoder.features + self.action_dim
        return {
            "encoder": self.encoder.init(encoder_key),
            "network": init_ensemble(self.network, network_key, inputs, self.num_critics),
        }

    def __call__(self, params: PyTree, obs: PyTree, action: Array) -> Array:
        """Return values ``[E, ...]`` at ``obs[..., *O]`` and ``action[..., A]``.

        Observations may lack leading axes that the actions have; they are then encoded only once.
        """
        features = self.encoder(params["encoder"], obs)
        features = jnp.broadcast_to(features, (*action.shape[:-1], features.shape[-1]))
        x = jnp.concatenate([features, action], axis=-1)
        out = apply_ensemble(self.network, params["network"], x, self.num_critics)
        return out[..., 0] if self.num_outputs == 1 else out

    def with_gradients(self, params: PyTree, obs: PyTree, action: Array) -> tuple[Array, Array]:
        """Return values ``[E, ...]``, and their gradients with respect to the action.

        The gradients are ``[E, ..., A]``, at ``obs[..., *O]`` and ``action[..., A]``; critics must
        have one output. Both results are differentiable with respect to ``params``.
        """
        features = self.encoder(params["encoder"], obs)

        def total(own: Array) -> tuple[Array, Array]:
            shared = jnp.broadcast_to(features, (*own.shape[:-1], features.shape[-1]))
            x = jnp.concatenate([shared, own], axis=-1)
            q = apply_members(self.network, params["network"], x)[..., 0]
            return jnp.sum(q), q

        # Each critic has its own copy of the actions, so the gradient of the sum has each one's.
        own = jnp.broadcast_to(action, (self.num_critics, *action.shape))
        gradient, q = jax.grad(total, has_aux=True)(own)
        return q, gradient

    def one(self, params: PyTree, obs: PyTree, action: Array, index: Array | int = 0) -> Array:
        """Return the values of a single network, by default the first: ``[...]``."""
        network = jax.tree.map(lambda x: x[index][None], params["network"])
        alone = dataclasses.replace(self, num_critics=1)
        return alone(params | {"network": network}, obs, action)[0]


@hyper.dataclass
class DiscreteCritic(NetworkPart):
    """An ensemble of action values ``Q_i(s, a)`` for discrete actions, from ``Q_i(s, .)``.

    As in ``Critic``, the networks share one encoder.
    """

    num_critics: int = size(2, help="networks in the ensemble")

    @property
    def outputs(self) -> int:
        """The number of actions."""
        return self.action_dim

    def bind(self, spec: Spec) -> DiscreteCritic:
        """Return the critic for ``spec``. Raises UsageError for continuous actions."""
        encoder = self.encoder.bind(spec.observation, CRITIC_KEYS)
        return dataclasses.replace(self, encoder=encoder, action_dim=num_actions(self, spec))

    def init(self, key: Key) -> PyTree:
        """Return fresh parameters; network parameters have a leading axis ``[E]``."""
        encoder_key, network_key = split_key(self.encoder, key)
        network = init_ensemble(self.network, network_key, self.encoder.features, self.num_critics)
        return {"encoder": self.encoder.init(encoder_key), "network": network}

    def values(self, params: PyTree, obs: PyTree) -> Array:
        """Return values ``[E, ..., n]`` of all actions at ``obs[..., *O]``."""
        features = self.encoder(params["encoder"], obs)
        return apply_ensemble(self.network, params["network"], features, self.num_critics)

    def __call__(self, params: PyTree, obs: PyTree, action: Array) -> Array:
        """Return values ``[E, ...]`` at ``obs[..., *O]`` and the indices ``action[...]``."""
        return value_of_action(self.values(params, obs), action)


@hyper.dataclass
class AutoCritic(Critic):
    """The ensemble that fits the environment's actions.

    ``bind`` returns a ``DiscreteCritic`` for discrete actions, else a ``Critic``.
    """

    def bind(self, spec: Spec) -> Any:
        """Return the critic for ``spec``. Raises UsageError if that class does."""
        family = DiscreteCritic if isinstance(spec.action, Discrete) else Critic
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(family)}
        return family(**fields).bind(spec)


@hyper.dataclass
class ValueFunction(NetworkPart):
    """A state value ``V(s)``."""

    def bind(self, spec: Spec) -> ValueFunction:
        """Return the value function for ``spec``. Raises UsageError for unknown obs entries."""
        encoder = self.encoder.bind(spec.observation, CRITIC_KEYS)
        return dataclasses.replace(self, encoder=encoder)

    def __call__(self, params: PyTree, obs: PyTree) -> Array:
        """Return values ``[...]`` of ``obs[..., *O]``."""
        return self.output(params, obs)[..., 0]


@hyper.dataclass
class QNetwork(NetworkPart):
    """The values ``Q(s, .)`` of all discrete actions. It acts, so it sees the policy's entries."""

    dueling: bool = flag(False, help="add a state value to advantages (Wang et al. 2016)")

    @property
    def outputs(self) -> int:
        """The number of actions."""
        return self.action_dim

    @property
    def network_class(self) -> type[MLP]:
        """The network class, with two streams if ``dueling``."""
        return Dueling if self.dueling else MLP

    def bind(self, spec: Spec) -> QNetwork:
        """Return the network for ``spec``. Raises UsageError for continuous actions."""
        encoder = self.encoder.bind(spec.observation, POLICY_KEYS)
        return dataclasses.replace(self, encoder=encoder, action_dim=num_actions(self, spec))

    def __call__(self, params: PyTree, obs: PyTree) -> Array:
        """Return values ``[..., n]`` of all actions at ``obs[..., *O]``."""
        return self.output(params, obs)


def num_actions(part: Any, spec: Spec) -> int:
    """Return the number of discrete actions. Raises UsageError for continuous ones."""
    if not isinstance(spec.action, Discrete):
        raise UsageError(
            f"{type(part).__name__} needs discrete actions, and the environment has continuous "
            "ones; gymnax/CartPole-v1 has discrete ones"
        )
    return spec.action.n
