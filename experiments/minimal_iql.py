"""IQL in one file, to read from top to bottom and to fork: it imports nothing from jaxrl.

    python experiments/minimal_iql.py --num-seeds 8
    python experiments/minimal_iql.py --env MountainCarContinuous-v0 --dataset FILE.hdf5

Implicit Q-learning (Kostrikov et al. 2022, arXiv:2110.06169): a value function that is an expectile
of the critics over the data's actions, twin critics with target networks, and a policy that
imitates the data's actions by weights that grow with their advantage. It learns from a dataset
alone: a file in D4RL's layout, or for Pendulum one that is made here, by a controller with noise of
all sizes. A time limit is truncation, after which the value is still bootstrapped. All but reading
the file runs inside one jitted program, vmapped over seeds.

Axes: ``S`` seeds, ``D`` rows of the dataset, ``I`` evaluations, ``G`` gradient steps between them,
``B`` batch, ``E`` episodes; ``O`` is the flattened observation, ``A`` the action.
"""

import dataclasses
import functools
import math
import sys
import time
from typing import Any, NamedTuple

import flax.linen as nn
import gymnax
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Train IQL on a dataset for a gymnax environment with continuous actions, several seeds."""

    env: str = "Pendulum-v1"  # name of the environment
    dataset: str = ""  # an HDF5 file in D4RL's layout; without one, data of Pendulum are made
    num_episodes: int = 100  # E, episodes of generated data
    num_updates: int = 10_000  # gradient steps of each seed
    num_evals: int = 10  # I, evaluations on the way; divides the gradient steps
    seed: int = 0  # the first seed; the others follow it
    num_seeds: int = 4  # S, agents trained together
    batch_size: int = 256  # B, transitions of each gradient step
    learning_rate: float = 1e-3  # of Adam; the policy's falls to 0 by a cosine
    gamma: float = 0.99  # discount
    tau: float = 0.005  # step of the target critics towards the critics
    expectile: float = 0.8  # of Q over the data's actions: 0.5 is their mean, near 1 the best
    temperature: float = 3.0  # factor of advantages in the exponent of the weights
    reward_scale: float = 0.1  # factor of rewards: advantages should be of the order of 1
    hidden_dims: tuple[int, ...] = (64, 64)  # widths of the hidden layers
    eval_episodes: int = 16  # E, greedy episodes of each evaluation


def check(config: Config) -> None:
    """Refuse what cannot run, before anything is compiled. Raises ``ValueError``."""
    for field in dataclasses.fields(config):
        name, value, least = field.name, getattr(config, field.name), int(field.type is not float)
        if name in ("env", "dataset", "seed"):
            continue
        if not min(value if isinstance(value, tuple) else (value,)) >= least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")
        if name in ("gamma", "tau", "expectile") and value > 1:
            raise ValueError(f"{name} is {value}: it must be at most 1")
    if config.num_updates % config.num_evals:
        raise ValueError(f"num_evals is {config.num_evals}: it must divide {config.num_updates}")
    if config.env not in gymnax.registered_envs:
        raise ValueError(f"env is {config.env!r}: choose from {', '.join(gymnax.registered_envs)}")
    if hasattr(Env(config.env).action_space, "n"):
        raise ValueError(f"env is {config.env!r}: its actions are discrete; try Pendulum-v1")
    if not config.dataset and config.env != "Pendulum-v1":
        raise ValueError(f"env is {config.env!r}: data are made for Pendulum-v1; give --dataset")


class EnvState(NamedTuple):
    inner: Any  # gymnax's own state
    obs: Array  # [O], what to act on next


class Env:
    """A gymnax environment with actions in [-1, 1]; ``vmap`` makes many copies of it.

    Built on the raw ``reset_env`` and ``step_env``: episodes have the environment's time limit, and
    whoever plays them counts their steps.
    """

    def __init__(self, name: str) -> None:
        self.env, params = gymnax.make(name)
        self.max_steps = params.max_steps_in_episode
        self.params = params.replace(max_steps_in_episode=2**30)
        self.action_space = self.env.action_space(self.params)

    def bounds(self) -> tuple[Array, Array]:
        """The least and the largest action ``[A]``, in the environment's units."""
        space = self.action_space
        return tuple(jnp.broadcast_to(x, space.shape) for x in (space.low, space.high))

    def reset(self, key: Array) -> EnvState:
        obs, inner = self.env.reset_env(key, self.params)
        return EnvState(inner, jnp.float32(obs).ravel())

    def step(self, key: Array, state: EnvState, action: Array) -> tuple[EnvState, Array, Array]:
        """The next state, the reward, and whether the episode came to its own end."""
        low, high = self.bounds()
        action = low + (action + 1.0) * 0.5 * (high - low)
        obs, inner, reward, terminated, _ = self.env.step_env(key, state.inner, action, self.params)
        return EnvState(inner, jnp.float32(obs).ravel()), jnp.float32(reward), terminated

    def play(self, key: Array, act: Any, episodes: int) -> tuple["Dataset", Array]:
        """Whole episodes of ``act(key, obs[E, O]) -> action[E, A]``.

        Returns transitions ``[T, E]``, and which of them came before the end of their episode.
        """

        def step(carry: tuple, key: Array) -> tuple[tuple, tuple]:
            state, running = carry
            key_act, key_step = jax.random.split(key)
            action = act(key_act, state.obs)
            keys = jax.random.split(key_step, episodes)
            after, reward, terminated = jax.vmap(self.step)(keys, state, action)
            row = Dataset(state.obs, action, reward, after.obs, terminated)
            return (after, running & ~terminated), (row, running)

        key_reset, key_steps = jax.random.split(key)
        state = jax.vmap(self.reset)(jax.random.split(key_reset, episodes))
        start = state, jnp.ones(episodes, bool)
        return jax.lax.scan(step, start, jax.random.split(key_steps, self.max_steps))[1]


