"""Off-policy training: its schedule, what it writes and learns from, and its bits.

Compiling is nearly all that these tests cost: XLA is asked not to optimise where it may not.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits, bits

from jaxrl import (
    DQN,
    DSACT,
    PPO,
    SAC,
    TD3,
    NormalizeObs,
    OffPolicy,
    OnPolicy,
    ScaleReward,
    UsageError,
    VectorEnv,
    hyper,
    make,
)
from jaxrl.agents import protocol
from jaxrl.counters import counter_value
from jaxrl.data import Mixed, UniformReplay
from jaxrl.nn.critics import Critic
from jaxrl.run.devices import over_members
from jaxrl.types import Box, Spec, Step

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def small(kind, critics=None, **options):
    """An agent with networks of one layer of eight units."""
    agent = kind(**options)
    parts = [name for name in ("policy", "critic", "q_network") if hasattr(agent, name)]
    made = {name: dataclasses.replace(getattr(agent, name), hidden_dims=(8,)) for name in parts}
    if critics is not None:
        made["critic"] = Critic(hidden_dims=(8,), num_critics=critics)
    return dataclasses.replace(agent, **made)


def trainer(agent=None, num_envs=2, env="gymnax/Pendulum-v1", limit=7, reset_mode=None, **options):
    settings = {"buffer_size": 120, "batch_size": 8, "learning_starts": 20, "cycles": 6} | options
    venv = VectorEnv(
        make(env) if isinstance(env, str) else env, num_envs, reset_mode, max_steps=limit
    )
    return OffPolicy(agent or small(SAC), venv, **settings)


class Failing:
    """It is not finite on every fourth step; observed is where it began."""

    name, cheap = "failing", True
    spec = Spec(Box(0, 1, (1,)), Box(-1, 1, (1,)))

    def reset(self, key):
        start = jax.random.uniform(key, (1,))
        return (start, 0), start

    def step(self, key, state, action):
        start, t = state
        reward = jnp.where(t == 3, jnp.nan, 1.0)
        no = jnp.zeros((), bool)
        return (start, t + 1), Step(start, reward, no, no, {})


# --- schedule -----------------------------------------------------------------------------------


def test_sizes_are_whole_cycles():
    t = trainer(
        num_envs=3, num_steps=4, num_updates=2, buffer_size=100, learning_starts=20, cycles=None
    )
    assert t.buffer.slots == 36 and t.buffer.slots * 3 >= 100  # 9 cycles of 4 steps
    assert t.first_step == 24 and t.schedule.warmup_steps == 8
    assert t.schedule.cycles_per_iteration == 16  # 64 steps of every environment
    assert t.steps_per_iteration == 16 * 4 * 3 and t.gradient_steps_per_iteration == 32
    assert t.iterations(24 + 1) == 1 and t.iterations(24 + 192) == 1 and t.iterations(217) == 2
    large = trainer(small(TD3), batch_size=2**15, cycles=None, buffer_size=2**16)
    assert large.schedule.cycles_per_iteration == 8  # of half a million rows of noise at most


@pytest.mark.parametrize(
    ("delay", "updates", "steps", "actor_steps"),
    [
        (2, 4, 3, 12),
        (6, 2, 1, 2),
        pytest.param(1, 3, 1, 18, marks=pytest.mark.slow),
        pytest.param(2, 1, 1, 3, marks=pytest.mark.slow),
    ],
)
def test_every_ratio_of_steps_and_updates_and_every_delay(delay, updates, steps, actor_steps):
    """Counted by the optimisers, over one iteration of six cycles."""
    t = trainer(small(TD3, policy_delay=delay), num_updates=updates, num_steps=steps)
    t.check()
    ts = compiled(t.init)(jax.random.key(0))
    after, metrics = compiled(t.iteration)(ts)
    assert int(after.agent.critic.optim.moments.count) == 6 * updates
    assert int(after.agent.actor.optim.moments.count) == actor_steps
    assert counter_value(after.gradient_steps) == t.gradient_steps_per_iteration == 6 * updates
    assert metrics["critic_loss"].weight == 6 * updates
    assert metrics["actor_loss"].weight == actor_steps
    assert counter_value(after.env_steps) == t.first_step + 6 * steps * 2
    assert after.iterations == 1 and ts.iterations == 0


def test_the_buffer_holds_what_happened():
    """Every row's successor is the next row's observation, unless its episode ended there."""
    t = trainer(num_envs=2, buffer_size=400, learning_starts=20)
    ts = compiled(t.init)(jax.random.key(0))
    ts, _ = compiled(lambda ts: t.chunk(ts, (), 5))(ts)
    held = t.schedule.warmup_steps + 5 * 6
    ring = jax.device_get(ts.store)
    obs, next_obs, ended = ring.obs[:held], ring.next_obs[:held], ring.truncated[:held]
    assert not ring.terminated.any() and ended.sum() == 2 * (held // 7)
    going = ~ended[:-1]
    np.testing.assert_array_equal(obs[1:][going], next_obs[:-1][going])
    assert np.abs(obs[1:][~going] - next_obs[:-1][~going]).sum(-1).min() > 1e-3  # a fresh start
    np.testing.assert_array_equal(ts.env.obs[~ended[-1]], next_obs[-1][~ended[-1]])
    assert (ring.reward[held:] == 0).all() and (ring.reward[:held] != 0).all()
    assert np.abs(ring.action).max() <= 1


def test_the_warm_up_acts_uniformly_or_by_the_agent():
    quiet = small(TD3, exploration_noise=0.0)
    states = {
        policy: jax.device_get(
            compiled(trainer(quiet, learning_starts=40, warmup_policy=policy).init)(
                jax.random.key(0)
            )
        )
        for policy in ("uniform", "agent")
    }
    actions = {policy: ts.store.action[:20].ravel() for policy, ts in states.items()}
    assert actions["uniform"].std() == pytest.approx(3**-0.5, rel=0.2)
    assert actions["agent"].std() < 0.3
    ts, agent = states["agent"], trainer(quiet).agent
    acted, _, _ = agent.act(ts.agent, (), ts.store.obs[:20], None, "greedy")
    np.testing.assert_allclose(ts.store.action[:20], acted, atol=1e-6)


@pytest.mark.parametrize(
    ("learning_starts", "count", "steps"),
    [(12, 1, 6), (20, 2, 5), (24, 2, 6), (100, 10, 5), (46, 4, 6)],  # of 6, 10, 12, 50, 23 steps
)
def test_the_warm_up_is_made_in_equal_pieces_no_longer_than_an_iteration(
    learning_starts, count, steps
):
    t = trainer(learning_starts=learning_starts)
    assert t.schedule.warmup == (count, steps) and t.schedule.cycles_per_iteration == 6
    assert learning_starts <= t.first_step == count * steps * 2 <= learning_starts * 7 / 6
    delayed = trainer(small(TD3, policy_delay=3), learning_starts=learning_starts)
    assert delayed.schedule.warmup[1] % 3 == 0


def test_the_noise_of_an_episode_lasts_until_it_ends():
    """By the actions in the buffer: of a quiet policy, their size is that of the deviation."""
    agent = small(TD3, exploration_noise=0.0, exploration_noise_max=0.3)
    quiet = jax.tree.map(jnp.zeros_like, trainer(agent).agent.policy.init(jax.random.key(0)))
    t = trainer(agent, num_envs=8, limit=50, buffer_size=8 * 400, learning_starts=8 * 400)
    t = dataclasses.replace(t, warmup_policy="agent", cycles=100)

    def start(key):
        state = t.agent.init(key)
        return t.start(key, state._replace(actor=state.actor._replace(params=quiet)), ())

    ts = jax.device_get(compiled(start)(jax.random.key(0)))
    deviations = ts.store.action[..., 0].reshape(8, 50, 8).std(axis=1)  # of episodes
    halves = ts.store.action[..., 0].reshape(16, 25, 8).std(axis=1).reshape(8, 2, 8)
    assert 0.0 < deviations.min() < 0.1 and 0.2 < deviations.max() < 0.4
    assert np.corrcoef(halves[:, 0].ravel(), halves[:, 1].ravel())[0, 1] > 0.8
    assert ts.carry.shape == (8, 1) and (ts.carry >= 0).all() and (ts.carry <= 0.3).all()


def test_the_warm_up_begins_with_many_states_and_its_steps_that_are_not_finite_are_told():
    """Every piece draws a pool of its own; the first iteration's metrics hold the count."""
    t = trainer(env=Failing(), limit=None, learning_starts=48, cycles=4)
    venv = VectorEnv(Failing(), 2, "pool", pool_size=2)
    t = dataclasses.replace(t, env=venv)
    ts = compiled(t.init)(jax.random.key(0))
    ended = np.asarray(ts.store.terminated[:24])
    np.testing.assert_array_equal(ended.nonzero()[0], np.repeat(np.arange(3, 24, 4), 2))
    starts = np.asarray(ts.store.obs[4:24:4])  # [5, 2, 1], each out of a pool of two
    assert len(np.unique(starts)) > 2
    told = []
    for _ in range(2):
        ts, metrics = compiled(t.iteration)(ts)
        told.append(float(metrics["nonfinite_steps"].total))
    assert told == [12 + 2, 2]


