"""Offline training: statistics, rewards, extras, runs without an environment, scores, switches."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl
from jaxrl import (
    BC,
    IQL,
    TD3,
    CalQL,
    Dataset,
    NormalizeObs,
    Offline,
    OffPolicy,
    Phase,
    ScaleReward,
    UsageError,
    VectorEnv,
    hyper,
    load_policy,
    make,
    run,
)
from jaxrl.agents import protocol
from jaxrl.cli import launching
from jaxrl.data import (
    Hindsight,
    Mixed,
    Pooled,
    ReplayBuffer,
    UniformDataset,
    UniformReplay,
    Windows,
)
from jaxrl.data.dataset import Split
from jaxrl.data.replay import Replay
from jaxrl.data.scores import Reference
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import Deterministic
from jaxrl.run import memory, summary
from jaxrl.run.configurations import check_configurations
from jaxrl.training.sampling import sample
from jaxrl.types import Transition

KEY = jax.random.key(0)
ROWS = 60
LEARNERS = ["SAC", "TD3", "DSAC", "DSACT", "DQN", "BC", "TD3BC", "IQL", "ReBRAC", "CQL", "CalQL"]
LEARNERS += ["EDAC", "DiscreteCQL", "FQL", "DiffusionQL", "IDQL", "IFQL"]
MIXTURES = [None, Mixed(0.5, UniformReplay(2)), Pooled()]
PENDULUM = VectorEnv(make("gymnax/Pendulum-v1"), 1)


def dataset(seed=0):
    """Rows of Pendulum's shapes, in episodes of five steps, a third of which terminate."""
    rng = np.random.default_rng(seed)
    obs = (3.0 + 2.0 * rng.normal(size=(ROWS, 3))).astype(np.float32)
    action = rng.uniform(-1, 1, (ROWS, 1)).astype(np.float32)
    reward = rng.normal(size=ROWS).astype(np.float32)
    last, episode = np.arange(ROWS) % 5 == 4, np.arange(ROWS) // 5
    return Dataset.of(
        obs, action, reward, obs[::-1].copy(), last & (episode % 3 == 0), last & (episode % 3 > 0)
    )


def td3(**options):
    small = {"hidden_dims": (8,)}
    return TD3(policy=Deterministic(**small), critic=Critic(**small), **options)


def offline(agent, env=PENDULUM, **sizes):
    return Offline(agent, env, **{"batch_size": 8, "num_updates": 2} | sizes)


def test_statistics_are_taken_of_the_dataset_once_and_frozen_ones_stay():
    data = jax.device_put(dataset())
    for frozen in (True, False):
        agent = NormalizeObs(td3(), frozen=frozen)
        first = offline(agent)
        sizes = {"batch_size": 4, "learning_starts": 8, "buffer_size": 64, "cycles": 2}
        online = OffPolicy(agent, PENDULUM, **sizes)

        def member(key, data, first=first, online=online):
            ts, _ = first.iteration(first.init(key, data), data)
            later, _ = online.iteration(online.continue_from(ts))
            return ts.agent.statistics, later.agent.statistics

        before, after = jax.jit(member)(KEY, data)
        np.testing.assert_allclose(before.mean, data.obs.mean(0), rtol=1e-5)
        np.testing.assert_allclose(before.m2 / ROWS, data.obs.var(0), rtol=1e-4)
        assert before.size == ROWS and after.size == ROWS + (0 if frozen else 10)
        seen = first.agent.seen(protocol_state(first, before), data.obs)
        np.testing.assert_allclose(seen.mean(0), 0.0, atol=1e-5)


def protocol_state(trainer, statistics):
    return trainer.agent.init(KEY)._replace(statistics=statistics)


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_of_a_mixture_s_dataset_are_there_without_an_offline_phase(frozen):
    agent = NormalizeObs(td3(), frozen=frozen)
    sizes = {"buffer_size": 32, "learning_starts": 4, "batch_size": 4, "cycles": 2}
    trainer = OffPolicy(agent, PENDULUM, sampler=Mixed(0.5), **sizes)
    statistics = jax.jit(trainer.init)(KEY, dataset()).agent.statistics
    assert statistics.size == ROWS + (0 if frozen else 4)  # and the warm-up


