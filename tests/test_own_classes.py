"""Classes of a user's own: trained, killed, resumed, loaded and drawn as those of the library are.

One agent has a part of its own; the other has a memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits, killed

from jaxrl import (
    BC,
    DQN,
    PPO,
    TD3,
    Dataset,
    Offline,
    OffPolicy,
    OnPolicy,
    UsageError,
    VectorEnv,
    hyper,
    load_policy,
    make,
    run,
)
from jaxrl import metrics as m
from jaxrl.analysis import render_run, rollout
from jaxrl.data.samplers import transitions
from jaxrl.hyper import bound, number, part, size
from jaxrl.metrics import mean_of
from jaxrl.nn.policies import Deterministic
from jaxrl.optim import Adam, Trained
from jaxrl.record import Policy
from jaxrl.rng import row_key
from jaxrl.training.evaluate import EVALUATION_SEED, evaluate
from jaxrl.types import Array, Box, Spec, Step

SMALL = {"eval_every": 32, "eval_episodes": 2, "log_every": 16, "devices": 1, "quiet": True}


@dataclasses.dataclass(frozen=True)
class Rope:
    """Pull by what is seen; the episode ends at a distance of 3, and every step pays its action."""

    name: ClassVar[str] = "mine/rope"
    cheap: ClassVar[bool] = True

    @property
    def spec(self):
        return Spec(Box(-np.inf, np.inf, (2,)), Box(-2.0, 2.0, (1,)), 12)

    def reset(self, key):
        state = jax.random.uniform(key, (2,), minval=-1.0)
        return state, state

    def step(self, key, state, action):
        state = state + jnp.array([1.0, 0.1]) * action[0] + 0.1 * jax.random.normal(key, (2,))
        far = jnp.abs(state[0]) > 3.0
        return state, Step(state, action[0], far, jnp.zeros_like(far), {})


@hyper.dataclass
class Linear:
    """A linear policy with normal noise: a part of one's own."""

    std: float = number(0.5, above=0, help="standard deviation")
    features: int = bound(0)
    actions: int = bound(0)

    def bind(self, spec):
        sizes = {"features": spec.observation.shape[0], "actions": spec.action.shape[0]}
        return dataclasses.replace(self, **sizes)

    def init(self, key):
        return {"kernel": 0.1 * jax.random.normal(key, (self.features, self.actions))}

    def mode(self, params, obs):
        return obs @ params["kernel"]

    def sample(self, params, obs, key):
        mean = self.mode(params, obs)
        return mean + self.std * jax.random.normal(row_key(key), mean.shape)

    def log_prob(self, params, obs, action):
        return -0.5 * jnp.sum(((action - self.mode(params, obs)) / self.std) ** 2, -1)


class ReinforceState(NamedTuple):
    policy: Trained


@hyper.dataclass
class Reinforce:
    """Follow the rewards of single steps."""

    learns_from: ClassVar = "rollouts"

    policy: Any = part(Linear(), help="policy family")
    optimizer: Any = part(Adam(), help="optimiser")
    learning_rate: float = number(1e-2, above=0, help="step size")

    def bind(self, spec):
        return dataclasses.replace(self, policy=self.policy.bind(spec))

    def init(self, key):
        return ReinforceState(self.optimizer.start(self.policy.init(key)))

    def act(self, state, carry, obs, key, mode):
        params = state.policy.params
        if mode == "greedy":
            return self.policy.mode(params, obs), carry, {}
        return self.policy.sample(params, obs, key), carry, {}

    def policy_loss(self, params, rollout):
        log_prob = self.policy.log_prob(params, rollout.obs, rollout.action)
        return -jnp.mean(log_prob * rollout.reward), None

    def update(self, state, rollout, key):
        policy, _, metrics = self.optimizer.minimize(
            self.policy_loss, state.policy, self.learning_rate, rollout
        )
        return ReinforceState(policy), metrics


class PulseState(NamedTuple):
    gain: Array


@hyper.dataclass
class Pulse:
    """Acts by a gain on every ``period``-th step of an episode: its memory counts the steps.

    An episode begins at a count of its own, drawn from the key.
    """

    learns_from: ClassVar = "rollouts"

    period: int = size(3, help="steps from one pulse to the next")
    rate: float = number(0.1, above=0, help="step size")

    def bind(self, spec):
        return self

    def init(self, key):
        return PulseState(jax.random.uniform(key, (1,)))

    def init_carry(self, key, n):
        return jax.random.randint(row_key(key), (n,), 0, self.period)

    def act(self, state, carry, obs, key, mode):
        pulse = (carry % self.period == 0).astype(jnp.float32)[..., None]
        noise = 0.0 if mode == "greedy" else 0.1 * jax.random.normal(row_key(key), pulse.shape)
        return state.gain * pulse + noise, carry + 1, {}

    def update(self, state, rollout, key):
        start = rollout.carry.astype(jnp.float32)
        gain = state.gain + self.rate * jnp.mean(rollout.reward)
        return PulseState(gain), {"start": mean_of(start)}


