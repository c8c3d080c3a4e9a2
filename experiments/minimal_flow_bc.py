"""Flow matching in one file, to read from top to bottom and to fork: it imports nothing from jaxrl.

    python experiments/minimal_flow_bc.py --num-seeds 8
    python experiments/minimal_flow_bc.py --env MountainCarContinuous-v0 --dataset FILE.hdf5

Behaviour cloning with a flow policy (Lipman et al. 2023, arXiv:2210.02747): a network learns the
velocity that carries normal noise at time 0 to the data's actions at time 1, along straight paths;
acting follows it from fresh noise in a few Euler steps. A moving average of the parameters acts. It
learns from the best episodes of a dataset: a file in D4RL's layout, or for Pendulum one that is
made here, by a controller with noise of all sizes. All but reading the file runs inside one jitted
program, vmapped over seeds.

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
    """Clone a dataset with a flow, for a gymnax environment with continuous actions."""

    env: str = "Pendulum-v1"  # name of the environment
    dataset: str = ""  # an HDF5 file in D4RL's layout; without one, data of Pendulum are made
    num_episodes: int = 100  # episodes of generated data
    top: float = 0.3  # part of the episodes, the best by return, to learn from
    num_updates: int = 10_000  # gradient steps of each seed
    num_evals: int = 10  # I, evaluations on the way; divides the gradient steps
    seed: int = 0  # the first seed; the others follow it
    num_seeds: int = 4  # S, agents trained together
    batch_size: int = 256  # B, actions of each gradient step
    learning_rate: float = 1e-3  # of Adam
    ema_decay: float = 0.995  # of the moving average of the parameters, which acts
    sample_steps: int = 5  # Euler steps from noise to an action
    hidden_dims: tuple[int, ...] = (64, 64)  # widths of the hidden layers
    eval_episodes: int = 16  # E, episodes of each evaluation


def check(config: Config) -> None:
    """Refuse what cannot run, before anything is compiled. Raises ``ValueError``."""
    for field in dataclasses.fields(config):
        name, value, least = field.name, getattr(config, field.name), int(field.type is not float)
        if name in ("env", "dataset", "seed"):
            continue
        if not min(value if isinstance(value, tuple) else (value,)) >= least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")
        if name in ("top", "ema_decay") and value > 1:
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

        Returns observations and actions ``[T, E, ...]``, and the returns ``[E]``.
        """

        def step(carry: tuple, key: Array) -> tuple[tuple, tuple]:
            state, running = carry
            key_act, key_step = jax.random.split(key)
            action = act(key_act, state.obs)
            keys = jax.random.split(key_step, episodes)
            after, reward, terminated = jax.vmap(self.step)(keys, state, action)
            return (after, running & ~terminated), (Dataset(state.obs, action), reward * running)

        key_reset, key_steps = jax.random.split(key)
        state = jax.vmap(self.reset)(jax.random.split(key_reset, episodes))
        start = state, jnp.ones(episodes, bool)
        keys = jax.random.split(key_steps, self.max_steps)
        _, (rows, reward) = jax.lax.scan(step, start, keys)
        return rows, reward.sum(axis=0)


class Dataset(NamedTuple):
    """Observations ``[D, O]`` and actions ``[D, A]``, or a batch of them ``[B, ...]``."""

    obs: Array
    action: Array  # in [-1, 1]


KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def read(path: str, env: Env, top: float) -> Dataset:
    """The best episodes of an HDF5 file in D4RL's layout. Raises ``ValueError`` for other files."""
    try:
        with h5py.File(path) as file:
            data = {name: np.asarray(file[name]) for name in KEYS if name in file}
    except OSError as error:
        raise ValueError(f"dataset is {path!r}: {error}") from None
    missing = [name for name in KEYS if name not in data]
    if missing:
        raise ValueError(f"dataset is {path!r}: it has no {', '.join(missing)}")
    obs = np.float32(data["observations"]).reshape(len(data["rewards"]), -1)
    ends = (data["terminals"] + data["timeouts"]).astype(bool)
    episode = np.cumsum(ends) - ends  # the number of each row's episode
    returns = np.bincount(episode, data["rewards"])
    low, high = env.bounds()
    action = 2.0 * (data["actions"].reshape(len(obs), -1) - low) / (high - low) - 1.0
    keep = np.isin(episode, best(returns, top))
    return Dataset(jnp.asarray(obs[keep]), jnp.clip(action[keep], -1.0, 1.0))


def best(returns: np.ndarray, top: float) -> np.ndarray:
    """The numbers of the best episodes, a part ``top`` of all and at least one."""
    return np.argsort(-returns, kind="stable")[: max(round(top * len(returns)), 1)]


def make_dataset(key: Array, env: Env, episodes: int) -> tuple[Dataset, Array]:
    """Episodes of Pendulum ``[T, E]`` by a controller with more and more noise, and their returns.

    ``E`` is the number of episodes.
    """

    def act(key: Array, obs: Array) -> Array:
        cos, sin, speed = obs[:, :1], obs[:, 1:2], obs[:, 2:]
        angle = jnp.arctan2(sin, cos)  # 0 is upright
        missing = 15.0 - (0.5 * speed**2 + 15.0 * cos)  # energy that it lacks to get there
        action = jnp.where(jnp.abs(angle) < 0.4, -6.0 * angle - speed, missing * jnp.sign(speed))
        noise = jnp.linspace(0.2, 3.0, episodes)[:, None] * jax.random.normal(key, action.shape)
        return jnp.clip(jnp.clip(action, -1.0, 1.0) + noise, -1.0, 1.0)

    return env.play(key, act, episodes)


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


