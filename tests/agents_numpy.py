"""What the tests of agents that learn from replay share: batches, networks and Adam in numpy.

Everything is float64. Gradients are by complex steps, ``Im f(x + ih) / h``, which are exact to the
last digits and exactly zero where they should be: so functions here take complex numbers, and
compare real parts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import metrics as m
from jaxrl.types import Box, Spec, Transition

OBS, ACTION, BATCH = 3, 2, 6
SPEC = Spec(Box(-np.inf, np.inf, (OBS,)), Box(-1.0, 1.0, (ACTION,)))

# Agents are pytrees: one program serves all numbers. It is compiled sooner for not being optimised.
QUICKLY = {"xla_backend_optimization_level": 0}
update = jax.jit(
    lambda agent, state, batch, key: agent.update(state, batch, key), compiler_options=QUICKLY
)
without_actor = jax.jit(
    lambda agent, state, batch, key: agent.update(state, batch, key, False),
    compiler_options=QUICKLY,
)


# --- what is learnt, and from what --------------------------------------------------------------


def batches(steps, size=BATCH, seed=0, several=True):
    """Batches ``[G, B]``: numbers of every size; some terminated, some truncated, most neither.

    With ``several``, each transition is a sum over 1 to 3 steps.
    """
    rng = np.random.default_rng(seed)
    shape = (steps, size)
    obs, next_obs = rng.normal(size=(2, *shape, OBS))
    action = rng.uniform(-1.0, 1.0, (*shape, ACTION))
    reward = rng.normal(size=shape) * 10.0 ** rng.uniform(-1.0, 2.0, shape)
    ends = rng.permuted(np.tile(np.arange(size), (steps, 1)), axis=1)  # of each kind in each batch
    extras = {"steps": rng.integers(1, 4, shape)} if several else {}
    rows = Transition(obs, action, reward, next_obs, ends < 2, (ends >= 2) & (ends < 4), extras)
    return jax.tree.map(jnp.asarray, rows)


def noise(agent, state, steps, seed=0):
    """Normal noise of the form of ``agent.draw_update``, returns within three deviations."""
    rng = np.random.default_rng(seed)
    key, shape = jax.random.key(0), (steps, BATCH)
    like = jax.eval_shape(lambda state: agent.draw_update(state, key, shape), state)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), like)
    if isinstance(drawn, dict) and "return" in drawn:
        drawn["return"] = jnp.clip(2.0 * drawn["return"], -3.0, 3.0)
    return drawn


def row(batch, g):
    """Batch ``g`` of ``batches``, in numpy."""
    return jax.tree.map(lambda x: np.asarray(x)[g], batch)


def narrowed(tree):
    """In the precision of a ring."""
    return jax.tree.map(lambda x: jnp.float32(x) if x.dtype == np.float64 else x, tree)


def state(agent, seed=0):
    """A state before the first update, with random weights of every size, others in slow copies.

    Its numbers have the precision that is in force.
    """
    rng = np.random.default_rng(seed)

    def weights(leaf):
        size = 10.0 ** rng.uniform(-1.0, 0.3, leaf.shape)
        return jnp.asarray(rng.normal(size=leaf.shape) * size)

    def zeros(leaf):
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.zeros(leaf.shape, float if floats else leaf.dtype)

    like = jax.eval_shape(lambda key: agent.init(key, SPEC), jax.random.key(0))
    params, targets = (jax.tree.map(weights, tree) for tree in (like.params, like.targets))
    if "log_alpha" in params:
        params["log_alpha"] = jnp.asarray(-0.4)
    return jax.tree.map(zeros, like)._replace(params=params, targets=targets)


# --- networks -----------------------------------------------------------------------------------


def least(x):
    """The smallest real part along the first axis."""
    return np.take_along_axis(x, np.argmin(x.real, axis=0)[None], axis=0)[0]


def least_of_subset(q, noise, agent):
    """Of ``q[E, B]``, the smallest of the critics that come first in the order that was drawn."""
    chosen = slice(None) if agent.subset is None else np.argsort(noise["critics"])[: agent.subset]
    return q[chosen].min(0)


def clip(x, low, high):
    return np.where(x.real < low, low, np.where(x.real > high, high, x))


def softplus(x):
    positive = x.real > 0
    return np.where(positive, x, 0) + np.log1p(np.exp(np.where(positive, -x, x)))


ACTIVATIONS = {"relu": lambda x: np.where(x.real > 0, x, 0), "tanh": np.tanh}


def mlp(layers, x, activation):
    """Dense layers, normalised before the activation if there are norms, and a linear head."""
    for name in sorted(name for name in layers if name.startswith("layer_")):
        x = x @ layers[name]["kernel"] + layers[name]["bias"]
        norm = layers.get(f"norm_{name}")
        if norm is not None:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
            x = x * norm["scale"] + norm["bias"]
        x = ACTIVATIONS[activation](x)
    return x @ layers["head"]["kernel"] + layers["head"]["bias"]


def critics(params, obs, action, activation):
    """Each critic by itself: ``[E, B, outputs]``."""
    stacked = params["params"]["mlp"]
    x = np.concatenate([obs, action], axis=-1)
    members = range(len(stacked["head"]["bias"]))
    one = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in members]
    return np.stack([mlp(layers, x, activation) for layers in one])


def policy(params, obs, noise, agent):
    """An action of the tanh-squashed normal, and its log-probability."""
    mean, log_std = np.split(mlp(params["params"]["normal"], obs, agent.activation), 2, axis=-1)
    log_std = clip(log_std, *agent.log_std_range)
    u = mean + np.exp(log_std) * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    log_slope = 2.0 * (np.log(2.0) - u - softplus(-2.0 * u))  # log(1 - tanh(u)^2)
    return np.tanh(u), (log_normal - log_slope).sum(-1)


def discount(batch, gamma):
    """``gamma^n (1 - d)``: no bootstrap where terminated, one where truncated."""
    return gamma ** batch.extras.get("steps", 1) * (1.0 - batch.terminated)


# --- learning -----------------------------------------------------------------------------------


def gradient(loss, params):
    """Of ``loss(params)``, by a complex step in every single number."""
    leaves, tree = jax.tree.flatten(params)
    slopes = [np.zeros(leaf.shape) for leaf in leaves]
    for i, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            moved = np.array(leaf, complex)
            moved[index] += 1e-30j
            slopes[i][index] = loss(tree.unflatten([*leaves[:i], moved, *leaves[i + 1 :]])).imag
    return tree.unflatten([slope / 1e-30 for slope in slopes])


class Learner:
    """Parameters, slow copies and Adam of every part; and the gradients' norms that it saw."""

    def __init__(self, agent, state):
        def widened(tree):
            return jax.tree.map(lambda x: np.array(x, np.float64), tree)

        self.agent = agent
        self.params, self.targets = widened(state.params), widened(state.targets)
        self.moments = dict.fromkeys(self.params, (0, 0.0, 0.0))
        self.norms = {name: [] for name in self.params}
        self.running = None

    def step(self, name, slopes, rate):
        """Adam on one part, of the gradient clipped to its norm."""
        leaves, tree = jax.tree.flatten(self.params[name])
        g = np.concatenate([np.ravel(x) for x in jax.tree.leaves(slopes)])
        norm = np.sqrt((g**2).sum())
        self.norms[name].append(norm)
        if self.agent.max_grad_norm is not None:
            g = g * min(1.0, self.agent.max_grad_norm / norm)
        count, first, second = self.moments[name]
        count, first, second = count + 1, 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        self.moments[name] = (count, first, second)
        update = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        pieces = np.split(rate * update, np.cumsum([x.size for x in leaves])[:-1])
        new = [x - piece.reshape(x.shape) for x, piece in zip(leaves, pieces, strict=True)]
        self.params[name] = tree.unflatten(new)

    def follow(self):
        """Slow copies: ``(1 - tau) slow + tau learnt``."""
        tau = self.agent.tau
        for name in self.targets:
            self.targets[name] = jax.tree.map(
                lambda slow, new: (1 - tau) * slow + tau * new,
                self.targets[name],
                self.params[name],
            )

    def assert_follows(self, state, step, noises=lambda noise: None):
        """That two calls of two gradient steps from ``state`` are those of ``step``.

        ``step(learner, batch, noise, actor)`` is numpy's. The second call is there so that Adam
        has a past. ``noises`` is shown what is drawn. Returns the last state.
        """
        for seed in (1, 2):
            batch, drawn = batches(2, seed=seed), noise(self.agent, state, 2, seed)
            noises(drawn)
            state, metrics = update(self.agent, state, batch, drawn)
            self.norms = {name: [] for name in self.params}
            for g in range(2):
                step(self, row(batch, g), row(drawn, g), g == 1)
            self.assert_equals(state, m.values(metrics))
        assert state.updates == 4
        return state

    def assert_equals(self, state, metrics):
        """That ``state`` has these parameters and slow copies, and ``metrics`` these norms."""
        for mine, found in ((self.params, state.params), (self.targets, state.targets)):
            assert jax.tree.structure(mine) == jax.tree.structure(found)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-7, 1e-9), mine, found)
        for name, norms in self.norms.items():
            np.testing.assert_allclose(metrics[f"{name}_grad_norm"], np.mean(norms), rtol=1e-5)
