"""SAC in one file, to read from top to bottom and to fork: it imports nothing from jaxrl.

    python experiments/minimal_sac.py --num-seeds 8

Soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905): twin critics with target networks, a
policy that is the tanh of a normal, a learned temperature, and a replay buffer. A time limit is
truncation, after which the value is still bootstrapped, from the true next observation.
Environments, buffer, networks and optimisers run inside one jitted program, vmapped over seeds.

Axes: ``S`` seeds, ``I`` iterations, ``N`` environments, ``L`` slots of the buffer, ``G`` gradient
steps, ``B`` batch, ``E`` evaluation episodes; ``D`` is the flattened observation, ``A`` the action.
"""

import dataclasses
import functools
import math
import sys
import time
from typing import Any, NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import optax
import tyro
from jax import Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Train SAC on a gymnax environment with continuous actions, several seeds at once."""

    env: str = "Pendulum-v1"  # name of the environment
    total_steps: int = 20_000  # environment steps of each seed
    seed: int = 0  # the first seed; the others follow it
    num_seeds: int = 4  # S, agents trained together
    num_envs: int = 1  # N, environments of each agent
    num_updates: int = 1  # G, gradient steps after each step of all environments
    batch_size: int = 128  # B, transitions of each gradient step
    buffer_size: int = 100_000  # transitions in the replay buffer
    learning_starts: int = 1_000  # transitions by uniform actions before the first gradient step
    learning_rate: float = 1e-3  # of Adam, for policy, critics and temperature
    gamma: float = 0.99  # discount
    tau: float = 0.005  # step of the target critics towards the critics
    target_entropy: float = -1.0  # per action element, in nats
    hidden_dims: tuple[int, ...] = (64, 64)  # widths of the hidden layers
    eval_episodes: int = 16  # E, greedy episodes after training

    @property
    def warmup_steps(self) -> int:
        return -(-self.learning_starts // self.num_envs)

    @property
    def num_iterations(self) -> int:
        return self.total_steps // self.num_envs - self.warmup_steps

    @property
    def slots(self) -> int:
        return -(-min(self.buffer_size, self.total_steps) // self.num_envs)


def check(config: Config) -> None:
    """Refuse what cannot run, before anything is compiled. Raises ``ValueError``."""
    for field in dataclasses.fields(config):
        name, value, least = field.name, getattr(config, field.name), int(field.type is not float)
        if name in ("env", "seed"):
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if not number >= least and name != "target_entropy":
                raise ValueError(f"{name} is {value}: it must be at least {least}")
        if name in ("gamma", "tau") and value > 1:
            raise ValueError(f"{name} is {value}: it must be at most 1")
    if config.num_iterations < 1:
        least = (config.warmup_steps + 1) * config.num_envs
        raise ValueError(f"total_steps is {config.total_steps}: it must be at least {least}")
    if config.env not in gymnax.registered_envs:
        raise ValueError(f"env is {config.env!r}: choose from {', '.join(gymnax.registered_envs)}")
    if hasattr(Env(config.env).action_space, "n"):
        raise ValueError(f"env is {config.env!r}: its actions are discrete; try Pendulum-v1")


class EnvState(NamedTuple):
    inner: Any  # gymnax's own state
    obs: Array  # [D], what to act on next
    steps: Array  # since the last reset
    episode_return: Array  # since the last reset


class Transition(NamedTuple):
    obs: Array  # [D]
    action: Array  # [A], in [-1, 1]
    reward: Array
    next_obs: Array  # [D], the true successor, never an observation after a reset
    terminated: Array  # the episode came to its own end: no future, no value
    truncated: Array  # the time limit cut it: the future still has a value
    episode_return: Array  # up to here; of the whole episode where it ended

    @property
    def ended(self) -> Array:
        return self.terminated | self.truncated


class Env:
    """A gymnax environment that resets itself; ``vmap`` makes many copies of it.

    Built on the raw ``reset_env`` and ``step_env``, so that no observation is lost behind an
    automatic reset, and with a time limit of its own, to tell truncation from termination.
    """

    def __init__(self, name: str) -> None:
        self.env, params = gymnax.make(name)
        self.max_steps = params.max_steps_in_episode
        self.params = params.replace(max_steps_in_episode=2**30)
        self.action_space = self.env.action_space(self.params)

    def reset(self, key: Array) -> EnvState:
        obs, inner = self.env.reset_env(key, self.params)
        return EnvState(inner, jnp.float32(obs).ravel(), jnp.int32(0), jnp.float32(0.0))

    def step(self, key: Array, state: EnvState, action: Array) -> tuple[EnvState, Transition]:
        key_step, key_reset = jax.random.split(key)
        low, high = self.action_space.low, self.action_space.high
        next_obs, inner, reward, terminated, _ = self.env.step_env(
            key_step, state.inner, low + (action + 1.0) * 0.5 * (high - low), self.params
        )
        next_obs = jnp.float32(next_obs).ravel()
        reward = jnp.float32(reward)
        steps, total = state.steps + 1, state.episode_return + reward
        truncated = (steps >= self.max_steps) & ~terminated
        row = Transition(state.obs, action, reward, next_obs, terminated, truncated, total)
        after = EnvState(inner, next_obs, steps, total)
        fresh = self.reset(key_reset)
        return jax.tree.map(lambda new, old: jnp.where(row.ended, new, old), fresh, after), row


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

    actor: Any
    critics: Any  # leaves [2, ...]
    log_alpha: Array
    target_critics: Any  # leaves [2, ...]
    adam: dict[str, Any]  # moments, by the names of the first three


class Learner:
    """The constants of a training run."""

    def __init__(self, config: Config) -> None:
        self.config, self.env = config, Env(config.env)
        self.action_size = math.prod(self.env.action_space.shape)
        self.actor = MLP(config.hidden_dims, 2 * self.action_size)
        self.critics = TwinMLP(config.hidden_dims, 1)
        self.optimiser = optax.adam(config.learning_rate)

    def init(self, key: Array) -> State:
        key_actor, key_critics, key_obs = jax.random.split(key, 3)
        obs = self.env.reset(key_obs).obs
        actor = self.actor.init(key_actor, obs)
        critics = self.critics.init(key_critics, jnp.append(obs, jnp.zeros(self.action_size)))
        params = {"actor": actor, "critics": critics, "log_alpha": jnp.float32(0.0)}
        adam = {name: self.optimiser.init(params[name]) for name in params}
        return State(**params, target_critics=critics, adam=adam)

    def sample(self, actor: Any, obs: Array, noise: Array | float) -> tuple[Array, Array]:
        """The action ``tanh(mean + std * noise)``, and its log-probability ``[...]``."""
        mean, log_std = jnp.split(self.actor.apply(actor, obs), 2, axis=-1)
        log_std = jnp.clip(log_std, -20.0, 2.0)
        raw = mean + jnp.exp(log_std) * noise
        log_prob = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2.0 * math.pi)
        log_slope = 2.0 * (math.log(2.0) - raw - nn.softplus(-2.0 * raw))  # log(1 - tanh(raw)^2)
        return jnp.tanh(raw), (log_prob - log_slope).sum(axis=-1)

    def q(self, critics: Any, obs: Array, action: Array) -> Array:
        """Both critics' values ``[2, ...]``."""
        return self.critics.apply(critics, jnp.concatenate([obs, action], axis=-1))[..., 0]

    def critic_loss(self, critics: Any, state: State, batch: Transition, noise: Array) -> Array:
        """``sum_i mean (Q_i(s, a) - y)^2``, ``y = r + gamma (min_j Q'_j(s', a') - alpha log pi)``.

        No value follows a termination; one does follow a truncation.
        """
        next_action, log_prob = self.sample(state.actor, batch.next_obs, noise)
        next_q = self.q(state.target_critics, batch.next_obs, next_action).min(axis=0)
        next_value = next_q - jnp.exp(state.log_alpha) * log_prob
        target = batch.reward + self.config.gamma * jnp.where(batch.terminated, 0.0, next_value)
        return jnp.square(self.q(critics, batch.obs, batch.action) - target).mean(axis=-1).sum()

    def actor_loss(self, actor: Any, state: State, batch: Transition, noise: Array) -> tuple:
        """``mean (alpha log pi(a | s) - min_i Q_i(s, a))``, and the policy's entropy."""
        action, log_prob = self.sample(actor, batch.obs, noise)
        q = self.q(state.critics, batch.obs, action).min(axis=0)
        return (jnp.exp(state.log_alpha) * log_prob - q).mean(), -log_prob.mean()

    def update(self, state: State, batch: Transition, noise: Array) -> State:
        """A gradient step on ``batch[B]`` with ``noise[2, B, A]``: critics, actor, temperature."""
        grads = jax.grad(self.critic_loss)(state.critics, state, batch, noise[0])
        state = self.descend(state, "critics", grads)
        actor_grad = jax.grad(self.actor_loss, has_aux=True)
        grads, entropy = actor_grad(state.actor, state, batch, noise[1])
        state = self.descend(state, "actor", grads)
        excess = entropy - self.config.target_entropy * self.action_size
        grads = jax.grad(lambda log_alpha: jnp.exp(log_alpha) * excess)(state.log_alpha)
        state = self.descend(state, "log_alpha", grads)
        target = optax.incremental_update(state.critics, state.target_critics, self.config.tau)
        return state._replace(target_critics=target)

    def descend(self, state: State, name: str, grads: Any) -> State:
        """A step of Adam on one field of the state."""
        updates, moments = self.optimiser.update(grads, state.adam[name])
        params = optax.apply_updates(getattr(state, name), updates)
        return state._replace(**{name: params}, adam={**state.adam, name: moments})

    def write(self, buffer: Transition, row: Transition, t: Array) -> Transition:
        """The buffer ``[L, N]`` with ``row[N]`` in the place of the oldest."""
        put, at = jax.lax.dynamic_update_index_in_dim, t % self.config.slots
        return jax.tree.map(lambda old, new: put(old, new, at, 0), buffer, row)

    def draw(self, key: Array, buffer: Transition, t: Array) -> Transition:
        """Batches ``[G, B]`` out of a buffer ``[L, N]`` to which ``t`` rows were written."""
        key_slot, key_env = jax.random.split(key)
        shape = self.config.num_updates, self.config.batch_size
        slot = jax.random.randint(key_slot, shape, 0, jnp.minimum(t, self.config.slots))
        env = jax.random.randint(key_env, shape, 0, self.config.num_envs)
        return jax.tree.map(lambda x: x[slot, env], buffer)

    def act(self, key: Array, env_state: EnvState, action: Array) -> tuple[EnvState, Transition]:
        """A step of all environments with ``action[N, A]``."""
        return jax.vmap(self.env.step)(jax.random.split(key, len(action)), env_state, action)

    def warm_up(self, carry: tuple, x: tuple[Array, Array]) -> tuple[tuple, None]:
        """A step of all environments with uniform actions."""
        (env_state, buffer), (t, key) = carry, x
        key_act, key_env = jax.random.split(key)
        action = jax.random.uniform(key_act, (self.config.num_envs, self.action_size), minval=-1.0)
        env_state, row = self.act(key_env, env_state, action)
        return (env_state, self.write(buffer, row, t)), None

    def iteration(self, carry: tuple, x: tuple[Array, Array]) -> tuple[tuple, Array]:
        """A step of all environments with the policy, then ``G`` gradient steps."""
        (state, env_state, buffer), (t, key) = carry, x
        key_act, key_env, key_batch, key_noise = jax.random.split(key, 4)
        noise = jax.random.normal(key_act, (self.config.num_envs, self.action_size))
        action, _ = self.sample(state.actor, env_state.obs, noise)
        env_state, row = self.act(key_env, env_state, action)
        buffer = self.write(buffer, row, t)
        batches = self.draw(key_batch, buffer, t + 1)
        noise_shape = self.config.num_updates, 2, self.config.batch_size, self.action_size
        xs = batches, jax.random.normal(key_noise, noise_shape)
        state, _ = jax.lax.scan(lambda state, x: (self.update(state, *x), None), state, xs)
        return (state, env_state, buffer), row.episode_return.mean(where=row.ended)

    def train(self, key: Array) -> tuple[State, Array, Array]:
        """The first three fields of ``Results``, for one seed."""
        key_init, key_reset, key_warmup, key_train, key_eval = jax.random.split(key, 5)
        warmup_steps, iterations = self.config.warmup_steps, self.config.num_iterations
        env_state = jax.vmap(self.env.reset)(jax.random.split(key_reset, self.config.num_envs))
        action = jnp.zeros((self.config.num_envs, self.action_size))
        row = jax.eval_shape(self.act, key_reset, env_state, action)[1]
        buffer = jax.tree.map(lambda x: jnp.zeros((self.config.slots, *x.shape), x.dtype), row)
        xs = jnp.arange(warmup_steps), jax.random.split(key_warmup, warmup_steps)
        (env_state, buffer), _ = jax.lax.scan(self.warm_up, (env_state, buffer), xs)
        xs = warmup_steps + jnp.arange(iterations), jax.random.split(key_train, iterations)
        start = self.init(key_init), env_state, buffer
        (state, _, _), episode_return = jax.lax.scan(self.iteration, start, xs)
        return state, episode_return, self.evaluate(key_eval, state)

    def evaluate(self, key: Array, state: State) -> Array:
        """Returns ``[E]`` of the greedy policy, over one whole episode each."""
        key_reset, key_steps = jax.random.split(key)
        episodes = self.config.eval_episodes

        def step(carry: tuple, key: Array) -> tuple[tuple, None]:
            env_state, running, total = carry
            action, _ = self.sample(state.actor, env_state.obs, 0.0)
            env_state, outcome = self.act(key, env_state, action)
            total = total + running * outcome.reward
            return (env_state, running & ~outcome.terminated, total), None

        env_state = jax.vmap(self.env.reset)(jax.random.split(key_reset, episodes))
        start = env_state, jnp.ones(episodes, bool), jnp.zeros(episodes)
        return jax.lax.scan(step, start, jax.random.split(key_steps, self.env.max_steps))[0][2]