class Dataset(NamedTuple):
    """Transitions ``[D, ...]``, or a batch of them ``[B, ...]``."""

    obs: Array
    action: Array  # in [-1, 1]
    reward: Array
    next_obs: Array  # the true successor
    terminated: Array  # the episode came to its own end: no future, no value


KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def read(path: str, env: Env) -> Dataset:
    """The transitions of an HDF5 file in D4RL's layout. Raises ``ValueError`` for other files.

    If the file has no next observations, those of the next rows are used. A time-out's is
    unknown, so its row is left out.
    """
    try:
        with h5py.File(path) as file:
            data = {name: np.asarray(file[name]) for name in KEYS if name in file}
    except OSError as error:
        raise ValueError(f"dataset is {path!r}: {error}") from None
    missing = [name for name in KEYS if name not in data and name != "next_observations"]
    if missing:
        raise ValueError(f"dataset is {path!r}: it has no {', '.join(missing)}")
    obs = np.float32(data["observations"]).reshape(len(data["rewards"]), -1)
    terminated, keep = data["terminals"].astype(bool), np.ones(len(obs), bool)
    if "next_observations" in data:
        next_obs = np.float32(data["next_observations"]).reshape(obs.shape)
    else:
        next_obs, keep = np.roll(obs, -1, axis=0), ~data["timeouts"].astype(bool) | terminated
        keep[-1] &= terminated[-1]
    low, high = env.bounds()
    action = 2.0 * (data["actions"].reshape(len(obs), -1) - low) / (high - low) - 1.0
    rows = Dataset(obs, np.clip(action, -1, 1), np.float32(data["rewards"]), next_obs, terminated)
    return jax.tree.map(lambda x: jnp.asarray(x[keep]), rows)


def make_dataset(key: Array, env: Env, episodes: int) -> tuple[Dataset, Array]:
    """Episodes of Pendulum by a controller with more and more noise, and their returns ``[E]``."""

    def act(key: Array, obs: Array) -> Array:
        cos, sin, speed = obs[:, :1], obs[:, 1:2], obs[:, 2:]
        angle = jnp.arctan2(sin, cos)  # 0 is upright
        missing = 15.0 - (0.5 * speed**2 + 15.0 * cos)  # energy that it lacks to get there
        action = jnp.where(jnp.abs(angle) < 0.4, -6.0 * angle - speed, missing * jnp.sign(speed))
        noise = jnp.linspace(0.2, 3.0, episodes)[:, None] * jax.random.normal(key, action.shape)
        return jnp.clip(jnp.clip(action, -1.0, 1.0) + noise, -1.0, 1.0)

    rows, _ = env.play(key, act, episodes)  # Pendulum never ends by itself
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows), rows.reward.sum(axis=0)


