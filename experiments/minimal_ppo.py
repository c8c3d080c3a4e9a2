"""PPO in one file, to read from top to bottom and to fork: it imports nothing from jaxrl.

    python experiments/minimal_ppo.py --num-seeds 8

Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) in its common variant: GAE,
minibatches of single transitions, advantages normalised per minibatch, a learning rate that decays.
A time limit is truncation, after which the value is still bootstrapped, and not termination.
Environments, networks and optimiser run inside one jitted program, vmapped over seeds.

Axes: ``S`` seeds, ``I`` iterations, ``T`` time, ``N`` environments, ``G`` gradient steps of an
update, ``B`` minibatch, ``E`` evaluation episodes; ``D`` is the flattened observation.
"""

import dataclasses
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
    """Train PPO on a gymnax environment with discrete actions, several seeds at once."""

    env: str = "CartPole-v1"  # name of the environment
    total_steps: int = 500_000  # environment steps of each seed
    seed: int = 0  # the first seed; the others follow it
    num_seeds: int = 4  # S, agents trained together
    num_envs: int = 8  # N, environments of each agent
    num_steps: int = 64  # T, steps in each environment between two updates
    update_epochs: int = 4  # passes over each rollout
    num_minibatches: int = 4  # gradient steps in each pass
    learning_rate: float = 1e-3  # of Adam
    lr_decay: bool = True  # let the learning rate fall linearly to zero, update by update
    gamma: float = 0.99  # discount
    gae_lambda: float = 0.95  # between one-step errors (0) and whole returns (1)
    clip_eps: float = 0.2  # clipping range of the probability ratio around 1
    entropy_coef: float = 0.01  # coefficient of the entropy bonus
    value_coef: float = 0.5  # coefficient of the value loss
    max_grad_norm: float = 0.5  # gradients are clipped to this global norm
    hidden_dims: tuple[int, ...] = (64, 64)  # widths of the hidden layers
    eval_episodes: int = 16  # E, greedy episodes after training

    @property
    def batch_size(self) -> int:
        return self.num_envs * self.num_steps

    @property
    def num_iterations(self) -> int:
        return self.total_steps // self.batch_size

    @property
    def num_gradient_steps(self) -> int:
        return self.update_epochs * self.num_minibatches


def check(config: Config) -> None:
    """Refuse what cannot run, before anything is compiled. Raises ``ValueError``."""
    for field in dataclasses.fields(config):
        name, value, least = field.name, getattr(config, field.name), int(field.type is not float)
        if name in ("env", "seed", "lr_decay"):
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if not number >= least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")
        if name in ("gamma", "gae_lambda") and value > 1:
            raise ValueError(f"{name} is {value}: it must be at most 1")
    size = config.batch_size
    if size % config.num_minibatches:
        raise ValueError(f"num_minibatches is {config.num_minibatches}: it must divide {size}")
    if size < 2 * config.num_minibatches:  # a single advantage, normalised, is 0
        raise ValueError(f"num_minibatches is {config.num_minibatches}: at most {size // 2}")
    if config.total_steps < size:
        raise ValueError(f"total_steps is {config.total_steps}: one rollout needs {size}")
    if config.env not in gymnax.registered_envs:
        raise ValueError(f"env is {config.env!r}: choose from {', '.join(gymnax.registered_envs)}")
    if not hasattr(Env(config.env).action_space, "n"):
        raise ValueError(f"env is {config.env!r}: its actions are continuous; try CartPole-v1")


class EnvState(NamedTuple):
    inner: Any  # gymnax's own state
    obs: Array  # [D], what to act on next
    steps: Array  # since the last reset
    episode_return: Array  # since the last reset


class Transition(NamedTuple):
    obs: Array  # [D]
    action: Array
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
        next_obs, inner, reward, terminated, _ = self.env.step_env(
            key_step, state.inner, action, self.params
        )
        next_obs = jnp.float32(next_obs).ravel()
        reward = jnp.float32(reward)
        steps, total = state.steps + 1, state.episode_return + reward
        truncated = (steps >= self.max_steps) & ~terminated
        row = Transition(state.obs, action, reward, next_obs, terminated, truncated, total)
        after = EnvState(inner, next_obs, steps, total)
        fresh = self.reset(key_reset)
        return jax.tree.map(lambda new, old: jnp.where(row.ended, new, old), fresh, after), row


