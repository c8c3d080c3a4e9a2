"""Policies out of run folders: the live ones bit for bit, statistics and units included."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrl.agents
from jaxrl import (
    PPO,
    SAC,
    Chunks,
    NormalizeObs,
    OnPolicy,
    ScaleReward,
    UsageError,
    VectorEnv,
    hyper,
    load_policy,
    make,
    run,
)
from jaxrl.analysis import render_run
from jaxrl.config import to_config
from jaxrl.nn import running_statistics
from jaxrl.nn.encoders import CNN
from jaxrl.optim import AdamW
from jaxrl.record import Policy, checkpoint
from jaxrl.record.rebuild import CLASSES, make_agent

SEEDS = [3, 5]
RATES = [1e-3, 1e-1]
OBS = jax.random.normal(jax.random.key(7), (2, 5, 3)) * jnp.array([1.0, 1.0, 8.0])
KEY = jax.random.key(11)


def small(kind=PPO, **policy):
    """A PPO agent, or one of its kind, with networks of one small layer."""
    agent = kind(update_epochs=1, num_minibatches=1)
    policy = agent.policy.replace(hidden_dims=(8,), **policy)
    return agent.replace(policy=policy, critic=agent.critic.replace(hidden_dims=(8,)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A swept run on a pendulum of its own gravity and time limit, with two checkpoints."""
    agent = NormalizeObs(small(initial_std=0.5))
    env = VectorEnv(make("gymnax/Pendulum-v1", g=5.0), 2, max_steps=20)
    return run(
        OnPolicy(agent, env, num_steps=8),
        64,
        seeds=SEEDS,
        sweep={"learning_rate": RATES},
        run_dir=tmp_path_factory.mktemp("policy") / "run",
        eval_every=64,
        eval_episodes=1,
        checkpoint_every=32,
        devices=1,
        quiet=True,
    )


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_every_member_is_loaded_bit_for_bit(finished):
    actions = []
    for index, member in enumerate(finished.members):
        loaded = load_policy(finished.run_dir, seed=member.seed, config=member.config)
        live = finished.policy(index)
        assert_same(loaded.state, live.state)
        assert (loaded.agent, loaded.mode) == (live.agent, "greedy")
        assert loaded.spec.max_steps == live.spec.max_steps == 20
        assert json.loads((finished.run_dir / "config.json").read_text())["env_options"] == {"g": 5}
        assert loaded.agent.agent.learning_rate == RATES[member.config]
        np.testing.assert_array_equal(loaded(OBS), live(OBS))
        actions.append(np.asarray(loaded(OBS)))
    assert len(np.unique(np.stack(actions)[:, 0, 0], axis=0)) == 4
    np.testing.assert_array_equal(load_policy(finished.run_dir)(OBS), actions[0])


def test_an_older_checkpoint_is_had_by_its_iteration(finished):
    older, newest = (load_policy(finished.run_dir, iteration=number) for number in (2, 4))
    assert (int(older.state.agent.updates), int(newest.state.agent.updates)) == (2, 4)
    np.testing.assert_array_equal(newest(OBS), load_policy(finished.run_dir)(OBS))
    assert not np.array_equal(older(OBS), newest(OBS))


def test_the_statistics_of_observations_are_inside(finished):
    policy = load_policy(finished.run_dir)
    seen = running_statistics.normalise(policy.state.statistics, OBS, policy.agent.obs_clip)
    assert not np.allclose(seen, OBS, atol=0.05)
    inner = policy.agent.agent

    @jax.jit
    def act(obs):
        return 2.0 * jnp.clip(inner.act(policy.state.agent, (), obs, KEY, "greedy")[0], -1, 1)

    np.testing.assert_allclose(policy(OBS), act(seen), rtol=1e-5, atol=1e-6)
    assert not np.allclose(policy(OBS), act(OBS), atol=1e-3)


def test_sampling_needs_a_key_and_depends_on_it(finished):
    policy, live = load_policy(finished.run_dir, mode="sample"), finished.policy(0, "sample")
    with pytest.raises(UsageError, match=r"mode 'sample' needs a key: policy\(obs, key\)"):
        policy(OBS)
    np.testing.assert_array_equal(policy(OBS, KEY), live(OBS, KEY))
    np.testing.assert_array_equal(policy(OBS, KEY), policy(OBS, KEY))
    assert not np.array_equal(policy(OBS, KEY), policy(OBS, jax.random.key(12)))
    greedy = load_policy(finished.run_dir)
    np.testing.assert_array_equal(greedy(OBS, KEY), greedy(OBS))
    assert not np.array_equal(greedy(OBS), policy(OBS, KEY))


