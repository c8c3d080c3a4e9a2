"""What the tests of off-policy agents share: batches, noise, and networks and Adam in numpy.

Everything is float64. Gradients are by complex steps, ``Im f(x + ih) / h``, which are exact to the
last digits and exactly zero where they should be: so functions here take complex numbers, and
compare real parts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import DSAC, TD3, TD3BC, ReBRAC
from jaxrl import metrics as m
from jaxrl.optim import Trained
from jaxrl.training.gradient_steps import gradient_steps
from jaxrl.types import Batch, Box, Spec

OBS, ACTION, BATCH = 3, 2, 6
SPEC = Spec(Box(-np.inf, np.inf, (OBS,)), Box(-1.0, 1.0, (ACTION,)))

# Agents are pytrees: one program serves all numbers. It is compiled sooner for not being optimised.
QUICKLY = {"xla_backend_optimization_level": 0}
learn = jax.jit(gradient_steps, compiler_options=QUICKLY)
update = jax.jit(
    lambda agent, state, batch, key: agent.update(state, batch, key), compiler_options=QUICKLY
)
without_actor = jax.jit(
    lambda agent, state, batch, key: agent.update(state, batch, key, False),
    compiler_options=QUICKLY,
)


# --- agents, batches and noise ------------------------------------------------------------------


def agent_of(kind, options=()):
    """``kind`` with options by dotted name, such as ``critic.num_critics``; not bound."""
    default, fields, parts = kind(), {}, {}
    for name, value in dict(options).items():
        part, _, field = name.rpartition(".")
        (parts.setdefault(part, {}) if part else fields)[field] = value
    for part, values in parts.items():
        fields[part] = dataclasses.replace(getattr(default, part), **values)
    return kind(**fields)


def small(kind, options=(), activation="relu"):
    """``kind`` bound to ``SPEC``, with small networks, a short horizon and fast targets."""
    sizes = {
        f"{part}.{name}": value
        for part in ("policy", "critic")
        for name, value in (("hidden_dims", (5,)), ("activation", activation))
    }
    return agent_of(kind, sizes | {"gamma": 0.9, "tau": 0.3} | dict(options)).bind(SPEC)


def batches(steps, size=BATCH, seed=0, gamma=0.9):
    """Batches ``[G, B]``: numbers of every size; 1 to 3 summed steps, and some terminations."""
    rng = np.random.default_rng(seed)
    shape = (steps, size)
    obs, next_obs = rng.normal(size=(2, *shape, OBS))
    action = rng.uniform(-1.0, 1.0, (*shape, ACTION))
    reward = rng.normal(size=shape) * 10.0 ** rng.uniform(-1.0, 2.0, shape)
    terminated = rng.permuted(np.tile(np.arange(size), (steps, 1)), axis=1) < 2  # in each batch
    discount = gamma ** rng.integers(1, 4, shape) * ~terminated
    return jax.tree.map(jnp.asarray, Batch(obs, action, reward, discount, next_obs, {}))


def with_extras(agent, batch):
    """``batch`` with what ReBRAC reads: the data's next actions, a third of which are missing."""
    if not getattr(agent, "batch_extras", ()):
        return batch
    rng = np.random.default_rng(1)
    following = rng.uniform(-1.0, 1.0, batch.action.shape)
    known = rng.permuted(
        np.tile(np.arange(batch.reward.shape[-1]) % 3 > 0, batch.reward.shape[:-1] + (1,)), axis=-1
    )
    extras = {"next_action": jnp.asarray(following), "has_next_action": jnp.asarray(known)}
    return batch._replace(extras=extras)


def row(batch, g):
    """Batch ``g`` of ``batches``."""
    return jax.tree.map(lambda x: x[g], batch)