class ActorCritic(nn.Module):
    """Logits ``[..., num_actions]`` and value ``[...]`` of ``obs[..., D]``; no layer is shared."""

    num_actions: int
    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs: Array) -> tuple[Array, Array]:
        logits = self.mlp(obs, self.num_actions, 0.01)  # a first policy close to uniform
        value = self.mlp(obs, 1, 1.0)
        return logits, value[..., 0]

    def mlp(self, x: Array, output_size: int, output_scale: float) -> Array:
        for width in self.hidden_dims:
            x = nn.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        return nn.Dense(output_size, kernel_init=nn.initializers.orthogonal(output_scale))(x)


def log_probability(logits: Array, action: Array) -> Array:
    log_p = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_p, action[..., None], axis=-1)[..., 0]


def gae(batch: Transition, value: Array, next_value: Array, config: Config) -> Array:
    """Generalised advantage estimates ``[T, N]`` (Schulman et al. 2016, eq. 16).

    Bootstrapping stops where an episode terminated; the sum over lambda stops wherever one ended,
    because the next row belongs to another episode.
    """
    delta = batch.reward + config.gamma * jnp.where(batch.terminated, 0.0, next_value) - value
    decay = jnp.where(batch.ended, 0.0, config.gamma * config.gae_lambda)

    def backward(advantage: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        delta_t, decay_t = row
        advantage = delta_t + decay_t * advantage
        return advantage, advantage

    return jax.lax.scan(backward, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)[1]


class Minibatch(NamedTuple):
    obs: Array  # [B, D]
    action: Array  # [B]
    log_prob: Array  # [B], of the action under the policy that chose it
    advantage: Array  # [B]
    target: Array  # [B], what the value should have been


def loss(params: Any, network: ActorCritic, batch: Minibatch, config: Config) -> Array:
    """Clipped surrogate + value loss - entropy bonus, averaged over the minibatch."""
    logits, value = network.apply(params, batch.obs)
    advantage = (batch.advantage - batch.advantage.mean()) / (batch.advantage.std() + 1e-8)
    ratio = jnp.exp(log_probability(logits, batch.action) - batch.log_prob)
    clipped_ratio = jnp.clip(ratio, 1.0 - config.clip_eps, 1.0 + config.clip_eps)
    policy_loss = -jnp.minimum(ratio * advantage, clipped_ratio * advantage).mean()
    value_loss = 0.5 * jnp.square(value - batch.target).mean()
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(axis=-1).mean()
    return policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy


class Learner(NamedTuple):
    """The constants of a training run; ``params, opt_state, env_state`` change."""

    config: Config
    env: Env
    network: ActorCritic
    optimiser: optax.GradientTransformation

    def train(self, key: Array, params: Any) -> tuple[Any, Array, Array]:
        """The first three fields of ``Results``, for one seed."""
        key_reset, key_train, key_eval = jax.random.split(key, 3)
        env_state = jax.vmap(self.env.reset)(jax.random.split(key_reset, self.config.num_envs))
        start = params, self.optimiser.init(params), env_state
        keys = jax.random.split(key_train, self.config.num_iterations)
        (params, _, _), episode_return = jax.lax.scan(self.iteration, start, keys)
        return params, episode_return, self.evaluate(key_eval, params)

    def iteration(self, carry: tuple, key: Array) -> tuple[tuple, Array]:
        """Act for ``T`` steps, then learn from them."""
        params, opt_state, env_state = carry
        key_rollout, key_update = jax.random.split(key)
        env_state, batch = self.rollout(key_rollout, params, env_state)
        params, opt_state = self.update(key_update, params, opt_state, batch)
        return (params, opt_state, env_state), batch.episode_return.mean(where=batch.ended)

    def rollout(self, key: Array, params: Any, start: EnvState) -> tuple[EnvState, Transition]:
        """Transitions ``[T, N]`` of the present policy."""

        def step(env_state: EnvState, key: Array) -> tuple[EnvState, Transition]:
            key_act, key_env = jax.random.split(key)
            logits, _ = self.network.apply(params, env_state.obs)
            action = jax.random.categorical(key_act, logits)
            keys = jax.random.split(key_env, self.config.num_envs)
            return jax.vmap(self.env.step)(keys, env_state, action)

        return jax.lax.scan(step, start, jax.random.split(key, self.config.num_steps))

    def update(self, key: Array, params: Any, opt_state: Any, batch: Transition) -> tuple[Any, Any]:
        """Several epochs of shuffled minibatches of single transitions."""
        logits, value = self.network.apply(params, batch.obs)
        _, next_value = self.network.apply(params, batch.next_obs)
        log_prob = log_probability(logits, batch.action)
        advantage = gae(batch, value, next_value, self.config)
        data = Minibatch(batch.obs, batch.action, log_prob, advantage, advantage + value)
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)  # [T, N] -> [T * N]

        def minibatch(carry: tuple, rows: Array) -> tuple[tuple, None]:
            params, opt_state = carry
            selected = jax.tree.map(lambda x: x[rows], data)
            grads = jax.grad(loss)(params, self.network, selected, self.config)
            updates, opt_state = self.optimiser.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        shuffled = jax.vmap(lambda key: jax.random.permutation(key, self.config.batch_size))
        orders = shuffled(jax.random.split(key, self.config.update_epochs))
        rows = orders.reshape(self.config.num_gradient_steps, -1)  # [G, B]
        return jax.lax.scan(minibatch, (params, opt_state), rows)[0]

    def evaluate(self, key: Array, params: Any) -> Array:
        """Returns ``[E]`` of the greedy policy, over one whole episode each."""
        key_reset, key_steps = jax.random.split(key)
        episodes = self.config.eval_episodes

        def step(carry: tuple, key: Array) -> tuple[tuple, None]:
            env_state, running, total = carry
            logits, _ = self.network.apply(params, env_state.obs)
            keys = jax.random.split(key, episodes)
            env_state, outcome = jax.vmap(self.env.step)(keys, env_state, logits.argmax(axis=-1))
            total = total + running * outcome.reward
            return (env_state, running & ~outcome.terminated, total), None

        env_state = jax.vmap(self.env.reset)(jax.random.split(key_reset, episodes))
        start = env_state, jnp.ones(episodes, bool), jnp.zeros(episodes)
        return jax.lax.scan(step, start, jax.random.split(key_steps, self.env.max_steps))[0][2]