def test_a_second_offline_phase_does_not_look_again():
    data = jax.device_put(dataset())
    agent = NormalizeObs(td3()).bind(PENDULUM.spec)
    state = protocol.observe_dataset(agent, agent.init(KEY), data)
    again = protocol.observe_dataset(agent, state, data._replace(obs=data.obs + 1))
    assert again.statistics.size == ROWS
    np.testing.assert_array_equal(again.statistics.mean, state.statistics.mean)


def as_replay(data):
    """The same rows in a buffer, as one environment would have written them."""
    steps = Transition(*data[:6], extras={})
    steps = jax.tree.map(lambda x: jnp.asarray(x)[:, None], steps)
    buffer = ReplayBuffer(ROWS)
    rows = buffer.write(buffer.empty(jax.tree.map(lambda x: x[0], steps)), steps, 0)
    return Replay(buffer, rows, jnp.int32(ROWS))


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_transition_has_the_same_target_in_the_dataset_and_online(n_step):
    """With rewards transformed step by step, before they are summed."""
    data = dataset()
    agent = ScaleReward(td3(gamma=0.9), 2.0, -0.5, 1.5).bind(PENDULUM.spec)
    state = agent.init(KEY)
    size = (200,)
    online = sample(agent, UniformReplay(n_step), as_replay(data), (), KEY, size)
    stored = sample(agent, UniformDataset(n_step), (), data, KEY, size)
    learnt = np.clip(2.0 * data.reward - 0.5, -1.5, 1.5)
    assert 0.1 < np.mean(np.abs(learnt) == 1.5) < 0.9
    rows = {tuple(row): i for i, row in enumerate(data.obs)}
    first = {}
    for batch in (online, stored):
        inner = agent.agent
        loss = jax.vmap(
            lambda row, inner=inner: inner.critic_loss(
                state.critic.params, state, jax.tree.map(lambda x: x[None], row), KEY
            )[0]
        )(batch).tolist()
        for i, row in enumerate(np.asarray(batch.obs)):
            at = rows[tuple(row)]
            steps = learnt[at : min(at + n_step, data.end[at])]
            assert batch.reward[i] == pytest.approx(np.polyval(steps[::-1], 0.9), abs=1e-5)
            assert first.setdefault(at, loss[i]) == pytest.approx(loss[i], rel=1e-4)
    assert len(first) > 50


def test_what_an_agent_reads_from_its_batches_is_provided_or_named():
    @dataclasses.dataclass(frozen=True)
    class Reads:
        batch_extras = ("next_action", "has_next_action")
        gamma = 0.9

    trainer = OffPolicy(td3(), PENDULUM)
    assert trainer.sampling == UniformReplay()
    assert protocol.batch_extras(NormalizeObs(Reads())) == Reads.batch_extras
    replay = as_replay(dataset())
    batch = sample(Reads(), UniformReplay(1, Reads.batch_extras), replay, (), KEY, (4,))
    assert set(batch.extras) == set(Reads.batch_extras)
    message = "Reads reads 'next_action' .* UniformDataset gives none; give dataset.with_next_act"
    with pytest.raises(UsageError, match=message):
        sample(Reads(), UniformDataset(), (), dataset(), KEY, (4,))
    sample(Reads(), UniformDataset(), (), dataset().with_next_action(), KEY, (4,))


def test_what_changes_returns_to_go_is_not_swept_since_the_dataset_has_them_once():
    agent = ScaleReward(CalQL(), 0.5)
    trainer = Offline(agent, PENDULUM)
    check_configurations(trainer, [{"cql_alpha": 1.0, "gamma": agent.agent.gamma}])
    for name in ("gamma", "reward_scale"):
        line = f"^{name} is swept, and CalQL reads returns-to-go, .*sweep.py --static {name}=0.9,"
        with pytest.raises(UsageError, match=line):
            check_configurations(trainer, [{name: 0.9}])
    clipped = Offline(ScaleReward(CalQL(), reward_clip=5.0), PENDULUM)
    with pytest.raises(UsageError, match="reward_clip is swept, and CalQL reads returns-to-go"):
        check_configurations(clipped, [{"reward_clip": 2.0}])
    check_configurations(Offline(IQL(), PENDULUM), [{"gamma": 0.9}, {"gamma": 0.5}])
    online = OffPolicy(agent, PENDULUM, sampler=UniformReplay(extras=("return_to_go",)))
    check_configurations(online, [{"gamma": 0.9}])  # a replay buffer's are computed anew


