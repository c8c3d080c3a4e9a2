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
    run,
)
from jaxrl.counters import counter_value
from jaxrl.run.devices import over_members
from jaxrl.types import Box, Spec, Step

SMALL = {"hidden": (8,)}
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def trainer(agent=None, num_envs=2, env="gymnax/Pendulum-v1", limit=7, **options):
    settings = {"capacity": 120, "batch_size": 8, "prefill": 20, "rounds": 6} | options
    venv = VectorEnv(make(env) if isinstance(env, str) else env, num_envs, max_steps=limit)
    return OffPolicy(agent or SAC(**SMALL), venv, **settings)


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


def test_sizes_are_whole_rounds():
    t = trainer(num_envs=3, unroll=4, updates=2, capacity=100, prefill=20, rounds=None)
    assert t.replay.slots == 36 and t.replay.slots * 3 >= 100  # 9 rounds of 4 steps
    assert t.first_step == 24 and t.prefill_rounds == 2
    assert t.rounds_per_iteration == 16  # 64 steps of every environment
    assert t.steps_per_iteration == 16 * 4 * 3 and t.updates_per_iteration == 32
    assert t.iterations(24 + 1) == 1 and t.iterations(24 + 192) == 1 and t.iterations(217) == 2
    large = trainer(TD3(**SMALL), batch_size=2**15, updates=1, rounds=None, capacity=2**16)
    assert large.rounds_per_iteration == 8  # of half a million rows of noise at most


@pytest.mark.parametrize(
    ("delay", "updates", "unroll", "actor_steps"),
    [(1, 3, 1, 18), (2, 1, 1, 3), (2, 4, 3, 12), (6, 2, 1, 2)],
)
def test_every_ratio_of_steps_and_updates_and_every_delay(delay, updates, unroll, actor_steps):
    """Counted by the optimisers, over one iteration of six rounds."""
    t = trainer(TD3(**SMALL, delay=delay), updates=updates, unroll=unroll)
    t.check()
    ts = compiled(t.init)(jax.random.key(0))
    after, metrics = compiled(t.iteration)(ts)
    counts = {name: int(o.moments.count) for name, o in after.agent.optim.items()}
    assert counts == {"critic": 6 * updates, "actor": actor_steps}
    assert int(after.agent.updates) == t.updates_per_iteration == 6 * updates
    assert metrics["critic_loss"].weight == 6 * updates
    assert metrics["actor_loss"].weight == actor_steps
    assert counter_value(after.env_steps) == t.first_step + 6 * unroll * 2
    assert after.updates == 1 and ts.updates == 0