class State(NamedTuple):
    """All that gradient steps change."""

    params: Any  # of the velocity
    ema: Any  # their moving average
    adam: Any  # moments


class Learner:
    """The constants of a training run."""

    def __init__(self, config: Config) -> None:
        self.config, self.env = config, Env(config.env)
        self.action_size = math.prod(self.env.action_space.shape)
        self.network = MLP(config.hidden_dims, self.action_size)
        self.optimiser = optax.adam(config.learning_rate)

    def init(self, key: Array) -> State:
        key_params, key_obs = jax.random.split(key)
        obs = self.env.reset(key_obs).obs
        params = self.network.init(key_params, jnp.zeros(self.action_size + 1 + obs.size))
        return State(params, params, self.optimiser.init(params))

    def velocity(self, params: Any, x: Array, time: Array, obs: Array) -> Array:
        """Velocities ``[..., A]`` at points ``x[..., A]`` and times ``[..., 1]``."""
        return self.network.apply(params, jnp.concatenate([x, time, obs], axis=-1))

    def loss(self, params: Any, batch: Dataset, time: Array, noise: Array) -> Array:
        """``mean sum (v(s, x_t, t) - (a - x_0))^2``, where ``x_t = (1 - t) x_0 + t a``.

        ``noise`` is ``x_0[B, A]``, and ``time`` is ``[B, 1]``; the sum is over action elements.
        """
        x = (1.0 - time) * noise + time * batch.action
        error = self.velocity(params, x, time, batch.obs) - (batch.action - noise)
        return jnp.square(error).sum(axis=-1).mean()

    def update(self, state: State, batch: Dataset, time: Array, noise: Array) -> State:
        """A gradient step of Adam on ``batch[B]``, and one of the moving average."""
        grads = jax.grad(self.loss)(state.params, batch, time, noise)
        updates, adam = self.optimiser.update(grads, state.adam)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1.0 - self.config.ema_decay)
        return State(params, ema, adam)

    def act(self, params: Any, obs: Array, noise: Array) -> Array:
        """Actions ``[..., A]`` at the ends of the ways from ``noise[..., A]``."""
        steps, x = self.config.sample_steps, noise
        for i in range(steps):
            time = jnp.full((*x.shape[:-1], 1), i / steps)
            x = x + self.velocity(params, x, time, obs) / steps
        return jnp.clip(x, -1.0, 1.0)

    def block(self, state: State, key: Array, data: Dataset) -> tuple[State, Array]:
        """``G`` gradient steps, and returns ``[E]`` of episodes after them."""
        key_rows, key_time, key_noise, key_eval = jax.random.split(key, 4)
        shape = self.config.num_updates // self.config.num_evals, self.config.batch_size
        rows = jax.random.randint(key_rows, shape, 0, len(data.obs))
        time = jax.random.uniform(key_time, (*shape, 1))
        noise = jax.random.normal(key_noise, (*shape, self.action_size))

        def step(state: State, drawn: tuple) -> tuple[State, None]:
            rows, time, noise = drawn
            batch = jax.tree.map(lambda x: x[rows], data)
            return self.update(state, batch, time, noise), None

        state, _ = jax.lax.scan(step, state, (rows, time, noise))
        return state, self.evaluate(key_eval, state)

    def evaluate(self, key: Array, state: State) -> Array:
        """Returns ``[E]`` of the moving average, over one whole episode each."""
        episodes = self.config.eval_episodes

        def act(key: Array, obs: Array) -> Array:
            return self.act(state.ema, obs, jax.random.normal(key, (episodes, self.action_size)))

        return self.env.play(key, act, episodes)[1]

    def train(self, key: Array, data: Dataset) -> tuple[State, Array]:
        """The first two fields of ``Results``, for one seed."""
        key_init, key_train = jax.random.split(key)
        keys = jax.random.split(key_train, self.config.num_evals)
        block = functools.partial(self.block, data=data)
        return jax.lax.scan(block, self.init(key_init), keys)


class Results(NamedTuple):
    state: State  # leaves [S, ...]
    returns: Array  # [S, I, E]
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
            data = read(config.dataset, env, config.top)
        else:
            key = jax.random.key(config.seed)
            made, returns = jax.jit(make_dataset, static_argnums=(1, 2))(
                key, env, config.num_episodes
            )
            chosen = best(np.asarray(returns), config.top)
            data = jax.tree.map(lambda x: x[:, chosen].reshape(-1, x.shape[-1]), made)
            print(f"the chosen episodes have a return of {returns[chosen].mean():.2f} on average")
    except ValueError as error:
        print(f"minimal_flow_bc.py: {error}", file=sys.stderr)
        sys.exit(2)
    results = train(config, jnp.stack([jax.random.key(seed) for seed in seeds]), data)

    print(f"{config.env}, returns after {config.num_updates:,} gradient steps:")
    for seed, returns in zip(seeds, results.returns[:, -1], strict=True):
        print(f"  seed {seed:<4d} {returns.mean():9.2f} ± {returns.std():.2f}")
    print(f"  mean {results.returns[:, -1].mean():13.2f}")
    seconds = results.train_seconds
    print(f"compiled in {results.compile_seconds:.1f} s, trained in {seconds:.1f} s", end=" ")
    print(f"({config.num_seeds * config.num_updates / seconds:,.0f} gradient steps/s)")


if __name__ == "__main__":
    main()