@pytest.mark.parametrize("name", LEARNERS)
def test_every_off_policy_agent_learns_offline_online_and_from_one_to_the_other(name):
    """The table of the README; by shapes, as others train each of them."""
    kind = getattr(jaxrl, name)
    parts = {field.name for field in dataclasses.fields(kind)} & {"policy", "critic", "value"}
    agent = hyper.override(kind(), {part: {"hidden_dims": (8,)} for part in parts})
    discrete = name in ("DQN", "DiscreteCQL")
    env = VectorEnv(make("gymnax/CartPole-v1" if discrete else "gymnax/Pendulum-v1"), 2)
    delay = protocol.policy_delay(agent) or 1
    space, width = env.spec.action, env.spec.observation.shape[0]
    obs = np.zeros((ROWS, width), np.float32)
    action = np.zeros((ROWS, *space.shape), space.dtype)
    ends = np.arange(ROWS) % 5 == 4
    data = Dataset.of(obs, action, np.zeros(ROWS, np.float32), obs, ends, ends & False)
    data = data.with_next_action().with_return_to_go(0.99)
    first = Offline(agent, env, batch_size=8, num_updates=2 * delay)
    sizes = {"batch_size": 8, "learning_starts": 8, "buffer_size": 64, "num_updates": delay}
    sampler = MIXTURES[LEARNERS.index(name) % 3]
    online = OffPolicy(agent, env, cycles=2, sampler=sampler, **sizes)
    given = data if online.needs_data else ()

    def both(key, data, given):
        ts, _ = first.iteration(first.init(key, data), data)
        ts = online.continue_from(ts, given)
        return ts, *online.iteration(ts, given)

    before, after, metrics = jax.eval_shape(both, KEY, data, given)
    assert before == after and metrics
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {np.dtype(np.float32)}


def test_no_agent_that_learns_from_batches_is_missing():
    """Four have tests of their own: test_over_generative.py, test_fqe.py."""
    agents = {name: each for name, each in vars(jaxrl).items() if hasattr(each, "bind")}
    found = {n for n, each in agents.items() if getattr(each, "learns_from", "") == "batches"}
    assert found == {*LEARNERS, "PARL", "EditPolicy", "DSRL", "FQE"}


def test_a_dataset_that_does_not_fit_is_refused_with_its_size(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "free_over", lambda devices: 1000)
    with pytest.raises(UsageError, match=r"dataset needs 0.00 GiB on each of 1 devices, and 0.00"):
        memory.check_dataset(dataset(), 1)
    monkeypatch.setattr(memory, "free_over", lambda devices: 10**6)
    memory.check_dataset(dataset(), 1)


def test_batches_of_windows_that_do_not_fit_are_refused(monkeypatch):
    def needed(sampler):
        monkeypatch.setattr("jaxrl.training.sizes.free_over", lambda devices: 10**5)
        offline(td3(), batch_size=100, num_updates=10, sampler=sampler).check_memory(1, 1)

    needed(UniformDataset(3))  # 10 * 100 * 2 * 12 bytes
    for sampler in (Windows(8), Hindsight(Windows(8)), Windows(2, 8)):
        with pytest.raises(UsageError, match="batch_size 26 would fit, .*, or shorter windows"):
            needed(sampler)
    needed(Windows(8, 2))
    needed(Hindsight(UniformDataset()))


def test_a_validation_loss_is_of_episodes_that_are_not_learnt_from():
    """Their actions are out of reach: the loss on them stays, and that of training falls."""
    train = dataset()._replace(action=np.zeros((ROWS, 1), np.float32))
    held = dataset(1)._replace(action=np.full((ROWS, 1), 3.0, np.float32))
    agent = BC(policy=Deterministic(hidden_dims=(8,)), learning_rate=0.03)
    trainer = offline(NormalizeObs(agent), num_updates=50)
    data = jax.device_put(Split(train, held))
    data.check()
    ts, metrics = jax.jit(lambda data: trainer.train(KEY, 100, data))(data)
    assert metrics["policy_loss"][-1] < 0.2 and metrics["validation_loss"][-1] > 5
    assert ts.agent.statistics.size == ROWS
    with pytest.raises(UsageError, match="TD3 has no validation loss; give it the whole dataset"):
        jax.eval_shape(lambda data: offline(td3()).train(KEY, 2, data), data)