def test_normaliser_sees_the_warm_up_and_every_step_after_it():
    t = trainer(NormalizeObs(ScaleReward(small(SAC), 0.1)))
    ts = compiled(t.init)(jax.random.key(0))
    assert ts.agent.statistics.size == 20
    after, _ = compiled(t.iteration)(ts)
    assert after.agent.statistics.size == 20 + t.steps_per_iteration


class Recording:
    """A sampler that keeps what it is asked for."""

    needs_data, n_step = False, 1

    def __init__(self):
        self.asked = []

    def check(self):
        pass

    def sample(self, store, data, key, shape, gamma):
        self.asked.append((shape, gamma))
        return UniformReplay().sample(store, data, key, shape, gamma)


def test_samplers_get_the_sizes_of_a_cycle_and_the_discount_of_the_agent_inside():
    for agent, gamma in ((SAC(gamma=0.7), 0.7), (NormalizeObs(ScaleReward(TD3(gamma=0.8))), 0.8)):
        sampler = Recording()
        t = trainer(agent, num_updates=4, sampler=sampler)
        jax.eval_shape(lambda key, t=t: t.train(key, 40), jax.random.key(0))
        assert set(sampler.asked) == {((4, 8), gamma)}
    assert protocol.discount_factor(object()) == 1.0