class Results(NamedTuple):
    state: State  # leaves [S, ...]
    episode_return: Array  # [S, I], mean of the episodes that ended in an iteration; NaN if none
    final_return: Array  # [S, E], of greedy episodes
    compile_seconds: float
    train_seconds: float


def train(config: Config, keys: Array) -> Results:
    """Train one agent from each of ``keys[S]``, all in one compiled program."""
    check(config)
    start = time.perf_counter()
    program = jax.jit(jax.vmap(Learner(config).train)).lower(keys).compile()
    compiled = time.perf_counter()
    results = jax.block_until_ready(program(keys))
    return Results(*results, compiled - start, time.perf_counter() - compiled)


def main() -> None:
    config = tyro.cli(Config)
    seeds = range(config.seed, config.seed + config.num_seeds)
    try:
        check(config)
    except ValueError as error:
        print(f"minimal_sac.py: {error}", file=sys.stderr)
        sys.exit(2)
    results = train(config, jnp.stack([jax.random.key(seed) for seed in seeds]))

    print(f"{config.env}, greedy returns after {config.total_steps:,} steps:")
    for seed, returns in zip(seeds, results.final_return, strict=True):
        print(f"  seed {seed:<4d} {returns.mean():9.2f} ± {returns.std():.2f}")
    steps = config.num_seeds * config.num_iterations * config.num_envs
    print(f"  mean {results.final_return.mean():13.2f}")
    seconds = results.train_seconds
    print(f"compiled in {results.compile_seconds:.1f} s, trained in {seconds:.1f} s", end=" ")
    print(f"({steps / seconds:,.0f} steps/s)")


if __name__ == "__main__":
    main()