def noise(agent, key, size=BATCH):
    """The random numbers in ``agent.update(state, batch[B], key)``, in numpy.

    This is the only place where the tests know how agents split their keys:

    - SAC, EDAC and DSAC split the key of an update in two, for the critics and the actor; the
      actor's action is drawn with the latter. The actors of TD3, TD3+BC and ReBRAC draw nothing, so
      their critics get the whole key.
    - The critics' key is split in two where both are used: for the next action, and for either the
      critics whose minimum is the target (``num_min_critics``) or the next state's return (DSAC).

    Returns a dictionary: normal numbers ``next[B, A]`` and ``policy[B, A]`` of next and of the
    actor's actions, ``return[E, B]`` of sampled returns, and the indices ``critics``.
    """
    count = agent.critic.num_critics
    deterministic = isinstance(agent, TD3 | TD3BC | ReBRAC)
    critic_key, actor_key = (key, None) if deterministic else jax.random.split(key)
    subset = getattr(agent, "num_min_critics", None)
    both = isinstance(agent, DSAC) or subset is not None
    next_key, last_key = jax.random.split(critic_key) if both else (critic_key, critic_key)
    drawn = {"next": jax.random.normal(next_key, (size, ACTION))}
    if actor_key is not None:
        drawn["policy"] = jax.random.normal(actor_key, (size, ACTION))
    if isinstance(agent, DSAC):
        drawn["return"] = jax.random.normal(last_key, (count, size))
    else:
        drawn["critics"] = jax.random.permutation(last_key, count)[:subset]
    return jax.tree.map(np.asarray, drawn)


def state(agent, seed=0):
    """A state before the first update, with random weights of every size, other ones in targets.

    Its numbers have the precision that is in force.
    """
    rng = np.random.default_rng(seed)

    def weights(leaf):
        size = 10.0 ** rng.uniform(-1.0, 0.3, leaf.shape)
        return jnp.asarray(rng.normal(size=leaf.shape) * size)

    def zeros(leaf):
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.zeros(leaf.shape, float if floats else leaf.dtype)

    def filled(name, part):
        if name == "log_alpha":
            return Trained(jnp.asarray(-0.4), jax.tree.map(zeros, part.optim))
        if isinstance(part, Trained):
            return Trained(jax.tree.map(weights, part.params), jax.tree.map(zeros, part.optim))
        return jax.tree.map(weights if name.startswith("target_") else zeros, part)

    like = jax.eval_shape(agent.init, jax.random.key(0))
    return like._replace(**{name: filled(name, part) for name, part in like._asdict().items()})


def with_params(state, **params):
    """``state`` with other parameters of the named networks."""
    parts = {name: getattr(state, name)._replace(params=new) for name, new in params.items()}
    return state._replace(**parts)


def trained_params(state):
    """The parameters of what is trained, by name."""
    parts = state._asdict().items()
    return {name: part.params for name, part in parts if isinstance(part, Trained)}


def target_params(state):
    """The parameters of the target networks, by the names of their networks."""
    return {
        name.removeprefix("target_"): part
        for name, part in state._asdict().items()
        if name.startswith("target_") and jax.tree.leaves(part)
    }


# --- networks -----------------------------------------------------------------------------------


def least(x):
    """The smallest real part along the first axis."""
    return np.take_along_axis(x, np.argmin(x.real, axis=0)[None], axis=0)[0]


def clip(x, low, high):
    return np.where(x.real < low, low, np.where(x.real > high, high, x))


def softplus(x):
    positive = x.real > 0
    return np.where(positive, x, 0) + np.log1p(np.exp(np.where(positive, -x, x)))


ACTIVATIONS = {"relu": lambda x: np.where(x.real > 0, x, 0), "tanh": np.tanh}


def normalised(x, norm):
    """Layer norm, or ``x`` without parameters."""
    if norm is None:
        return x
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * norm["scale"] + norm["bias"]


def mlp(layers, x, activation):
    """Dense layers, normalised before or behind the activation if they have norms, and a head."""
    for name in sorted(name for name in layers if name.startswith("layer_")):
        x = x @ layers[name]["kernel"] + layers[name]["bias"]
        x = normalised(x, layers.get(name.replace("layer", "norm")))
        x = ACTIVATIONS[activation](x)
        x = normalised(x, layers.get(name.replace("layer", "post_norm")))
    return x @ layers["head"]["kernel"] + layers["head"]["bias"]


