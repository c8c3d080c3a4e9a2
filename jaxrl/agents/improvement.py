"""Better actions than the policy's: a critic selects or optimises its samples.

    improver.improve(q, candidates[n, ..., *A], key) -> action[..., *A]

``q(actions[m, ..., *A]) -> [m, ...]`` values actions at the observations of the trailing axes; the
agent decides which critics it uses. With one candidate, or a constant ``q``, actions have the
policy's distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.errors import UsageError
from jaxrl.hyper import number, size
from jaxrl.rng import row_key
from jaxrl.types import Array, Key, PyTree

Values = Callable[[Array], Array]  # actions[m, ..., *A] -> [m, ...]


def candidates(policy: Any, params: PyTree, obs: PyTree, key: Key, count: int) -> Array:
    """Return ``count`` independent samples ``[n, ..., A]`` of a policy at ``obs[..., *O]``.

    Samples are clipped to [-1, 1], as environments clip them: critics value what is played.
    Observations are encoded only once.
    """
    keys = jax.random.split(key, count)
    samples: Array = jax.vmap(lambda key: policy.sample(params, obs, key)[0])(keys)
    return jnp.clip(samples, -1.0, 1.0)


def picked(actions: Array, index: Array) -> Array:
    """Return the actions ``[m, ..., *A]`` of ``actions[n, ..., *A]`` at ``index[m, ...]``."""
    index = index.reshape(*index.shape, *[1] * (actions.ndim - index.ndim))
    return jnp.take_along_axis(actions, index, axis=0)


def best(actions: Array, values: Array) -> Array:
    """Return the action ``[..., *A]`` with the largest of ``values[n, ...]``."""
    return picked(actions, jnp.argmax(values, axis=0)[None])[0]


def drawn(actions: Array, values: Array, temperature: Array | float, key: Key) -> Array:
    """Return one of ``actions[n, ..., *A]`` by ``softmax(values / temperature)``: ``[..., *A]``.

    The draw is the argmax of ``values + temperature * noise`` with Gumbel noise. At a temperature
    of 0 it is the best action.
    """
    noise = jax.random.gumbel(row_key(key), values.shape, values.dtype)
    return best(actions, values + temperature * noise)


def kept(actions: Array, values: Array, count: int) -> Array:
    """Return the ``count`` actions with the largest ``values[n, ...]``, best first."""
    _, index = jax.lax.top_k(jnp.moveaxis(values, 0, -1), count)
    return picked(actions, jnp.moveaxis(index, -1, 0))


def ascended(
    q: Values, actions: Array, num_steps: int, step_size: Array | float
) -> tuple[Array, Array]:
    """Return ``actions[m, ..., A]`` after steps ``a <- clip(a + step_size dq/da, -1, 1)``.

    Each result is the best action along the path, including the start clipped to [-1, 1], so no
    value falls. Returns the values ``[m, ...]`` too.
    """
    actions = jnp.clip(actions, -1.0, 1.0)

    def total(actions: Array) -> tuple[Array, Array]:
        values = q(actions)
        return jnp.sum(values), values

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[Any, None]:
        x, top, top_values = carry
        slopes, values = jax.grad(total, has_aux=True)(x)
        top, top_values = better(x, values, top, top_values)
        return (jnp.clip(x + step_size * slopes, -1.0, 1.0), top, top_values), None

    def better(x: Array, values: Array, top: Array, top_values: Array) -> tuple[Array, Array]:
        higher = values > top_values
        return jnp.where(higher[..., None], x, top), jnp.where(higher, values, top_values)

    lowest = jnp.full(actions.shape[:-1], -jnp.inf, jax.eval_shape(q, actions).dtype)
    (x, top, top_values), _ = jax.lax.scan(step, (actions, actions, lowest), length=num_steps)
    return better(x, q(x), top, top_values)


@hyper.dataclass
class BestOf:
    """The candidate with the largest value.

    (Hansen-Estruch et al. 2023, "IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion
    Policies", section 4.2.)
    """

    num_candidates: int = size(64, help="samples of the policy to choose from")

    def improve(self, q: Values, actions: Array, key: Key) -> Array:
        """Return the best ``[..., *A]`` of ``actions[n, ..., *A]``."""
        return best(actions, q(actions))


@hyper.dataclass
class Softmax:
    """A candidate, drawn with probability proportional to ``exp(q / temperature)``.

    With many candidates, actions are distributed as ``pi exp(q / temperature)``. (Wang et al.
    2022, "Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning", in
    their code; Nakamoto et al. 2024, "Steering Your Generalists: Improving Robotic Foundation
    Models via Value Guidance", eq. 4.)
    """

    num_candidates: int = size(50, help="samples of the policy to choose from")
    temperature: float = number(
        1.0, 0, help="softmax temperature of the choice, in units of Q; 0 chooses the best"
    )

    def improve(self, q: Values, actions: Array, key: Key) -> Array:
        """Return one ``[..., *A]`` of ``actions[n, ..., *A]``."""
        return drawn(actions, q(actions), self.temperature, key)


@hyper.dataclass
class Ascent:
    """Gradient ascent on the critic from the best candidates; then the best result, or a draw.

    Defaults follow the code of Mark et al. 2024 ("Policy Agnostic RL: Offline RL and Online RL
    Fine-Tuning of Any Class and Backbone", section 4).
    """

    num_candidates: int = size(32, help="samples of the policy to choose from")
    num_kept: int = size(10, help="number of best candidates to optimise")
    num_steps: int = size(10, help="gradient ascent steps on each action")
    step_size: float = number(3e-4, 0, help="step size of gradient ascent on actions")
    temperature: float = number(
        0.0, 0, help="softmax temperature of the choice among optimised actions; 0 chooses the best"
    )

    def moved(self, q: Values, actions: Array) -> tuple[Array, Array]:
        """Select and optimise the best of ``actions[n, ..., A]``.

        Returns the optimised actions ``[m, ..., A]`` and their values ``[m, ...]``.

        Raises:
            UsageError: for fewer than ``num_kept`` candidates.
        """
        if self.num_kept > len(actions):
            raise UsageError(
                f"num_kept is {self.num_kept}, and there are {len(actions)} candidates; "
                f"give at most {len(actions)}"
            )
        best_actions = kept(actions, q(actions), self.num_kept)
        return ascended(q, best_actions, self.num_steps, self.step_size)

    def improve(self, q: Values, actions: Array, key: Key) -> Array:
        """Return one action ``[..., A]`` from ``actions[n, ..., A]``."""
        return drawn(*self.moved(q, actions), self.temperature, key)