@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_observations_may_have_any_leading_axes(finished, mode):
    policy = load_policy(finished.run_dir, mode=mode)
    for obs in (OBS, OBS[0], OBS[0, 0], np.asarray(OBS[0]), OBS[:0]):
        action = policy(obs, KEY)
        assert (action.shape, action.dtype) == ((*obs.shape[:-1], 1), jnp.float32)
    if mode == "greedy":
        rows = [[policy(obs) for obs in part] for part in OBS]
        np.testing.assert_allclose(policy(OBS), rows, rtol=1e-5, atol=1e-6)


def test_a_policy_of_dictionaries_needs_only_the_part_that_it_sees(tmp_path):
    agent = NormalizeObs(small())
    env = VectorEnv(make("probe/privileged", continuous=True), 4)
    done = run(
        OnPolicy(agent, env, num_steps=8),
        64,
        run_dir=tmp_path / "run",
        eval_every=32,
        eval_episodes=2,
        checkpoint_every=32,
        devices=1,
        quiet=True,
    )
    loaded, live = load_policy(done.run_dir), done.policy()
    assert_same(loaded.state, live.state)
    assert float(loaded.state.statistics.size) == 64
    assert set(loaded.spec.observation) == {"state", "privileged_state"}
    obs = {"state": OBS[..., :1], "privileged_state": OBS[..., 1:2]}
    np.testing.assert_array_equal(loaded(obs), live(obs))
    assert loaded(obs).shape == (2, 5, 1) and np.unique(loaded(obs)).size == 10
    np.testing.assert_array_equal(loaded({"state": obs["state"]}), loaded(obs))
    told = {"state": obs["state"], "privileged_state": obs["privileged_state"] + 1.0}
    np.testing.assert_array_equal(loaded(told | {"camera": OBS}), loaded(obs))
    with pytest.raises(UsageError, match="sees the entry 'state', which obs lacks; it has camera"):
        loaded({"camera": OBS})


class Constant:
    """An agent that acts the same everywhere."""

    def bind(self, spec):
        return self

    def act(self, state, carry, obs, key, mode):
        return jnp.broadcast_to(state, obs.shape[:-1] + state.shape), carry, {}


def test_actions_are_in_the_units_of_the_environment_and_within_its_bounds(finished):
    spec = finished.policy().spec
    assert (float(np.min(spec.action.low)), float(np.max(spec.action.high))) == (-2.0, 2.0)
    for value, wanted in [(-3, -2), (-1, -2), (-0.5, -1), (0, 0), (0.25, 0.5), (1, 2), (9, 2)]:
        policy = Policy(Constant(), jnp.array([value], jnp.float32), spec, "greedy")
        np.testing.assert_array_equal(policy(OBS), np.full((2, 5, 1), wanted))
    index = Policy(Constant(), jnp.int32(1), make("gymnax/CartPole-v1").spec, "greedy")
    np.testing.assert_array_equal(index(jnp.zeros((3, 4))), [1, 1, 1])

    many = load_policy(finished.run_dir, mode="sample")(jnp.tile(OBS, (100, 1, 1)), KEY)
    assert float(jnp.max(jnp.abs(many))) == 2.0 and jnp.mean(jnp.abs(many) < 2.0) > 0.5


# --- what cannot be loaded