class MLP(nn.Module):
    """Hidden layers and a linear head ``[..., outputs]``, with PyTorch's initialisation."""

    hidden_dims: tuple[int, ...]
    outputs: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.hidden_dims:
            x = nn.relu(self.dense(x, width))
        return self.dense(x, self.outputs)

    def dense(self, x: Array, width: int) -> Array:
        bound = x.shape[-1] ** -0.5
        uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
        return nn.Dense(width, kernel_init=uniform, bias_init=uniform)(x)


TwinMLP = nn.vmap(MLP, {"params": 0}, {"params": True}, in_axes=None, axis_size=2)


class State(NamedTuple):
    """All that gradient steps change."""

    actor: Any  # {"mean", "log_std"}
    critics: Any  # leaves [2, ...]
    value: Any
    target_critics: Any  # leaves [2, ...]
    adam: dict[str, Any]  # moments, by the names of the first three


class Learner:
    """The constants of a training run."""

    def __init__(self, config: Config) -> None:
        self.config, self.env = config, Env(config.env)
        self.action_size = math.prod(self.env.action_space.shape)
        self.mean = MLP(config.hidden_dims, self.action_size)
        self.critics, self.value = TwinMLP(config.hidden_dims, 1), MLP(config.hidden_dims, 1)
        decaying = optax.cosine_decay_schedule(config.learning_rate, config.num_updates)
        rates = {"actor": decaying, "critics": config.learning_rate, "value": config.learning_rate}
        self.optimisers = {name: optax.adam(rate) for name, rate in rates.items()}

    def init(self, key: Array) -> State:
        key_actor, key_critics, key_value, key_obs = jax.random.split(key, 4)
        obs = self.env.reset(key_obs).obs
        mean = self.mean.init(key_actor, obs)
        critics = self.critics.init(key_critics, jnp.append(obs, jnp.zeros(self.action_size)))
        params = {
            "actor": {"mean": mean, "log_std": jnp.zeros(self.action_size)},
            "critics": critics,
            "value": self.value.init(key_value, obs),
        }
        adam = {name: self.optimisers[name].init(params[name]) for name in params}
        return State(**params, target_critics=critics, adam=adam)

    def act(self, actor: Any, obs: Array) -> Array:
        """The mean action ``[..., A]``."""
        return jnp.tanh(self.mean.apply(actor["mean"], obs))

    def log_prob(self, actor: Any, obs: Array, action: Array) -> Array:
        """Log-densities ``[...]`` of a normal around the mean action."""
        log_std = jnp.clip(actor["log_std"], -5.0, 2.0)
        z = (action - self.act(actor, obs)) / jnp.exp(log_std)
        return -(0.5 * jnp.square(z) + log_std + 0.5 * math.log(2.0 * math.pi)).sum(axis=-1)

    def q(self, critics: Any, batch: Dataset) -> Array:
        """Both critics' values ``[2, B]`` of the data's actions."""
        return self.critics.apply(critics, jnp.append(batch.obs, batch.action, axis=-1))[..., 0]

    def v(self, value: Any, obs: Array) -> Array:
        """Values of observations: ``[B]``."""
        return self.value.apply(value, obs)[..., 0]

    def value_loss(self, value: Any, batch: Dataset, q: Array) -> Array:
        """``mean |expectile - 1(u < 0)| u^2``, where ``u = min_i Q'_i(s, a) - V(s)``."""
        u = q - self.v(value, batch.obs)
        return (jnp.abs(self.config.expectile - (u < 0)) * jnp.square(u)).mean()

    def actor_loss(self, actor: Any, state: State, batch: Dataset, q: Array) -> Array:
        """``-mean w log pi(a | s)``, where ``w = min(exp(temperature u), 100)``."""
        u = q - self.v(state.value, batch.obs)
        weight = jnp.minimum(jnp.exp(self.config.temperature * u), 100.0)
        return -(weight * self.log_prob(actor, batch.obs, batch.action)).mean()

    def critic_loss(self, critics: Any, state: State, batch: Dataset) -> Array:
        """``sum_i mean (Q_i(s, a) - y)^2``, where ``y = r + gamma V(s')``; no V after the end."""
        next_value = jnp.where(batch.terminated, 0.0, self.v(state.value, batch.next_obs))
        target = self.config.reward_scale * batch.reward + self.config.gamma * next_value
        return jnp.square(self.q(critics, batch) - target).mean(axis=-1).sum()

    def update(self, state: State, batch: Dataset) -> State:
        """Update value, actor and critics on ``batch[B]``; each uses those updated before it."""
        q = self.q(state.target_critics, batch).min(axis=0)
        state = self.descend(state, "value", jax.grad(self.value_loss)(state.value, batch, q))
        grads = jax.grad(self.actor_loss)(state.actor, state, batch, q)
        state = self.descend(state, "actor", grads)
        grads = jax.grad(self.critic_loss)(state.critics, state, batch)
        state = self.descend(state, "critics", grads)
        target = optax.incremental_update(state.critics, state.target_critics, self.config.tau)
        return state._replace(target_critics=target)

    def descend(self, state: State, name: str, grads: Any) -> State:
        """A step of Adam on one field of the state."""
        updates, moments = self.optimisers[name].update(grads, state.adam[name])
        params = optax.apply_updates(getattr(state, name), updates)
        return state._replace(**{name: params}, adam={**state.adam, name: moments})

    def block(self, state: State, key: Array, data: Dataset) -> tuple[State, Array]:
        """``G`` gradient steps, and returns ``[E]`` of greedy episodes after them."""
        key_rows, key_eval = jax.random.split(key)
        shape = self.config.num_updates // self.config.num_evals, self.config.batch_size
        rows = jax.random.randint(key_rows, shape, 0, len(data.reward))

        def step(state: State, rows: Array) -> tuple[State, None]:
            return self.update(state, jax.tree.map(lambda x: x[rows], data)), None

        state, _ = jax.lax.scan(step, state, rows)
        return state, self.evaluate(key_eval, state)

    def evaluate(self, key: Array, state: State) -> Array:
        """Returns ``[E]`` of the mean action, over one whole episode each."""
        episodes = self.config.eval_episodes
        rows, running = self.env.play(key, lambda key, obs: self.act(state.actor, obs), episodes)
        return rows.reward.sum(axis=0, where=running)

    def train(self, key: Array, data: Dataset) -> tuple[State, Array]:
        """The first two fields of ``Results``, for one seed."""
        key_init, key_train = jax.random.split(key)
        keys = jax.random.split(key_train, self.config.num_evals)
        block = functools.partial(self.block, data=data)
        return jax.lax.scan(block, self.init(key_init), keys)