SMALL = {"eval_every": 8, "eval_episodes": 2, "log_every": 4, "devices": 1, "quiet": True}


def test_without_an_environment_training_works_and_evaluates_nothing(tmp_path):
    agent = BC(policy=Deterministic(hidden_dims=(8,)))
    trainer = offline(agent, PENDULUM.spec)
    options = {"data": dataset(), "seeds": 2, "run_dir": tmp_path / "run"}
    result = run(trainer, 16, **options, **SMALL)
    assert {row["kind"] for row in result.rows} == {"train"}
    assert result.summary["final_return"]["iqm"] is None
    assert "no final return: no environment" in launching.describe(result)
    with_env = run(offline(agent), 16, data=dataset(), seeds=2, **SMALL)
    for a, b in zip(*(jax.tree.leaves(x.state.agent) for x in (result, with_env)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)

    with pytest.raises(UsageError, match="the run had no environment; pass one, or the spec, as"):
        load_policy(tmp_path / "run")
    policy = load_policy(tmp_path / "run", env=PENDULUM.spec)
    obs = dataset().obs
    np.testing.assert_allclose(policy(obs), result.policy()(obs), rtol=1e-5)

    ts = jax.tree.map(lambda x: x[0], result.state)
    with pytest.raises(UsageError, match="there is no environment to play in, only the spec"):
        trainer.evaluate(ts, KEY)
    with pytest.raises(UsageError, match="env is a Spec; give a vector of them"):
        OffPolicy(td3(), PENDULUM.spec)


def test_the_summary_has_scores_and_the_dip_at_the_switch(tmp_path):
    sizes = {"batch_size": 4, "learning_starts": 8, "buffer_size": 64, "cycles": 2}
    phases = [
        Phase(offline(td3()), 16, "offline"),
        Phase(OffPolicy(td3(), PENDULUM, **sizes), 24, "online"),
    ]
    reference = Reference(-1500.0, -100.0, "measured")
    options = {"data": dataset(), "seeds": 2, "run_dir": tmp_path / "run"}
    result = run(phases, reference=reference, **options, **SMALL)
    returns = np.array([row["episode_return"] for row in result.rows if row["kind"] == "eval"])
    returns = returns.reshape(-1, 2)
    score = (returns + 1500.0) / 14.0
    scores = result.summary["scores"]
    assert scores["name"] == "normalized"
    np.testing.assert_allclose(scores["final"]["per_seed"], score[-1])
    np.testing.assert_allclose(scores["best"]["per_seed"], score.max(0))
    np.testing.assert_allclose(scores["last_ten"]["per_seed"], score[-10:].mean(0))
    (switch,) = result.summary["switches"]
    offline_rows = (
        sum(row["kind"] == "eval" and row["phase"] == "offline" for row in result.rows) // 2
    )
    before, after = returns[offline_rows - 1], returns[offline_rows:]
    assert switch["phase"] == "online"
    np.testing.assert_allclose(switch["before"]["per_seed"], before)
    np.testing.assert_allclose(switch["dip"]["per_seed"], np.maximum(before - after.min(0), 0))
    np.testing.assert_allclose(switch["area"]["per_seed"], after.mean(0))
    text = launching.describe(result)
    assert "normalized score: final" in text and "phase online: from" in text
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored["scores"] == scores and (tmp_path / "run" / "curves.png").exists()


def test_the_last_ten_evaluations_are_ten_of_twelve():
    played = np.arange(24.0).reshape(12, 2)
    found = summary.scores(Reference(0.0, 100.0, "measured")._asdict(), played)
    assert found["last_ten"]["per_seed"] == [13.0, 14.0]
    assert found["final"]["per_seed"] == found["best"]["per_seed"] == [22.0, 23.0]