CLASSES = [Reinforce, Linear, Pulse]


def train(agent, folder=None, **options):
    trainer = OnPolicy(agent, VectorEnv(Rope(), 2), num_steps=8)
    return run(trainer, 64, run_dir=folder, **{"seeds": 2} | SMALL | options)


@pytest.fixture(scope="module", params=[Reinforce(), Pulse()], ids=["own part", "memory"])
def finished(request, tmp_path_factory, shared_programs):
    return train(request.param, tmp_path_factory.mktemp("own") / "run")


def recorded(result):
    """The agent that the run trained, as it was given."""
    return type(result.trainer.agent)()


def test_killed_and_resumed_it_is_the_uninterrupted_run(finished, tmp_path):
    with killed("advance", 4):
        train(recorded(finished), tmp_path / "run")
    result = train(recorded(finished), tmp_path / "run", resume=True)
    assert_same_bits(result.state, finished.state)
    rows = [(each / "metrics.jsonl").read_bytes() for each in (tmp_path / "run", finished.run_dir)]
    assert rows[0] == rows[1]


def test_it_is_loaded_and_drawn_with_the_classes_and_the_environment(finished, tmp_path):
    loaded = load_policy(finished.run_dir, seed=1, classes=CLASSES, env=Rope())
    assert loaded.agent == finished.policy(1).agent
    assert_same_bits(loaded.state, finished.policy(1).state)

    options = {"classes": CLASSES, "env": Rope(), "out": tmp_path, "episode": 1}
    drawn = render_run(finished.run_dir, seed=1, **options)
    assert (tmp_path / "episode.npz").exists()
    rows = [row for row in finished.rows if row["kind"] == "eval" and row["seed"] == 1]
    if not jax.tree.leaves(loaded.start(1)):  # else the second of two episodes began elsewhere
        assert drawn.episode.episode_return == pytest.approx(rows[-1]["returns"][1], rel=1e-5)
    for lacking, message in [
        ({"env": Rope()}, "unknown agent class '(Reinforce|Pulse)'; pass your own classes"),
        ({"classes": CLASSES}, "unknown environment 'mine/rope'; pass the environment"),
    ]:
        with pytest.raises(UsageError, match=message):
            load_policy(finished.run_dir, **lacking)