class Results(NamedTuple):
    state: State  # leaves [S, ...]
    returns: Array  # [S, I, E], of greedy episodes
    compile_seconds: float
    train_seconds: float


def train(config: Config, keys: Array, data: Dataset) -> Results:
    """Train one agent from each of ``keys[S]`` on the same data, all in one compiled program."""
    check(config)
    start = time.perf_counter()
    several = jax.vmap(Learner(config).train, in_axes=(0, None))
    program = jax.jit(several).lower(keys, data).compile()
    compiled = time.perf_counter()
    results = jax.block_until_ready(program(keys, data))
    return Results(*results, compiled - start, time.perf_counter() - compiled)


def main() -> None:
    config = tyro.cli(Config)
    seeds = range(config.seed, config.seed + config.num_seeds)
    try:
        check(config)
        env = Env(config.env)
        if config.dataset:
            data = read(config.dataset, env)
        else:
            key = jax.random.key(config.seed)
            data, made = jax.jit(make_dataset, static_argnums=(1, 2))(key, env, config.num_episodes)
            print(f"made data of return {made.mean():.2f} on average, {made.max():.2f} at best")
    except ValueError as error:
        print(f"minimal_iql.py: {error}", file=sys.stderr)
        sys.exit(2)
    results = train(config, jnp.stack([jax.random.key(seed) for seed in seeds]), data)

    print(f"{config.env}, greedy returns after {config.num_updates:,} gradient steps:")
    for seed, returns in zip(seeds, results.returns[:, -1], strict=True):
        print(f"  seed {seed:<4d} {returns.mean():9.2f} ± {returns.std():.2f}")
    print(f"  mean {results.returns[:, -1].mean():13.2f}")
    seconds = results.train_seconds
    print(f"compiled in {results.compile_seconds:.1f} s, trained in {seconds:.1f} s", end=" ")
    print(f"({config.num_seeds * config.num_updates / seconds:,.0f} gradient steps/s)")


if __name__ == "__main__":
    main()