def test_the_ring_holds_what_happened():
    """Every row's successor is the next row's observation, unless its episode ended there."""
    t = trainer(num_envs=2, capacity=400, prefill=20)
    ts = compiled(t.init)(jax.random.key(0))
    ts, _ = compiled(lambda ts: t.chunk(ts, 5))(ts)
    held = t.prefill_rounds + 5 * 6
    ring = jax.device_get(ts.replay)
    obs, next_obs, ended = ring.obs[:held], ring.next_obs[:held], ring.truncated[:held]
    assert not ring.terminated.any() and ended.sum() == 2 * (held // 7)
    going = ~ended[:-1]
    np.testing.assert_array_equal(obs[1:][going], next_obs[:-1][going])
    assert np.abs(obs[1:][~going] - next_obs[:-1][~going]).sum(-1).min() > 1e-3  # a fresh start
    np.testing.assert_array_equal(ts.env.obs[~ended[-1]], next_obs[-1][~ended[-1]])
    assert (ring.reward[held:] == 0).all() and (ring.reward[:held] != 0).all()
    assert np.abs(ring.action).max() <= 1


def test_prefill_by_uniform_actions_or_by_the_agent():
    quiet = TD3(**SMALL, exploration=0.0)
    rings = {
        policy: jax.device_get(
            compiled(trainer(quiet, prefill=40, prefill_policy=policy).init)(jax.random.key(0))
        )
        for policy in ("uniform", "agent")
    }
    actions = {policy: ts.replay.action[:20].ravel() for policy, ts in rings.items()}
    assert actions["uniform"].std() == pytest.approx(3**-0.5, rel=0.2)
    assert actions["agent"].std() < 0.3
    acted, _ = quiet.act(rings["agent"].agent, rings["agent"].replay.obs[:20], None, "greedy")
    np.testing.assert_allclose(rings["agent"].replay.action[:20], acted, atol=1e-6)


@pytest.mark.parametrize(
    ("prefill", "pieces", "rounds"),
    [(12, 1, 6), (20, 2, 5), (24, 2, 6), (100, 10, 5), (46, 4, 6)],  # of 6, 10, 12, 50, 23 rounds
)
def test_a_prefill_is_made_in_equal_pieces_no_longer_than_an_iteration(prefill, pieces, rounds):
    t = trainer(prefill=prefill)
    assert t.prefill_pieces == (pieces, rounds) and t.rounds_per_iteration == 6
    assert prefill <= t.first_step == pieces * rounds * 2 <= prefill * 7 / 6
    delayed = trainer(TD3(**SMALL, delay=3), prefill=prefill)
    assert delayed.prefill_pieces[1] % 3 == 0


def test_a_prefill_begins_with_many_states_and_its_steps_that_are_not_finite_are_told():
    """Of a bank, every piece draws one of its own; the first iteration's metrics hold the count."""
    t = trainer(env=Failing(), limit=None, prefill=48, rounds=4)
    venv = VectorEnv(Failing(), 2, "bank", bank_size=2)
    t = dataclasses.replace(t, env=venv)
    ts = compiled(t.init)(jax.random.key(0))
    ended = np.asarray(ts.replay.terminated[:24])
    np.testing.assert_array_equal(ended.nonzero()[0], np.repeat(np.arange(3, 24, 4), 2))
    starts = np.asarray(ts.replay.obs[4:24:4])  # [5, 2, 1], each out of a bank of two
    assert len(np.unique(starts)) > 2
    told = []
    for _ in range(2):
        ts, metrics = compiled(t.iteration)(ts)
        told.append(float(metrics["nonfinite_steps"].total))
    assert told == [12 + 2, 2]


def test_normaliser_sees_the_prefill_and_every_step_after_it():
    t = trainer(NormalizeObs(ScaleReward(SAC(**SMALL), 0.1)))
    ts = compiled(t.init)(jax.random.key(0))
    assert ts.agent.statistics.size == 20
    after, _ = compiled(t.iteration)(ts)
    assert after.agent.statistics.size == 20 + t.steps_per_iteration


# --- bits ---------------------------------------------------------------------------------------


def test_chunks_equal_the_whole_bit_for_bit_and_compile_once():
    t = trainer(NormalizeObs(TD3(**SMALL)), n_step=3)
    total = t.first_step + 10 * t.steps_per_iteration
    whole, history = compiled(lambda k: t.train(k, total))(jax.random.key(0))
    chunk = compiled(t.chunk)
    ts = compiled(t.init)(jax.random.key(0))
    for done, iterations in ((0, 3), (3, 1), (4, 6)):
        ts, _ = chunk(ts, jnp.int32(iterations), jnp.int32(done))
    assert chunk._cache_size() == 1
    assert_same_bits(ts, whole)
    assert history["critic_loss"].shape == (10,) and np.isfinite(history["actor_loss"]).all()


@pytest.mark.parametrize("kind", [SAC, TD3, DSACT, DQN])
def test_of_every_agent_swept_members_in_chunks_are_the_whole_bit_for_bit(kind):
    """Two seeds of each of two learning rates, in one program."""
    t = trainer(kind(**SMALL), env=f"gymnax/{'CartPole' if kind is DQN else 'Pendulum'}-v1")
    total = t.first_step + 4 * t.steps_per_iteration
    rates = jnp.array([1e-3, 1e-3, 1e-1, 1e-1])
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1, 0, 1]))

    def of(rate):
        return hyper.replace(t, {"learning_rate": rate})

    whole = compiled(jax.vmap(lambda rate, key: of(rate).train(key, total)[0]))(rates, keys)
    ts = compiled(jax.vmap(lambda rate, key: of(rate).init(key)))(rates, keys)
    chunk = compiled(jax.vmap(lambda rate, ts, *n: of(rate).chunk(ts, *n)[0], (0, 0, None, None)))
    for done, count in ((0, 3), (3, 1)):
        ts = chunk(rates, ts, jnp.int32(count), jnp.int32(done))
    assert_same_bits(ts, whole)
    name = "q" if kind is DQN else "critic"
    learnt = np.concatenate(
        [x.reshape(4, -1) for x in jax.tree.leaves(whole.agent.params[name])], axis=1
    )
    assert len(np.unique(learnt, axis=0)) == 4