def critics(params, obs, action, agent):
    """Each critic by itself: ``[E, B, outputs]``."""
    stacked = params["network"]
    x = np.concatenate([obs, action], axis=-1)
    members = range(len(stacked["head"]["bias"]))
    one = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in members]
    return np.stack([mlp(layers, x, agent.critic.activation) for layers in one])


def policy(params, obs, noise, agent):
    """An action of the tanh-squashed normal, and its log-probability."""
    out = mlp(params["network"], obs, agent.policy.activation)
    mean, log_std = np.split(out, 2, axis=-1)
    log_std = clip(log_std, *agent.policy.log_std_range)
    u = mean + np.exp(log_std) * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    log_slope = 2.0 * (np.log(2.0) - u - softplus(-2.0 * u))  # log(1 - tanh(u)^2)
    return np.tanh(u), (log_normal - log_slope).sum(-1)


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
    """Parameters, target networks and Adam of every network; and the gradients' norms."""

    def __init__(self, agent, state):
        def widened(tree):
            return jax.tree.map(lambda x: np.array(x, np.float64), tree)

        self.agent = agent
        self.params, self.targets = widened(trained_params(state)), widened(target_params(state))
        self.moments = dict.fromkeys(self.params, (0, 0.0, 0.0))
        self.norms = {name: [] for name in self.params}
        self.running = None

    def step(self, name, slopes, rate):
        """Adam on one network, with the gradient clipped to its norm."""
        leaves, tree = jax.tree.flatten(self.params[name])
        g = np.concatenate([np.ravel(x) for x in jax.tree.leaves(slopes)])
        norm = np.sqrt((g**2).sum())
        self.norms[name].append(norm)
        if self.agent.optimizer.max_grad_norm is not None:
            g = g * min(1.0, self.agent.optimizer.max_grad_norm / norm)
        count, first, second = self.moments[name]
        count, first, second = count + 1, 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        self.moments[name] = (count, first, second)
        update = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        pieces = np.split(rate * update, np.cumsum([x.size for x in leaves])[:-1])
        new = [x - piece.reshape(x.shape) for x, piece in zip(leaves, pieces, strict=True)]
        self.params[name] = tree.unflatten(new)

    def update_targets(self):
        """Target networks: ``(1 - tau) target + tau online``."""
        tau = self.agent.tau
        for name in self.targets:
            self.targets[name] = jax.tree.map(
                lambda target, online: (1 - tau) * target + tau * online,
                self.targets[name],
                self.params[name],
            )

    def assert_matches(self, state, step, seeds=(1, 2), see=lambda noise: None):
        """That two calls of two gradient steps from ``state`` are those of ``step``.

        ``step(learner, batch, noise, update_actor)`` is numpy's. The second call is there so that
        Adam has a past. ``see`` is shown the noise. Returns the last state.
        """
        delay = self.agent.policy_delay
        assert delay in (1, 2)
        for seed in seeds:
            batch, key = with_extras(self.agent, batches(2, seed=seed)), jax.random.key(seed)
            state, metrics = learn(self.agent, state, batch, key)
            self.norms = {name: [] for name in self.params}
            for g, step_key in enumerate(jax.random.split(key, 2)):
                drawn = noise(self.agent, step_key)
                see(drawn)
                rows = jax.tree.map(np.asarray, row(batch, g))
                step(self, rows, drawn, (g + 1) % delay == 0)
            self.assert_equals(state, m.values(metrics))
        assert [self.moments[name][0] for name in ("critic", "actor")] == [4, 4 // delay]
        return state

    def assert_equals(self, state, metrics):
        """That ``state`` has these parameters and targets, and ``metrics`` these norms."""
        for mine, found in (
            (self.params, trained_params(state)),
            (self.targets, target_params(state)),
        ):
            assert jax.tree.structure(mine) == jax.tree.structure(found)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-7, 1e-9), mine, found)
        for name, norms in self.norms.items():
            metric = f"{name.removeprefix('log_')}_grad_norm"
            np.testing.assert_allclose(metrics[metric], np.mean(norms), rtol=1e-5)
            assert getattr(state, name).optim.moments.count == self.moments[name][0]
        assert metrics["skipped_updates"] == 0
