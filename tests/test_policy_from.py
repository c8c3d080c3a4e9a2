"""Runs that start from the policy of an earlier run, of another class of agents."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits, trainer_of

from jaxrl import (
    BC,
    DPPO,
    DQN,
    FQL,
    PPO,
    PQN,
    TD3,
    NormalizeObs,
    Offline,
    OffPolicy,
    OnPolicy,
    ScaleReward,
    UsageError,
    VectorEnv,
    load_policy,
    make,
    run,
)
from jaxrl.agents import protocol
from jaxrl.agents.protocol import LearntPolicy
from jaxrl.counters import counter_value
from jaxrl.data import Dataset
from jaxrl.nn.critics import QNetwork, ValueFunction
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.edm import EDM
from jaxrl.nn.flow import Flow, NoisyFlow, first_noise
from jaxrl.nn.policies import Deterministic, Gaussian, TanhGaussian
from jaxrl.record.policy import Policy
from jaxrl.record.rows import Member
from jaxrl.run.devices import Programs
from jaxrl.run.placement import Placement
from jaxrl.run.policy_from import PolicyFrom, check_alike
from jaxrl.types import Box, Spec

pytestmark = pytest.mark.usefixtures("shared_programs")

OBS = jnp.linspace(-1.0, 1.0, 6).reshape(6, 1)
STILL = 1e-30  # a learning rate that changes no weight
SMALL = {"eval_every": 64, "eval_episodes": 1, "devices": 1, "quiet": True}


def venv(continuous=True):
    return VectorEnv(make("probe/both", continuous=continuous), 2)


def dataset(continuous=True):
    rng = np.random.default_rng(0)
    obs = rng.choice([-1.0, 1.0], (64, 1)).astype(np.float32)
    action = 0.5 * obs if continuous else rng.integers(0, 2, 64).astype(np.int32)
    ends = np.ones(64, bool)
    return Dataset.of(obs, action, obs[:, 0], obs, ends, ~ends)


def clone(wrap=NormalizeObs, width=4):
    """An offline trainer of BC with a normal policy."""
    agent = BC(policy=Gaussian(hidden_dims=(width,)), learning_rate=1e-2)
    return Offline(wrap(agent), venv(), batch_size=8, num_updates=4)


def tuned(wrap=NormalizeObs, rate=STILL, policy=None, agent=PPO):
    """An on-policy trainer of PPO, wrapped twice."""
    policy = policy or Gaussian(hidden_dims=(4,), initializer="orthogonal", initial_std=0.3)
    critic = ValueFunction(hidden_dims=(4,))
    inner = agent(policy=policy, critic=critic, learning_rate=rate, update_epochs=1)
    frozen = {"frozen": True} if wrap is NormalizeObs else {}
    return OnPolicy(wrap(ScaleReward(inner, 0.5), **frozen), venv(), num_steps=8)


def same(agent, **options):
    return agent


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone") / "run"
    return run(clone(), 16, data=dataset(), seeds=[3, 5], run_dir=folder, **SMALL)


def test_every_seed_starts_from_its_own_policy_or_from_the_first(cloned, tmp_path):
    folder = tmp_path / "run"
    made = run(tuned(), 32, seeds=[5, 7, 3], run_dir=folder, policy_from=cloned.run_dir, **SMALL)
    given = cloned.state.agent
    for member, source in enumerate([1, 0, 0]):
        found, wanted = (
            protocol.learnt_policy(trainer.agent, jax.tree.map(lambda x, i=i: x[i], state))
            for trainer, state, i in (
                (made.trainer, made.state.agent, member),
                (cloned.trainer, given, source),
            )
        )
        assert_same_bits(found, wanted)
        assert float(found.statistics.size) == 64
    assert not np.array_equal(*given.agent.policy.params["network"]["head"]["kernel"])
    assert [counter_value(x) for x in made.state.env_steps] == [32] * 3
    assert json.loads((folder / "config.json").read_text())["policy_from"] == str(cloned.run_dir)
    # It acts as the clone does, before any update and after updates that change nothing.
    clones = load_policy(cloned.run_dir, seed=5)
    np.testing.assert_allclose(load_policy(folder, seed=5)(OBS), clones(OBS), atol=1e-6)
    assert "policy_from" not in json.loads((cloned.run_dir / "config.json").read_text())


def test_a_resumed_run_needs_the_earlier_one_no_more(cloned, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(cloned.run_dir, earlier)
    options = {"seeds": [3], "policy_from": earlier, "checkpoint_every": 16, **SMALL}
    trainer = tuned(rate=1e-3)
    whole = run(trainer, 48, run_dir=tmp_path / "whole", **options)
    run(trainer, 16, run_dir=tmp_path / "parts", **options)
    shutil.rmtree(earlier)
    resumed = run(trainer, 48, run_dir=tmp_path / "parts", resume=True, **options)
    assert_same_bits(resumed.state, whole.state)
    with pytest.raises(UsageError, match=r"another configuration: policy_from \(.*earlier, now x"):
        options |= {"policy_from": "x", "resume": True}
        run(trainer, 64, run_dir=tmp_path / "parts", **options)


def test_targets_start_alike_and_the_warm_up_is_the_policy_s():
    agent = TD3(policy=Deterministic(hidden_dims=(4,)), exploration_noise=0.0)
    sizes = {"batch_size": 4, "learning_starts": 8, "buffer_size": 64, "cycles": 2}
    trainer = OffPolicy(agent, venv(), warmup_policy="agent", **sizes)
    programs = Programs(trainer, Placement())
    keys = jax.random.split(jax.random.key(0), 2)
    params = jax.vmap(trainer.agent.policy.init)(jax.random.split(jax.random.key(9), 2))
    ts = jax.jit(programs.init)({}, keys, (), LearntPolicy(params))
    for copy in (ts.agent.actor.params, ts.agent.target_actor):
        assert_same_bits(copy, params)
    assert [counter_value(x) for x in ts.env_steps] == [8, 8] and ts.iterations.tolist() == [0, 0]
    stored = ts.store
    acted = jax.vmap(trainer.agent.policy.mode)(params, stored.obs)
    played = jnp.abs(stored.obs) > 0  # the rest of the buffer is empty
    assert played.sum() == 16
    np.testing.assert_allclose(jnp.where(played, acted - stored.action, 0.0), 0.0, atol=1e-6)


class Averaging(NamedTuple):
    policy: dict
    ema: dict


class Averager:
    """An agent that keeps a moving average of its policy."""

    policy_at = ("policy.params",)


def test_the_moving_average_is_taken_if_there_is_one():
    state = Averaging({"params": {"w": jnp.zeros(2)}}, {"w": jnp.ones(2)})
    assert protocol.learnt_policy(Averager(), state).params["w"].tolist() == [1, 1]
    off = state._replace(ema=())
    assert protocol.learnt_policy(Averager(), off).params["w"].tolist() == [0, 0]
    given = LearntPolicy({"w": jnp.full(2, 3.0)})
    made = protocol.with_policy(Averager(), state, given)
    assert made.policy["params"]["w"].tolist() == made.ema["w"].tolist() == [3, 3]
    assert protocol.with_policy(Averager(), off, given).ema == ()


SPEC = Spec(Box(-1.0, 1.0, (3,)), Box(-1.0, 1.0, (2,)))


def test_a_noisy_flow_starts_from_a_flow_and_keeps_its_own_deviations():
    flow, noisy = Flow(hidden_dims=(8,)), NoisyFlow(hidden_dims=(8,), sample_steps=2)
    old, new = BC(policy=flow).bind(SPEC), BC(policy=noisy).bind(SPEC)
    check_alike(old, new, "runs/flow")
    with pytest.raises(UsageError, match="a NoisyFlow, and BC has a Flow; give a run whose"):
        check_alike(new, old, "runs/x")
    other = BC(policy=Gaussian(hidden_dims=(8,))).bind(SPEC)
    with pytest.raises(UsageError, match="give a run whose policy is a Flow or a NoisyFlow$"):
        check_alike(other, new, "runs/x")
    states = [jax.jit(a.init)(jax.random.key(i)) for i, a in enumerate((old, new))]
    made = protocol.with_policy(new, states[1], protocol.learnt_policy(old, states[0]))
    params = made.policy.params
    assert_same_bits({k: params[k] for k in ("encoder", "network")}, states[0].policy.params)
    assert_same_bits(params["std"], states[1].policy.params["std"])


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        (TanhGaussian(hidden_dims=(4,)), "is a Gaussian, and PPO has a TanhGaussian; give a run"),
        (
            Gaussian(hidden_dims=(8, 8), activation="tanh", std="exp"),
            r"has policy.hidden_dims \(4,\) \(now \(8, 8\)\), policy.activation 'relu' "
            r"\(now 'tanh'\), policy.std 'independent' \(now 'exp'\); give the same",
        ),
    ],
)
def test_another_family_or_other_sizes_are_one_line(cloned, tmp_path, policy, line):
    folder = tmp_path / "run"
    with pytest.raises(UsageError, match=f"^policy_from: the policy of .*run {line}") as error:
        run(tuned(policy=policy), 32, run_dir=folder, policy_from=cloned.run_dir, **SMALL)
    assert "\n" not in str(error.value) and not folder.exists()


def test_what_cannot_be_started_from_is_one_line(cloned, tmp_path):
    small = {"q_network": QNetwork(hidden_dims=(4,))}
    discrete = venv(continuous=False)
    learner = Offline(DQN(**small), discrete, batch_size=8, num_updates=4)
    without = tmp_path / "dqn"
    run(learner, 4, data=dataset(False), run_dir=without, **SMALL)
    swept, empty = tmp_path / "swept", tmp_path / "empty"
    shutil.copytree(cloned.run_dir, swept)
    config = json.loads((swept / "config.json").read_text())
    (swept / "config.json").write_text(json.dumps(config | {"sweep": [{}, {}]}))
    empty.mkdir()
    mine = tmp_path / "mine"  # in an environment that only its author has
    shutil.copytree(cloned.run_dir, mine)
    (mine / "config.json").write_text(json.dumps(config | {"env": "mine/rope"}))
    assert PolicyFrom(mine, tuned(), [Member(0, {}, 9)]).policies.statistics.size == [64]
    (empty / "config.json").write_text(json.dumps(config))
    ppo = OnPolicy(PPO(update_epochs=1), discrete, num_steps=8)
    pendulum = VectorEnv(make("gymnax/Pendulum-v1"), 2)
    wider = OnPolicy(tuned().agent, pendulum, num_steps=8)
    here = cloned.run_dir
    for trainer, earlier, line in [
        (tuned(), tmp_path / "no", ".*no is not a run folder: it has no config.json"),
        (tuned(), empty, "no checkpoint in .*empty"),
        (tuned(), swept, ".*swept has 2 configurations, and one is needed; give a run without"),
        (ppo, without, "DQN has no policy of its own; give an agent that has, such as PPO"),
        (
            OnPolicy(PQN(num_minibatches=1), discrete, num_steps=8),
            here,
            "PQN has no policy of its own; give an",
        ),
        (tuned(same), here, r".* sees normalised observations; wrap .* \(--normalize-obs\)"),
        (wider, here, r"the policy of .*run has policy.encoder.shapes .* \(now ..3,.*; give the"),
        (wider, mine, r".*does not fit .*float32\[2, 1\], expected float32\[2, 3\]"),
    ]:
        with pytest.raises(UsageError, match=f"^policy_from: {line}") as error:
            run(trainer, 32, policy_from=earlier, **SMALL)
        assert "\n" not in str(error.value)


def test_normalised_observations_of_one_alone_are_refused():
    plain = BC(policy=Gaussian(hidden_dims=(4,)))
    with pytest.raises(UsageError, match="runs/x sees raw observations; do not wrap the agent"):
        check_alike(plain.bind(SPEC), NormalizeObs(plain).bind(SPEC), "runs/x")


def test_scripts_have_the_option(cloned):
    words = "--env gymnax/Pendulum-v1 --quiet --run-dir x --policy-from"
    trainer = trainer_of("ppo", f"{words} {cloned.run_dir}")
    assert trainer.agent.frozen and not trainer_of("ppo", words[:-14]).agent.frozen


def test_a_loaded_policy_takes_fewer_steps(cloned, tmp_path):
    """One step of a flow adds the velocity at the noise; other families are refused."""
    folder, key = tmp_path / "flow", jax.random.key(3)
    agent = BC(policy=Flow(hidden_dims=(4,), sample_steps=4))
    trainer = Offline(agent, venv(), batch_size=8, num_updates=4)
    run(trainer, 4, data=dataset(), run_dir=folder, **SMALL)
    one, four = (load_policy(folder, sample_steps=steps) for steps in (1, 4))
    assert_same_bits(four(OBS, key), load_policy(folder)(OBS, key))
    flow, params = one.agent.policy, one.state.policy.params
    noise = first_noise(flow, OBS, key)
    velocity = flow.predictor(params, OBS)(noise, jnp.zeros(len(OBS)))
    expected = jnp.clip(noise + velocity, -1.0, 1.0)
    np.testing.assert_allclose(one(OBS, key), expected, atol=1e-5)
    with pytest.raises(UsageError, match="sample_steps is 0; it must be"):
        load_policy(folder, sample_steps=0)
    with pytest.raises(UsageError, match="sample_steps is 2, and the policy of .* does not denoi"):
        load_policy(cloned.run_dir, sample_steps=2)


def test_steps_of_a_loaded_policy_are_refused_where_they_would_mix_or_do_nothing(monkeypatch):
    """The noise levels of two networks would shift, and FQL does not act with its chain."""
    policy = Diffusion(num_steps=4, min_std=0.1)
    loaded = {
        "two": NormalizeObs(DPPO(policy=policy, fine_tuned_steps=1)),
        "one": DPPO(policy=policy),
        "fql": FQL(),
    }

    def load(run, *args, **options):
        return Policy(loaded[run], (), SPEC, "greedy"), None

    monkeypatch.setattr("jaxrl.record.policy.load_policy_and_env", load)
    for steps in (1, 2):
        line = f"^sample_steps is {steps}, .* older network for the first 3 of its steps; leave it"
        with pytest.raises(UsageError, match=line):
            load_policy("two", sample_steps=steps)
    own = load_policy("two", sample_steps=4)
    assert protocol.innermost(own.agent).frozen_steps == 3
    assert load_policy("one", sample_steps=2).agent.policy.chain_steps == 2
    with pytest.raises(UsageError, match="^sample_steps is 2, and the policy of fql does not den"):
        load_policy("fql", sample_steps=2)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (EDM(sigma_data=0.5), EDM(sigma_data=1.0), r"has policy.sigma_data 0.5 \(now 1.0\)"),
        (
            Gaussian(std="softplus"),
            Gaussian(std="softplus", initial_std=0.5),
            r"has policy.initial_std 1.0 \(now 0.5\)",
        ),
    ],
)
def test_numbers_that_give_parameters_their_meaning_must_agree(old, new, line):
    old, new = BC(policy=old).bind(SPEC), BC(policy=new).bind(SPEC)
    check_alike(old, old, "runs/x")
    with pytest.raises(UsageError, match=f"policy of runs/x {line}; give the same"):
        check_alike(old, new, "runs/x")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (4, 1, "if it predicts chunks of 4, give --env-options execute=4 online, or a clone"),
        (1, 4, "if the environment plays chunks of 4, give a clone with --horizon 4, or no"),
        (2, 3, "give the same"),
    ],
)
def test_chunks_of_other_lengths_are_named(old, new, line):
    def bound(size):
        spec = dataclasses.replace(SPEC, action=Box(-1.0, 1.0, (size,)))
        return BC(policy=Flow(hidden_dims=(4,))).bind(spec)

    found = rf"has policy.action_dim {old} \(now {new}\); {line}"
    with pytest.raises(UsageError, match=found):
        check_alike(bound(old), bound(new), "runs/x")


def test_other_numbers_may_differ():
    old, new = BC(policy=Gaussian(initial_std=1.0)), BC(policy=Gaussian(initial_std=0.5))
    check_alike(old.bind(SPEC), new.bind(SPEC), "runs/x")


def test_a_policy_of_two_networks_is_refused():
    policy = Diffusion(hidden_dims=(8,), num_steps=4, min_std=0.1)
    all_steps, last = (DPPO(policy=policy, fine_tuned_steps=k).bind(SPEC) for k in (None, 1))
    check_alike(all_steps, last, "runs/x")
    line = "the policy of runs/x has two networks: fine_tuned_steps was 1, and the first 3 denoisin"
    with pytest.raises(UsageError, match=f"^policy_from: {line}"):
        check_alike(last, all_steps, "runs/x")