def test_wrong_questions_are_answered_in_one_line(finished, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(UsageError, match=f"{folder} is not a run folder: it has no config"):
            load_policy(folder)
    for options, error, part in [
        ({"seed": 4}, UsageError, "seed 4 is not in .*; it has 3, 5"),
        ({"config": 2}, UsageError, "config is 2; .* has 0 to 1"),
        ({"config": -1}, UsageError, "config is -1; .* has 0 to 1"),
        ({"iteration": 3}, checkpoint.CheckpointError, "no checkpoint 3 in .*; there are 2, 4"),
        ({"mode": "gredy"}, UsageError, "mode is 'gredy'; did you mean greedy?"),
    ]:
        with pytest.raises(error, match=part) as caught:
            load_policy(finished.run_dir, **options)
        assert "\n" not in str(caught.value)


def test_a_run_without_checkpoints_or_of_a_foreign_agent_is_told(finished, tmp_path, monkeypatch):
    shutil.copy(finished.run_dir / "config.json", tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=f"no checkpoint in {tmp_path}"):
        load_policy(tmp_path)
    monkeypatch.delitem(CLASSES, "PPO")
    with pytest.raises(UsageError, match=r"unknown agent class 'PPO'; .* as classes=\[PPO\]"):
        load_policy(finished.run_dir)
    for text in ('{"seeds": [', "[]", "3", "null"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UsageError, match="config.json is not a JSON object"):
            load_policy(tmp_path)


def test_a_damaged_checkpoint_is_told_and_the_older_one_taken(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder)
    files = [p for p in (folder / "checkpoints/4/state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="checkpoint .*/4 is damaged .*; trying .*2") as told:
        policy = load_policy(folder, seed=5)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    wanted = load_policy(finished.run_dir, seed=5, iteration=2)
    assert_same(policy.state, wanted.state)
    with pytest.raises(checkpoint.CheckpointError, match="/4 is damaged"):
        load_policy(folder, iteration=4)
    shutil.rmtree(folder / "checkpoints/2")
    with pytest.raises(checkpoint.CheckpointError, match="/4 is damaged .*no intact one is left"):
        load_policy(folder)


# --- one's own classes and environments


@hyper.dataclass
class Mine(PPO):
    """An agent that the library does not know."""


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """A pendulum that belongs to no suite."""

    env: Any
    name: str = "elsewhere/pendulum"

    def __getattr__(self, name):
        return getattr(object.__getattribute__(self, "env"), name)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run of an own agent in an own environment."""
    agent = NormalizeObs(small(Mine))
    env = VectorEnv(Elsewhere(make("gymnax/Pendulum-v1")), 2, max_steps=20)
    folder = tmp_path_factory.mktemp("own") / "run"
    options = {"eval_every": 16, "eval_episodes": 1, "devices": 1, "quiet": True}
    return run(OnPolicy(agent, env, num_steps=8), 16, run_dir=folder, **options)


def test_own_classes_and_environments_are_loaded_bit_for_bit(own):
    env = Elsewhere(make("gymnax/Pendulum-v1"))
    loaded, live = load_policy(own.run_dir, classes=[Mine], env=env), own.policy()
    assert type(loaded.agent.agent) is Mine and loaded.agent == live.agent
    assert_same(loaded.state, live.state)
    np.testing.assert_array_equal(loaded(OBS), live(OBS))
    assert loaded.spec.max_steps == live.spec.max_steps == 20


def test_an_own_class_goes_before_one_of_the_library_of_the_same_name(finished):
    mine = hyper.dataclass(type("PPO", (PPO,), {"__module__": __name__}))
    loaded = load_policy(finished.run_dir, classes=[mine])
    assert type(loaded.agent.agent) is mine


def test_an_episode_of_an_own_agent_in_an_own_environment_is_drawn(own, tmp_path):
    env = Elsewhere(make("gymnax/Pendulum-v1"))
    options = {"classes": [Mine], "env": env, "max_steps": 3, "out": tmp_path}
    rendering = render_run(own.run_dir, **options)
    assert rendering.episode.length == 3 and (tmp_path / "episode.npz").exists()
    assert "there is no picture of elsewhere/pendulum" in rendering.notes[0]


@pytest.mark.parametrize("call", [load_policy, render_run])
def test_unknown_classes_and_environments_say_what_to_pass(own, call):
    env = Elsewhere(make("gymnax/Pendulum-v1"))
    with pytest.raises(
        UsageError, match=r"unknown agent class 'Mine'; .* as classes=\[Mine\]"
    ) as error:
        call(own.run_dir, env=env)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="unknown environment 'elsewhere/pendulum'; .* as env="):
        call(own.run_dir, classes=[Mine])


WRAPPERS = {"NormalizeObs", "ScaleReward", "Chunks"}
AGENTS = [
    name
    for name in sorted({*jaxrl.agents.__all__} - WRAPPERS)
    if hasattr(getattr(jaxrl.agents, name), "update")
]  # the others are parts of agents


@pytest.mark.parametrize("name", AGENTS)
def test_agents_of_the_library_are_read_from_their_record(name):
    """Once they are bound, and once they are not."""
    others = {"evaluated": SAC()} if name == "FQE" else {}
    agent = getattr(jaxrl.agents, name)(optimizer=AdamW(), **others)
    agent = ScaleReward(Chunks(agent, 3, 2) if name == "BC" else agent, 0.5)
    agent = agent if name == "FQE" else NormalizeObs(agent)
    spec = make("gymnax/Pendulum-v1").spec
    try:
        agent.bind(spec)
    except UsageError:  # it needs discrete actions
        spec = make("gymnax/CartPole-v1").spec
    for made in (agent, agent.bind(spec)):
        found = make_agent(json.loads(json.dumps(to_config(made))))
        assert found.bind(spec) == agent.bind(spec)


def test_parts_are_read_from_their_record():
    pixels = make_agent({"class": "CNN", "filters": [4], "kernels": [3], "strides": [1]})
    assert pixels == CNN(filters=(4,), kernels=(3,), strides=(1,))


def test_no_class_is_imported_because_a_file_names_it(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.run_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    for name in ("jaxrl.agents.ppo.PPO", "test_policy:Mine", "Mine"):
        config["agent"]["agent"]["class"] = name
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UsageError, match="unknown agent class"):
            load_policy(folder)