class Results(NamedTuple):
    params: Any  # leaves [S, ...]
    episode_return: Array  # [S, I], mean of the episodes that ended in an iteration; NaN if none
    final_return: Array  # [S, E], of greedy episodes
    compile_seconds: float
    train_seconds: float


def train(config: Config, keys: Array) -> Results:
    """Train one agent from each of ``keys[S]``, all in one compiled program."""
    check(config)
    env = Env(config.env)
    network = ActorCritic(env.action_space.n, config.hidden_dims)

    def learning_rate(gradient_steps: Array) -> Array:
        updates = gradient_steps // config.num_gradient_steps
        left = 1.0 - updates / config.num_iterations
        return config.learning_rate * (left if config.lr_decay else 1.0)

    optimiser = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.adam(learning_rate, eps=1e-5)
    )
    learner = Learner(config, env, network, optimiser)

    # One seed after another, not under vmap: orthogonal initialisers are QR decompositions, and
    # several *batched* ones in a program can lock up XLA's thread pool on machines with few cores.
    init = jax.jit(lambda key: network.init(key, env.reset(key).obs))
    keys = jax.vmap(jax.random.split)(keys)  # [S, 2]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(init, keys[:, 0]))

    start = time.perf_counter()
    program = jax.jit(jax.vmap(learner.train)).lower(keys[:, 1], params).compile()
    compiled = time.perf_counter()
    results = jax.block_until_ready(program(keys[:, 1], params))
    return Results(*results, compiled - start, time.perf_counter() - compiled)


def main() -> None:
    config = tyro.cli(Config)
    seeds = range(config.seed, config.seed + config.num_seeds)
    try:
        check(config)
    except ValueError as error:
        print(f"minimal_ppo.py: {error}", file=sys.stderr)
        sys.exit(2)
    results = train(config, jnp.stack([jax.random.key(seed) for seed in seeds]))

    print(f"{config.env}, greedy returns after {config.total_steps:,} steps:")
    for seed, returns in zip(seeds, results.final_return, strict=True):
        print(f"  seed {seed:<4d} {returns.mean():9.2f} ± {returns.std():.2f}")
    steps = config.num_seeds * config.num_iterations * config.batch_size
    print(f"  mean {results.final_return.mean():13.2f}")
    seconds = results.train_seconds
    print(f"compiled in {results.compile_seconds:.1f} s, trained in {seconds:.1f} s", end=" ")
    print(f"({steps / seconds:,.0f} steps/s)")


if __name__ == "__main__":
    main()
