"""What test_devices.py computes, in a process of its own, on eight simulated devices."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generative import GENERATIVE, ON_POLICY
from shared import compiled_once, rows_of_pendulum

from jaxrl import (
    DSACT,
    PPO,
    SAC,
    TD3,
    TD3BC,
    NormalizeObs,
    Offline,
    OnPolicy,
    UsageError,
    VectorEnv,
    make,
    run,
)
from jaxrl import metrics as m
from jaxrl.envs.probe import Both
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import Deterministic, TanhGaussian
from jaxrl.optim import Adam
from jaxrl.run.devices import Programs
from jaxrl.run.placement import SHARD, Placement, choose
from jaxrl.sharding import reducing_over, shard_count, shard_index
from jaxrl.training.gradient_steps import gradient_steps
from jaxrl.training.rollout import rollout
from jaxrl.types import Batch, Box, Spec, Transition

COLLECTIVE = re.compile(
    r"= (\S+|\([^()]*\)) (all-reduce|all-gather|all-to-all|ragged-all-to-all|reduce-scatter"
    r"|collective-permute|collective-broadcast|send|recv)(?:-start)?\("
)
P = jax.P
MEMBERS, ENVS, NUM_STEPS, EPISODES = 8, 8, 32, 16
LEARNING = 240  # iterations within which it has learnt
PROGRAMS: dict = {}  # of all runs
TARGET_KL = (1e9, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)


class Dear(Both):
    """An environment that is worth sharding."""

    cheap = False


def ppo(width, **options):
    networks = {name: getattr(PPO(), name) for name in ("policy", "critic")}
    narrow = {name: part.replace(hidden_dims=(width,)) for name, part in networks.items()}
    return PPO(**narrow, **options)


def tiny(env="gymnax/CartPole-v1", num_envs=ENVS):
    venv = VectorEnv(Dear() if env == "dear" else make(env), num_envs)
    return OnPolicy(ppo(4, num_minibatches=1), venv, num_steps=8)


@functools.cache
def learner():
    agent = ppo(32, learning_rate=1e-2, entropy_coef=0.01, lr_decay_steps=float(LEARNING))
    venv = VectorEnv(make("gymnax/CartPole-v1"), ENVS)
    return OnPolicy(NormalizeObs(agent), venv, num_steps=NUM_STEPS)


def first_keys(members=MEMBERS):
    return jax.vmap(jax.random.key)(jnp.arange(members))


def plain(tree):
    """The tree with numpy arrays as leaves, keys as their data: it can leave the process."""

    def convert(x):
        key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if key else x)

    return jax.tree.map(convert, tree)


def copies(tree):
    """What each device holds of the arrays of a tree: ``[leaf][device]``."""
    return [[np.asarray(s.data) for s in x.addressable_shards] for x in jax.tree.leaves(tree)]


def choices(sizes, env="gymnax/CartPole-v1"):
    """What is chosen for each of ``(members, devices)``, or why nothing is."""

    def chosen(members, devices):
        try:
            return choose([tiny(env)], members, devices)
        except UsageError as error:
            return str(error)

    return [chosen(*each) for each in sizes]


@functools.cache
def compiled(members, groups, shards):
    """The programs of ``learner``: as they are, then init, chunk and evaluate compiled."""
    programs = Programs(learner(), Placement(groups, shards))
    keys = first_keys(members)
    init = jax.jit(programs.init).lower({}, keys).compile()
    ts = init({}, keys)
    count = jnp.int32(0)
    chunk = jax.jit(programs.chunk, donate_argnums=1).lower({}, ts, (), count, count).compile()
    episodes = jax.random.split(jax.random.key(0), EPISODES)
    evaluate = jax.jit(programs.evaluate).lower({}, ts, episodes).compile()
    return programs, init, chunk, evaluate


def collectives(members, groups, shards):
    """Of the optimised init, chunk and evaluate: devices, and ``(operation, sizes of results)``."""
    found = []
    for program in compiled(members, groups, shards)[1:]:
        text = program.as_text()
        operations = []
        for shapes, operation in COLLECTIVE.findall(text):
            dims = re.findall(r"\w\[([\d,]*)\]", shapes)
            sizes = {math.prod(int(n) for n in each.split(",") if n) for each in dims}
            operations.append((operation, sizes))
        partitions = re.search(r"num_partitions=(\d+)", text)
        found.append((int(partitions[1]) if partitions else 1, operations))
    return found


def iterations(groups, count, shift=0):
    """The state after ``count`` iterations, and the metrics; members are shifted by ``shift``."""
    _, init, chunk, _ = compiled(MEMBERS, groups, 1)
    keys = first_keys()[(jnp.arange(MEMBERS) - shift) % MEMBERS]
    ts, metrics = chunk({}, init({}, keys), (), jnp.int32(count), jnp.int32(0))
    return plain((ts, m.values(metrics)))


@functools.cache
def learn(shards):
    """Eight seeds, each over ``shards``: returns ``[M]`` of the first and the last third of the
    training and of the final policy. And what every device then holds: of agents and metrics, and
    of environments.
    """
    _, init, chunk, evaluate = compiled(MEMBERS, 1, shards)
    ts, third = init({}, first_keys()), jnp.int32(LEARNING // 3)
    ts, early = chunk({}, ts, (), third, 0 * third)
    ts, _ = chunk({}, ts, (), third, third)
    ts, metrics = chunk({}, ts, (), third, 2 * third)
    returns = evaluate({}, ts, jax.random.split(jax.random.key(0), EPISODES)).returns
    results = [m.values(x)["episode_return"] for x in (early, metrics)] + [returns.mean(axis=1)]
    return plain(results), copies((ts.agent, metrics)), copies(ts.env)


def evaluations(episodes, shards):
    """The returns ``[M, E]`` of one and the same policies, by the number of shards."""
    _, init, chunk, _ = compiled(MEMBERS, 1, 1)
    ts, _ = chunk({}, init({}, first_keys()), (), jnp.int32(20), jnp.int32(0))
    found = {}
    for count in shards:
        programs = Programs(learner(), Placement(1, count))
        keys = jax.random.split(jax.random.key(1), episodes)
        found[count] = plain(jax.jit(programs.evaluate)({}, programs.put(ts), keys).returns)
    return found


def rollouts(shards):
    """Observations and actions ``[T, N]`` of a fresh policy whose environments are sharded."""
    trainer = dataclasses.replace(tiny("probe/both"), axis=SHARD)

    def experience(key):
        ts = trainer.init(key)
        with reducing_over(SHARD):
            played = rollout(trainer.agent, ts.agent, trainer.env, ts.env, ts.carry, key, 128)
            transitions = played[2]
        return transitions.obs[..., 0], transitions.action

    mesh = Placement(1, shards).mesh
    place = jax.shard_map(
        experience, mesh=mesh, in_specs=P(), out_specs=P(None, SHARD), check_vma=False
    )
    return plain(jax.jit(place)(jax.random.key(0)))


@functools.cache
def _spec():
    return make("gymnax/CartPole-v1").spec  # it cannot be made while tracing


def _agent(target_kl):
    optimizer = Adam(max_grad_norm=1e3, eps=1e-5)
    sizes = {"update_epochs": 3, "num_minibatches": 1, "optimizer": optimizer}
    agent = ppo(8, learning_rate=3e-3, entropy_coef=0.01, target_kl=target_kl, **sizes)
    return NormalizeObs(agent).bind(_spec())


@functools.cache
def _experience():
    """A first state, and two rollouts of environments whose rewards differ by far."""
    agent, venv, key = _agent(None), VectorEnv(make("gymnax/CartPole-v1"), 16), jax.random.key(0)
    state, env = agent.init(key), venv.reset(key)
    collect = jax.jit(lambda env, key: rollout(agent, state, venv, env, (), key, 16))
    batches = []
    for i in (1, 2):
        env, _, batch, _ = collect(env, jax.random.key(i))
        batches.append(batch._replace(reward=batch.reward * jnp.arange(16.0)))
    return state, batches


def first_agent():
    """The state before ``updates``."""
    return plain(_experience()[0].agent)


@functools.cache
def _update(shards):
    def update(state, batch, target_kl):
        agent = _agent(target_kl)
        with reducing_over(SHARD if shards > 1 else None):
            state, metrics = agent.update(state, batch, jax.random.key(3))
            return agent.observe(state, batch), m.over_shards(metrics)

    def every(states, batch, target_kl):
        new = jax.vmap(update, (0, None, 0))(states, batch, target_kl)
        return jax.tree.map(lambda x: x[None], new)

    specs = (P(), P(None, SHARD), P())
    mesh = Placement(1, shards).mesh
    place = jax.shard_map(every, mesh=mesh, in_specs=specs, out_specs=P(SHARD), check_vma=False)
    return jax.jit(place)


def updates(shards, poison=None):
    """Two updates on the same data, shared out over ``shards``, for each of ``TARGET_KL``.

    Returns states and metrics as every shard holds them, ``[S, K, ...]``, and all observations.
    The environment ``poison`` pays NaN throughout.
    """
    state, batches = _experience()
    states = jax.tree.map(lambda x: jnp.stack([x] * len(TARGET_KL)), state)
    for batch in batches:
        if poison is not None:
            batch = batch._replace(reward=batch.reward.at[:, poison].set(jnp.nan))
        found, metrics = _update(shards)(states, batch, jnp.array(TARGET_KL))
        states = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[0]), found)
    return plain(found), plain(m.values(metrics)), plain([b.obs for b in batches])


SPEC = Spec(Box(-np.inf, np.inf, (3,)), Box(-1.0, 1.0, (2,)))
POLICY = TanhGaussian(hidden_dims=(8,))
REPLAYED = {
    "SAC": SAC(
        policy=POLICY,
        critic=Critic(hidden_dims=(8,), num_critics=4),
        num_min_critics=2,
        policy_delay=2,
        actor_q="mean",
    ),
    "TD3": TD3(
        policy=Deterministic(hidden_dims=(8,)),
        critic=Critic(hidden_dims=(8,), num_critics=3),
        num_min_critics=2,
    ),
    "TD3BC": TD3BC(policy=Deterministic(hidden_dims=(8,)), critic=Critic(hidden_dims=(8,))),
    "DSACT": DSACT(
        policy=POLICY, critic=Critic(hidden_dims=(8,)), likelihood=True, running_tau=0.5
    ),
    **GENERATIVE,
}


def batches(count, rows):
    """Batches ``[count, rows]`` of transitions; some terminated."""
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, count, rows, 3))
    action = rng.uniform(-1.0, 1.0, (count, rows, 2))
    reward = 10.0 * rng.normal(size=(count, rows))
    discount = np.where(rng.random((count, rows)) < 0.2, 0.0, 0.99)
    extras = {"return_to_go": 10.0 * reward}
    return jax.tree.map(jnp.float32, Batch(obs, action, reward, discount, next_obs, extras))


def rollout_of(agent, state, steps, envs):
    """A rollout ``[steps, envs]`` of random observations and the agent's actions."""
    batch = batches(steps, envs)
    action, _, extras = agent.act(state, (), batch.obs, jax.random.key(1), "explore")
    never = jnp.zeros(batch.reward.shape, bool)
    return Transition(
        batch.obs, action, batch.reward, batch.next_obs, batch.discount == 0, never, extras
    )