@pytest.mark.parametrize("name", ["std", "policy.std"])
def test_a_number_of_an_own_part_is_swept_by_either_name(tmp_path, name):
    result = train(Reinforce(), tmp_path / "run", sweep={name: [0.25, 0.5]}, seeds=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["agent"]["policy"] == {"class": "Linear", "std": 0.5}
    assert [row["sweep"] for row in result.rows[-2:]] == [{name: 0.25}, {name: 0.5}]
    for i, std in enumerate((0.25, 0.5)):
        loaded = load_policy(tmp_path / "run", config=i, classes=CLASSES, env=Rope())
        assert loaded.agent.policy.std == std == result.policy(i).agent.policy.std


# --- memory


def pulse(gain=0.5, mode="greedy"):
    return Policy(Pulse(), PulseState(jnp.array([gain])), Rope().spec, mode)


def test_an_agent_with_memory_is_played_step_by_step():
    policy, obs = pulse(), jnp.zeros((4, 2))
    message = r"Pulse has a memory; play it with carry = policy.start\(n\) and action, carry = p"
    with pytest.raises(UsageError, match=message) as error:
        policy(obs)
    assert "\n" not in str(error.value)
    carry, seen = policy.start(4), []
    assert carry.shape == (4,)
    for _ in range(6):
        action, carry = policy.step(carry, obs)
        seen.append(np.asarray(action[:, 0]))
    for begun, actions in zip(np.asarray(policy.start(4)), np.transpose(seen), strict=True):
        wanted = [1.0 if (begun + t) % 3 == 0 else 0.0 for t in range(6)]  # in Rope's units
        np.testing.assert_array_equal(actions, wanted)
    assert len({*np.asarray(policy.start(8, jax.random.key(1)))}) > 1
    with pytest.raises(UsageError, match=r"needs a key: policy.step\(carry, obs, key\)"):
        pulse(mode="sample").step(carry, obs)


def test_an_agent_without_memory_is_played_by_the_same_loop():
    policy, obs = train(Reinforce()).policy(), jnp.ones((4, 2))
    carry = policy.start(4)
    assert carry == ()
    action, carry = policy.step(carry, obs)
    np.testing.assert_array_equal(action, policy(obs))
    assert carry == ()


def test_memory_that_only_explores_is_none_of_a_greedy_policys():
    made, spec = TD3(exploration_noise=0.1, exploration_noise_max=0.4), Rope().spec
    state = jax.eval_shape(made.bind(spec).init, jax.random.key(0))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    assert Policy(made, state, spec, "greedy")(jnp.ones((5, 2))).shape == (5, 1)
    with pytest.raises(UsageError, match="TD3 has a memory"):
        Policy(made, state, spec, "sample")(jnp.ones((5, 2)), jax.random.key(0))


@pytest.mark.parametrize("mode", ["greedy", "sample"])
def test_an_episode_with_memory_is_that_of_the_evaluation(mode):
    policy, env = pulse(0.9, mode), Rope()
    alone = jax.jit(lambda key: evaluate(policy.agent, policy.state, env, key[None], mode, 12))
    starts = set()
    for key in jax.random.split(jax.random.key(EVALUATION_SEED), 4):
        played, wanted = rollout(env, policy, key), alone(key)
        assert played.length == wanted.lengths[0]
        assert played.episode_return == pytest.approx(float(wanted.returns[0]), rel=1e-5)
        starts.add(int(np.argmax(np.abs(played.action[:3, 0]))))
    assert len(starts) > 1


def test_memory_restarts_with_the_episodes_and_a_rollout_begins_with_it():
    result = train(Pulse())
    assert {"episode_return", "start"} <= result.rows[-3].keys()
    assert result.state.carry.shape == (2, 2)
    steps = np.asarray(result.state.env.steps)
    assert np.all((result.state.carry - steps >= 0) & (result.state.carry - steps < 3))


class Newest:
    """A sampler that is no dataclass: the last rows of the dataset."""

    needs_replay, needs_data = False, True

    def check(self):
        pass

    def sample(self, store, data, key, shape, gamma):
        return transitions(data, data.size - 1 - jnp.arange(math.prod(shape)).reshape(shape), 1, 0)


@dataclasses.dataclass(frozen=True)
class Slowly:
    """A sampler with a sampler, which is no dataclass, and a number of numpy's."""

    inner: Any = Newest()
    rate: Any = np.float32(0.5)
    needs_replay: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True

    def check(self):
        self.inner.check()

    def sample(self, *args):
        return self.inner.sample(*args)


def test_a_sampler_that_is_no_dataclass_is_recorded_by_its_class(tmp_path):
    def train(sampler, **options):
        trainer = Offline(BC(policy=Deterministic(hidden_dims=(4,))), Rope().spec, batch_size=4,
                          num_updates=2, sampler=sampler)  # fmt: skip
        run(trainer, 4, data=data, run_dir=tmp_path / "run", quiet=True, devices=1, **options)
        return json.loads((tmp_path / "run" / "config.json").read_text())["trainer"]["sampler"]

    obs, ends = np.zeros((8, 2), np.float32), np.arange(8) == 7
    data = Dataset.of(obs, obs[:, :1], obs[:, 0], obs, ends, ends)
    assert train(Newest()) == {"class": "Newest"} == train(Newest(), resume=True)
    with pytest.raises(UsageError, match=r"trainer.sampler.class \(Newest, now Slowly\)"):
        train(Slowly(), resume=True)
    trainer = Offline(BC(), Rope().spec, sampler=Slowly())
    recorded = {"class": "Slowly", "inner": {"class": "Newest"}, "rate": 0.5}
    assert trainer.config()["trainer"]["sampler"] == recorded


def test_an_agent_of_rollouts_is_refused_by_a_trainer_of_batches():
    message = "Reinforce learns from its own rollouts; train it with OnPolicy"
    with pytest.raises(UsageError, match=message):
        Offline(Reinforce(), VectorEnv(Rope(), 2), batch_size=4, num_updates=2)


@pytest.mark.parametrize("kind", [OnPolicy, OffPolicy])
def test_metrics_that_are_no_means_are_refused(kind):
    """A vector would be recorded by its first element, and a number fails deep in a loop."""
    base = PPO() if kind is OnPolicy else DQN()

    for value, words in (
        (jnp.float32(1.0), r"metric 'mine' is a .*; give jaxrl.metrics.mean_of\(x\)"),
        (m.Mean(jnp.ones(2), jnp.ones(2)), "metric 'mine' is a Mean of vectors"),
    ):

        class Own(type(base)):
            def update(self, *args, _value=value):
                state, metrics = super().update(*args)
                return state, metrics | {"mine": _value}

        options = {} if kind is OnPolicy else {"learning_starts": 100, "buffer_size": 1_000}
        trainer = kind(Own(), VectorEnv(make("gymnax/CartPole-v1"), 2), **options)
        with pytest.raises(UsageError, match=words):
            jax.eval_shape(lambda key, each=trainer: each.train(key, 2_000), jax.random.key(0))