# --- bits ---------------------------------------------------------------------------------------


@pytest.mark.exact
def test_chunks_equal_the_whole_bit_for_bit_and_compile_once():
    t = trainer(NormalizeObs(small(TD3)), n_step=3)
    total = t.first_step + 10 * t.steps_per_iteration
    whole, history = compiled(lambda k: t.train(k, total))(jax.random.key(0))
    chunk = compiled(t.chunk)
    ts = compiled(t.init)(jax.random.key(0))
    for done, iterations in ((0, 3), (3, 1), (4, 6)):
        ts, _ = chunk(ts, (), jnp.int32(iterations), jnp.int32(done))
    assert chunk._cache_size() == 1
    assert_same_bits(ts, whole)
    assert history["critic_loss"].shape == (10,) and np.isfinite(history["actor_loss"]).all()


@pytest.mark.exact
@pytest.mark.parametrize(
    "kind",
    # The test above trains TD3.
    [SAC, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (DQN, DSACT, TD3))],
)
def test_of_every_agent_swept_members_in_chunks_are_the_whole_bit_for_bit(kind):
    """Two seeds of each of two learning rates, in one program."""
    t = trainer(small(kind), env=f"gymnax/{'CartPole' if kind is DQN else 'Pendulum'}-v1")
    total = t.first_step + 4 * t.steps_per_iteration
    rates = jnp.array([1e-3, 1e-3, 1e-1, 1e-1])
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1, 0, 1]))

    def of(rate):
        name = "learning_rate" if kind is DQN else "critic_learning_rate"
        return hyper.replace(t, {name: rate})

    whole = compiled(jax.vmap(lambda rate, key: of(rate).train(key, total)[0]))(rates, keys)
    ts = compiled(jax.vmap(lambda rate, key: of(rate).init(key)))(rates, keys)
    chunk = compiled(
        jax.vmap(lambda rate, ts, *n: of(rate).chunk(ts, (), *n)[0], (0, 0, None, None))
    )
    for done, count in ((0, 3), (3, 1)):
        ts = chunk(rates, ts, jnp.int32(count), jnp.int32(done))
    assert_same_bits(ts, whole)
    learnt = whole.agent.q if kind is DQN else whole.agent.critic
    learnt = np.concatenate([x.reshape(4, -1) for x in jax.tree.leaves(learnt.params)], axis=1)
    assert len(np.unique(learnt, axis=0)) == 4