@contextlib.contextmanager
def rows_of_the_whole(rows):
    """Have every shard of ``rows`` rows draw the noise of all shards, and take its own.

    Noise without an axis of rows is the same for all.
    """

    def shared(draw, key, shape, *args, **options):
        if rows not in shape:
            return draw(key, shape, *args, **options)
        axis, count = shape.index(rows), shard_count()
        every = (*shape[:axis], rows * count, *shape[axis + 1 :])
        whole = draw(key, every, *args, **options)
        start = 0 if shard_index() is None else shard_index() * rows
        return jax.lax.dynamic_slice_in_dim(whole, start, rows, axis)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal", "uniform", "gumbel", "bits"):
            patch.setattr(jax.random, name, functools.partial(shared, getattr(jax.random, name)))
        for module in [x for name, x in sys.modules.items() if name.startswith("jaxrl.")]:
            if hasattr(module, "row_key"):
                patch.setattr(module, "row_key", lambda key: key)
        yield


def replayed(name, shards):
    """Gradient steps on the same rows and noise, shared out over ``shards``.

    They are four batches, or for on-policy agents a rollout of four steps, in one minibatch.
    Returns the state and metrics as every shard holds them, ``[S, ...]``, and the actions by which
    each would explore at one and the same observations.
    """
    agent, key, rows = REPLAYED[name].bind(SPEC), jax.random.key(0), 16
    state = jax.jit(agent.init)(key)
    on_policy = agent.learns_from == "rollouts"
    data = rollout_of(agent, state, 4, rows) if on_policy else batches(4, rows)
    learn = agent.update if on_policy else functools.partial(gradient_steps, agent)

    def update(state, data):
        with reducing_over(SHARD if shards > 1 else None):
            with rows_of_the_whole(rows // shards):
                after, metrics = learn(state, data, key)
            drawn, _, _ = agent.act(state, (), jnp.ones((5, 3)), key, "explore")
            found = after, m.values(m.over_shards(metrics)), drawn
        return jax.tree.map(lambda x: x[None], found)

    specs = (P(), P(None, SHARD))
    mesh = Placement(1, shards).mesh
    place = jax.shard_map(update, mesh=mesh, in_specs=specs, out_specs=P(SHARD), check_vma=False)
    return plain(jax.jit(place)(state, data))


def generative(name, groups, shards):
    """Two seeds of a generative agent after three iterations.

    Returns the state, the metrics, and the agents that every device holds.
    """
    agent = NormalizeObs(GENERATIVE[name], frozen=name not in ON_POLICY)
    venv = VectorEnv(make("gymnax/Pendulum-v1", max_steps=6), 4)
    if name in ON_POLICY:
        trainer, data = OnPolicy(agent, venv, num_steps=4), ()
    else:
        trainer = Offline(agent, venv, batch_size=8, num_updates=2)
        data = rows_of_pendulum().with_next_action().with_return_to_go(0.99)
    programs, count = Programs(trainer, Placement(groups, shards)), jnp.int32(3)
    data = programs.put_data(data)
    ts = jax.jit(programs.init)({}, first_keys(2), data)
    ts, metrics = jax.jit(programs.chunk)({}, ts, data, count, 0 * count)
    return plain(ts), plain(m.values(metrics)), copies(ts.agent)


def offline(shards):
    """One seed that learns from a dataset, with one environment to evaluate in.

    Returns the placement, the statistics of observations, and the agents that every device holds.
    """
    agent = NormalizeObs(REPLAYED["TD3BC"])
    venv = VectorEnv(make("gymnax/Pendulum-v1", max_steps=6), 1)
    trainer = Offline(agent, venv, batch_size=8, num_updates=2)
    programs, count = Programs(trainer, choose([trainer], 1, shards)), jnp.int32(1)
    data = programs.put_data(rows_of_pendulum())
    ts = jax.jit(programs.init)({}, first_keys(1), data)
    ts, _ = jax.jit(programs.chunk)({}, ts, data, count, 0 * count)
    return programs.placement, plain(ts.agent.statistics), copies(ts.agent)


def train(run_dir, members, devices, count, every, resume=False):
    """``run`` for ``count`` iterations: its state, all rows, and what it said."""
    steps = NUM_STEPS * ENVS
    with contextlib.redirect_stderr(io.StringIO()) as said, compiled_once(PROGRAMS):
        result = run(
            learner(),
            count * steps,
            seeds=members,
            run_dir=run_dir,
            resume=resume,
            eval_every=every * steps,
            eval_episodes=EPISODES,
            devices=devices,
        )
    return plain(result.state), result.rows, said.getvalue()
