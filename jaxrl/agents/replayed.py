"""What agents that learn from replayed batches share: the loop over gradient steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl import optim
from jaxrl.errors import UsageError
from jaxrl.hyper import require, require_choice
from jaxrl.metrics import Metrics, scan, scan_last
from jaxrl.nn import networks
from jaxrl.nn.distributions import is_key
from jaxrl.nn.networks import Activation, Init
from jaxrl.types import Array, Key, PyTree, Transition


class ReplayedState(NamedTuple):
    """Parts by name: what is learnt, its slow copies, its optimisers, and running statistics."""

    params: dict[str, PyTree]
    targets: dict[str, PyTree]
    optim: dict[str, optim.OptimState]
    running: dict[str, Array]
    updates: Array  # int32, gradient steps


@struct.dataclass
class Replayed:
    """An agent that learns from batches ``[G, B]``, one gradient step on each of the ``G``.

    Online, offline, and from one to the other: where the batches come from is not its concern.

    Attributes:
        learning_rate: of Adam, of the critics; > 0.
        gamma: discount in [0, 1].
        tau: the step of the slow copies towards the learnt networks; in [0, 1].
        max_grad_norm: gradients' global norms are clipped to it, network by network; None: not.
        delay: the actor and what goes with it step on every so many gradient steps.
        hidden: widths of the hidden layers of all networks.
        activation: of all networks.
        layer_norm: normalise the critics' hidden layers before their activation.
        init_kind: "torch" (uniform), "lecun" (uniform) or "orthogonal".
        policy_obs: of observations that are dictionaries, the part that the policy sees.
        value_obs: the critics' part; without a "privileged_state", it is the policy's. It has to
            hold what the policy sees, or else no critic can tell what an action is worth.
    """

    learning_rate: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    max_grad_norm: float | None = None
    delay: int = struct.field(pytree_node=False, default=1)
    hidden: tuple[int, ...] = struct.field(pytree_node=False, default=(256, 256))
    activation: Activation = struct.field(pytree_node=False, default="relu")
    layer_norm: bool = struct.field(pytree_node=False, default=False)
    init_kind: Init = struct.field(pytree_node=False, default="torch")
    policy_obs: str = struct.field(pytree_node=False, default="state")
    value_obs: str = struct.field(pytree_node=False, default=networks.PRIVILEGED)

    def gradient_step(
        self, state: ReplayedState, batch: Transition, noise: PyTree, actor: bool
    ) -> tuple[ReplayedState, Metrics]:
        """One step on ``batch[B]`` with a row of ``draw_update``; of the actor too if ``actor``."""
        raise AssertionError("an agent defines its gradient step")

    def draw_update(self, state: ReplayedState, key: Key, shape: tuple[int, ...]) -> PyTree:
        """The randomness of gradient steps on batches of ``shape[..., B]``: ``[..., B, ...]``."""
        raise AssertionError("an agent draws its randomness")

    def update(
        self, state: ReplayedState, batch: Transition, key: PyTree, actor: bool = True
    ) -> tuple[ReplayedState, Metrics]:
        """A gradient step on each of the batches ``[G, B]``.

        With ``actor``, the actor steps on every ``delay``-th, or on the last if there are fewer;
        else not at all. ``key`` is a typed key, or what ``draw_update`` drew for ``[G, B]``.

        Raises:
            UsageError: if more than ``delay`` batches are no multiple of it.
        """
        shape = batch.reward.shape
        noise = key
        if isinstance(key, jax.Array) and is_key(key):
            noise = self.draw_update(state, key, shape)
        if not actor:
            return scan(
                lambda s, x: self.gradient_step(s, x[0], x[1], False), state, (batch, noise)
            )

        size = min(shape[0], self.delay)
        if shape[0] % size:
            raise UsageError(
                f"{shape[0]} batches are no multiple of the delay of {size}; "
                f"{-(-shape[0] // size) * size} would be"
            )
        xs = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (batch, noise))

        def group(state: ReplayedState, xs: tuple) -> tuple[ReplayedState, Metrics]:
            return scan_last(lambda s, x, last: self.gradient_step(s, x[0], x[1], last), state, xs)

        return scan(group, state, xs)

    def discount(self, batch: Transition) -> Array:
        """What multiplies the value of the successor: ``gamma^n``, and 0 where it is terminal."""
        steps = batch.extras.get("steps", 1)
        return jnp.where(batch.terminated, 0.0, self.gamma**steps)

    @property
    def optimiser(self) -> optim.Adam:
        """Of each network."""
        return optim.Adam(self.max_grad_norm)

    def fresh(self, params: dict[str, PyTree], targets: tuple[str, ...]) -> ReplayedState:
        """The state before the first update; ``targets`` names what has slow copies."""
        # Copies, as a buffer that appeared twice could not be donated.
        copies = {name: jax.tree.map(jnp.copy, params[name]) for name in targets}
        moments = {name: self.optimiser.init(part) for name, part in params.items()}
        return ReplayedState(params, copies, moments, {}, jnp.int32(0))

    def stepped(
        self, state: ReplayedState, name: str, grads: PyTree, rate: Array | float
    ) -> tuple[ReplayedState, Metrics]:
        """One optimiser step of the part ``name``."""
        part, moments, metrics = self.optimiser.step(
            grads, state.optim[name], state.params[name], rate
        )
        metrics[f"{name}_grad_norm"] = metrics.pop("grad_norm")
        params, opt = state.params | {name: part}, state.optim | {name: moments}
        return state._replace(params=params, optim=opt), metrics

    def followed(self, state: ReplayedState) -> ReplayedState:
        """The slow copies, a step of ``tau`` closer."""
        online = {name: state.params[name] for name in state.targets}
        return state._replace(targets=optim.polyak(state.targets, online, self.tau))

    def observe(self, state: ReplayedState, transitions: Transition) -> ReplayedState:
        """No statistics of experience are kept."""
        return state

    def check(self, transitions: int) -> None:
        """Raise UsageError for hyper-parameters that cannot work."""
        require("learning_rate", self.learning_rate, 0, above=True)
        for name in ("gamma", "tau"):
            require(name, getattr(self, name), 0, 1)
        require("max_grad_norm", self.max_grad_norm, 0, above=True)
        require("delay", self.delay, 1)
        for width in self.hidden:
            require("hidden", width, 1)
        require_choice("activation", self.activation, Activation)
        require_choice("init_kind", self.init_kind, Init)

    def seen_by_policy(self, obs: PyTree) -> Any:
        """The policy's part of an observation, or of its space."""
        return networks.policy_part(obs, self.policy_obs)

    def seen_by_critics(self, obs: PyTree) -> Any:
        """The critics' part of an observation, or of its space."""
        return networks.value_part(obs, self.value_obs, self.policy_obs)