def test_members_have_rings_of_their_own_and_hyper_parameters_sweep():
    t = trainer(limit=3)
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    values = {"gamma": jnp.array([0.9, 0.99]), "tau": jnp.array([0.5, 0.01])}
    total = t.first_step + 2 * t.steps_per_iteration

    def train(values, key):
        return hyper.replace(t, values).train(key, total)[0]

    both = compiled(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))(values, keys)
    learnt = np.asarray(jax.tree.leaves(both.agent.params["critic"])[1]).reshape(4, -1)
    assert len(np.unique(learnt, axis=0)) == 4
    assert np.abs(both.replay.obs[0, 0] - both.replay.obs[0, 1]).max() > 0.1
    # The prefill does not depend on the swept values.
    np.testing.assert_array_equal(both.replay.obs[0, :, :10], both.replay.obs[1, :, :10])
    alone = compiled(train)(jax.tree.map(lambda x: x[1], values), keys[1])
    for a, b in zip(bits(both), bits(alone), strict=True):
        np.testing.assert_allclose(a[1, 1], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("agent", [TD3, DSACT])
def test_a_run_is_the_pure_function_and_resumes_bit_for_bit(agent, tmp_path):
    t = trainer(agent(**SMALL))
    total = t.first_step + 8 * t.steps_per_iteration
    small = {"eval_episodes": 2, "eval_every": 24, "log_every": 12, "checkpoint_every": 12}
    small |= {"devices": 1, "quiet": True, "seeds": [4]}
    whole = run(t, total, run_dir=tmp_path / "whole", **small)
    alone, _ = jax.jit(lambda key: t.train(key, total))(jax.random.key(4))
    assert_same_bits(jax.tree.map(lambda x: x[0], whole.state), alone)

    half = run(t, t.first_step + 3 * t.steps_per_iteration, run_dir=tmp_path / "half", **small)
    evaluated = [row["step"] for row in half.rows if row["kind"] == "eval"]
    assert evaluated == [t.first_step + done for done in (0, 24, 36)]
    resumed = run(t, total, run_dir=tmp_path / "half", resume=True, **small)
    assert_same_bits(resumed.state, whole.state)
    assert whole.summary["total_steps"] == total == t.first_step + 8 * 12


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
        (SAC(**SMALL), 3, 2, {}),
        (TD3(**SMALL), 3, 1, {}),
        (SAC(**SMALL), 1, 1, {}),
        (NormalizeObs(TD3(**SMALL)), 3, 2, {"n_step": 3}),
        (DSACT(**SMALL), 3, 2, {"precision": "half"}),
        (DQN(**SMALL), 3, 1, {"precision": "half", "n_step": 2, "env": "gymnax/CartPole-v1"}),
    ],
    ids=["SAC", "TD3", "one environment", "n steps", "half", "DQN"],
)
def test_the_ring_is_written_in_place_and_no_counter_branches(agent, num_envs, members, options):
    """The compiled program copies nothing of the ring's size inside its loops.

    Outside, of a single member, XLA gives up to two arrays another layout when a chunk begins, and
    their own when it ends; of several, there is no such copy either.
    """
    t = trainer(agent, num_envs=num_envs, capacity=30_000, prefill=30, **options)
    slots = t.replay.slots
    ts = jax.eval_shape(jax.vmap(t.init), jax.vmap(jax.random.key)(jnp.arange(members)))
    several = over_members(t.chunk, shared=2)
    lowered = jax.jit(several, donate_argnums=0).lower(ts, jnp.int32(1), jnp.int32(0))
    inside, outside = loops(lowered.compile().as_text())
    rings = rf"= \w+\[(?:\d+,)?{slots}[\d,]*\]\S* "
    assert re.search(rings + "dynamic-update-slice", inside)
    whole = rings + r"(?:copy|copy-start|scatter|convert|bitcast-convert|select)\("
    assert not re.search(whole, inside)
    assert len(re.findall(whole, outside)) <= (4 if members == 1 else 0)
    jaxpr = str(jax.make_jaxpr(t.iteration)(jax.eval_shape(t.init, jax.random.key(0))))
    assert "cond[" not in jaxpr and "callback" not in jaxpr


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        t = trainer(SAC(**SMALL, ensemble=3, subset=2))
        ts = jax.jit(t.init)(jax.random.key(0))
        jax.jit(t.iteration)(ts)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacity": 0}, "capacity is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prefill": 0}, "prefill is 0"),
        ({"unroll": 0}, "unroll is 0"),
        ({"updates": -1}, "updates is -1"),
        ({"rounds": 0}, "rounds is 0"),
        ({"n_step": 0}, "n_step is 0"),
        ({"prefill": 4, "n_step": 3}, "prefill is 4; n_step 3 needs 6"),
        ({"capacity": 10}, "capacity is 10, less than the prefill of 20; give at least that"),
        ({"prefill_policy": "random"}, "prefill_policy is 'random'.* uniform"),
        ({"precision": "hlaf"}, "precision is 'hlaf'; did you mean half"),
        (
            {"agent": TD3(delay=2), "updates": 3},
            "updates is 3, and the actor's delay 2; .* 2 would",
        ),
        ({"agent": TD3(delay=4), "rounds": 6}, "rounds is 6; .* every 4 rounds, .* as 8"),
        ({"agent": PPO()}, "PPO learns from its own rollouts alone; train it with OnPolicy"),
        ({"agent": NormalizeObs(PPO())}, "PPO learns from its own rollouts alone"),
        ({"agent": SAC(delay=0)}, "delay is 0; it must be at least 1"),
        ({"agent": NormalizeObs(TD3(delay=-1))}, "delay is -1; it must be at least 1"),
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
    words = "total_steps is 20, and the prefill alone makes 20; .* 200, or a smaller prefill"
    with pytest.raises(UsageError, match=words):
        trainer().iterations(20)
    for agent in (SAC(), NormalizeObs(DQN())):
        on_policy = OnPolicy(agent, VectorEnv(make("gymnax/Pendulum-v1"), 2))
        with pytest.raises(
            UsageError, match="(SAC|DQN) learns from replayed .* OffPolicy"
        ) as error:
            on_policy.check()
        assert "\n" not in str(error.value)


def test_rings_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    t = trainer(capacity=10**12)
    with pytest.raises(UsageError, match="capacity is 1000000000000, which needs .* GiB .* fits"):
        run(t, 1000, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