def test_members_have_buffers_of_their_own_and_hyper_parameters_sweep():
    t = trainer(limit=3)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    values = {"gamma": jnp.array([0.9, 0.99]), "tau": jnp.array([0.5, 0.01])}
    total = t.first_step + 2 * t.steps_per_iteration

    def train(values, key):
        return hyper.replace(t, values).train(key, total)[0]

    both = compiled(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))(values, keys)
    learnt = np.asarray(jax.tree.leaves(both.agent.critic.params)[1]).reshape(4, -1)
    assert len(np.unique(learnt, axis=0)) == 4
    assert np.abs(both.store.obs[0, 0] - both.store.obs[0, 1]).max() > 0.1
    # The warm-up does not depend on the swept values.
    np.testing.assert_array_equal(both.store.obs[0, :, :10], both.store.obs[1, :, :10])
    alone = compiled(train)(jax.tree.map(lambda x: x[1], values), keys[1])
    for a, b in zip(bits(both), bits(alone), strict=True):
        np.testing.assert_allclose(a[1, 1], b, rtol=1e-3, atol=1e-4)


def loops(program):
    """Of a compiled program's text, the lines of what runs inside loops, and all others."""
    bodies, calls, name = {}, {}, None
    for line in program.splitlines():
        begins = re.match(r"(?:ENTRY )?(%[\w.-]+) .*\{$", line)
        if begins:
            name = begins[1]
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
            called = re.findall(r"(?:calls|to_apply|body|condition)=(%[\w.-]+)", line)
            calls.setdefault(name, set()).update(called)
    inside, todo = set(), set(re.findall(r"(?:body|condition)=(%[\w.-]+)", program))
    while todo:
        inside |= todo
        todo = set().union(*(calls.get(name, set()) for name in todo)) - inside
    assert inside and inside < bodies.keys()
    return tuple(
        "\n".join(
            line for name, lines in bodies.items() if (name in inside) == within for line in lines
        )
        for within in (True, False)
    )


@pytest.mark.parametrize(
    ("agent", "num_envs", "members", "options"),
    [
        (small(SAC), 3, 2, {}),
        (small(TD3), 3, 1, {}),
        (small(SAC), 1, 1, {}),
        (NormalizeObs(small(TD3)), 3, 2, {"n_step": 3}),
        (small(DSACT), 3, 2, {"precision": "half"}),
        (small(DQN), 3, 1, {"precision": "half", "n_step": 2, "env": "gymnax/CartPole-v1"}),
    ],
    ids=["SAC", "TD3", "one environment", "n steps", "half", "DQN"],
)
def test_the_buffer_is_written_in_place_and_no_counter_branches(agent, num_envs, members, options):
    """The compiled program copies nothing of the buffer's size inside its loops.

    Outside, of a single member, XLA gives up to two arrays another layout when a chunk begins, and
    their own when it ends; of several, there is no such copy either.
    """
    t = trainer(agent, num_envs=num_envs, buffer_size=30_000, learning_starts=30, **options)
    slots = t.buffer.slots
    ts = jax.eval_shape(jax.vmap(t.init), jax.vmap(jax.random.key)(jnp.arange(members)))
    several = over_members(lambda ts, *n: t.chunk(ts, (), *n), shared=2)
    lowered = jax.jit(several, donate_argnums=0).lower(ts, jnp.int32(1), jnp.int32(0))
    inside, outside = loops(lowered.compile().as_text())
    rings = rf"= \w+\[(?:\d+,)?{slots}[\d,]*\]\S* "
    assert re.search(rings + "dynamic-update-slice", inside)
    whole = rings + r"(?:copy|copy-start|scatter|convert|bitcast-convert|select)\("
    assert not re.search(whole, inside)
    assert len(re.findall(whole, outside)) <= (4 if members == 1 else 0)
    jaxpr = str(
        jax.make_jaxpr(lambda ts: t.iteration(ts))(jax.eval_shape(t.init, jax.random.key(0)))
    )
    assert "cond[" not in jaxpr and "callback" not in jaxpr


KEYS = {
    "SAC": (lambda: small(SAC, critics=3, num_min_critics=2), {"reset_mode": "pool"}),
    "TD3": (lambda: small(TD3, exploration_noise_max=0.4), {"num_updates": 4}),
    "DSACT": (lambda: NormalizeObs(small(DSACT)), {"n_step": 3}),
    "DQN": (lambda: small(DQN), {"env": "gymnax/CartPole-v1", "warmup_policy": "agent"}),
}


@pytest.mark.parametrize(("agent", "options"), KEYS.values(), ids=KEYS)
def test_no_key_is_used_twice(agent, options):
    with jax.debug_key_reuse(True):
        t = trainer(agent(), **options)
        ts = compiled(t.init)(jax.random.key(0))
        compiled(t.iteration)(ts)
        compiled(lambda ts: t.evaluate(ts, jax.random.key(1), 2, "sample"))(ts)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"buffer_size": 0}, "buffer_size is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_starts": 0}, "learning_starts is 0"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_updates": -1}, "num_updates is -1"),
        ({"cycles": 0}, "cycles is 0"),
        ({"n_step": 0}, "n_step is 0"),
        ({"learning_starts": 4, "n_step": 3}, "learning_starts is 4; n_step 3 needs 6"),
        ({"sampler": Mixed(-0.5)}, "share is -0.5; it must be at least 0 and at most 1"),
        ({"buffer_size": 10}, "buffer_size is 10, less than the 20 transitions .*; .* at least"),
        ({"warmup_policy": "random"}, "warmup_policy is 'random'.* uniform"),
        ({"precision": "hlaf"}, "precision is 'hlaf'; did you mean half"),
        (
            {"agent": TD3(policy_delay=2), "num_updates": 3},
            "num_updates is 3, and policy_delay 2; .* 2 would",
        ),
        (
            {"agent": TD3(policy_delay=4), "cycles": 6},
            "cycles is 6; .* every 4 cycles, .* as 8",
        ),
        ({"agent": PPO()}, "PPO learns from its own rollouts; train it with OnPolicy"),
        ({"agent": NormalizeObs(PPO())}, "PPO learns from its own rollouts"),
        ({"agent": SAC(policy_delay=0)}, "policy_delay is 0; it must be at least 1"),
        ({"agent": NormalizeObs(TD3(policy_delay=-1))}, "policy_delay is -1; it must be at least"),
        ({"agent": SAC(gamma=1.5)}, "gamma is 1.5"),
    ],
)
def test_sizes_that_cannot_work_are_refused(options, words):
    with pytest.raises(UsageError, match=words) as error:
        trainer(**options).check()
    assert "\n" not in str(error.value)


def test_what_cannot_be_shared_out_or_finished_is_refused():
    with pytest.raises(UsageError, match="batch_size is 9, .* over 2 devices; 10 would"):
        trainer(batch_size=9).check(shards=2)
    words = "total_steps is 20, and 20 are made before learning .* 200, or a smaller learning_star"
    with pytest.raises(UsageError, match=words):
        trainer().iterations(20)
    for agent, env in ((SAC(), "Pendulum-v1"), (NormalizeObs(DQN()), "CartPole-v1")):
        venv = VectorEnv(make(f"gymnax/{env}"), 2)
        with pytest.raises(UsageError, match="(SAC|DQN) learns from batches .* OffPolicy") as error:
            OnPolicy(agent, venv)
        assert "\n" not in str(error.value)


def test_buffers_that_do_not_fit_are_refused():
    t = trainer(buffer_size=10**12)
    words = "buffer_size is 1000000000000, which needs .* GiB .* fits"
    with pytest.raises(UsageError, match=words):
        t.check_memory(1, 1)
    line = trainer().check_memory(3, 1)
    assert line == "replay buffers: 3 x 120 transitions in 0.00 GiB"
