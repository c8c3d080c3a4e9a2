"""Numbers of numpy and of JAX wherever Python's are taken, and wrong types in one line."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import (
    BC,
    DQN,
    DSACT,
    PPO,
    PQN,
    SAC,
    TD3,
    Dataset,
    NormalizeObs,
    Offline,
    OffPolicy,
    OnPolicy,
    ScaleReward,
    UsageError,
    VectorEnv,
    hyper,
    make,
)
from jaxrl.nn.critics import Critic, QNetwork
from jaxrl.nn.policies import AutoPolicy, Deterministic, TanhGaussian

SMALL = {"hidden_dims": (4,)}
CARTPOLE = VectorEnv(make("gymnax/CartPole-v1"), 4)
PENDULUM = VectorEnv(make("gymnax/Pendulum-v1"), 4)
WRAPPED = NormalizeObs(ScaleReward(PPO(AutoPolicy(**SMALL), target_kl=0.1), 0.5))
SIZES = {"buffer_size": 256, "learning_starts": 32, "batch_size": 8, "cycles": 4}
CRITIC = {"policy": TanhGaussian(**SMALL), "critic": Critic(**SMALL)}
TRAINERS = {
    "PPO": OnPolicy(WRAPPED, PENDULUM, num_steps=8),
    "PQN": OnPolicy(PQN(QNetwork(**SMALL), num_minibatches=4), CARTPOLE, num_steps=8),
    "SAC": OffPolicy(SAC(**CRITIC), PENDULUM, **SIZES),
    "TD3": OffPolicy(TD3(Deterministic(**SMALL), Critic(**SMALL)), PENDULUM, **SIZES),
    "DSAC-T": OffPolicy(DSACT(**CRITIC, likelihood=True), PENDULUM, **SIZES),
    "DQN": OffPolicy(DQN(QNetwork(**SMALL)), CARTPOLE, **SIZES),
    "BC": Offline(BC(AutoPolicy(**SMALL)), PENDULUM, batch_size=8, num_updates=2),
}
trainers = pytest.mark.parametrize("name", TRAINERS)


def entries(agent, path=()):
    """``path, declaration, value`` of every declared field of an agent and its parts."""
    for field in dataclasses.fields(agent):
        value, declared = getattr(agent, field.name), hyper.declaration(field)
        if hyper.is_node(value):
            yield from entries(value, (*path, field.name))
        elif declared is not None:
            yield (*path, field.name), declared, value


def put(node, path, value):
    first, *rest = path
    inner = put(getattr(node, first), rest, value) if rest else value
    return dataclasses.replace(node, **{first: inner})


def shapes(trainer):
    """Shape and dtype of everything that a short training returns."""
    rows = jax.ShapeDtypeStruct((16,), jnp.float32)
    ends = jax.ShapeDtypeStruct((16,), bool)
    obs, action = (jax.ShapeDtypeStruct((16, n), jnp.float32) for n in (3, 1))
    index = jax.ShapeDtypeStruct((16,), jnp.int32)
    data = Dataset(obs, action, rows, obs, ends, ends, index, index) if trainer.needs_data else ()
    found = jax.eval_shape(
        lambda key, data: trainer.train(key, np.int64(96), data), jax.random.key(0), data
    )
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), found)


@trainers
def test_every_hyper_parameter_takes_numbers_of_numpy_and_jax(name):
    """They train in the same shapes and dtypes, and are recorded like Python's."""
    trainer = TRAINERS[name]
    kinds = itertools.cycle([np.float32, jnp.float32, np.float16, jnp.bfloat16, np.array])
    agent = trainer.agent
    for path, declared, value in entries(agent):
        if declared.kind == "number" and value is not None:
            kind = next(kinds) if value > 1e-4 else np.float64  # eps is no half-precision number
            agent = put(agent, path, kind(value))
        if declared.kind == "size" and value is not None:
            several = isinstance(value, tuple)
            agent = put(agent, path, np.array(value) if several else np.int64(value))
        if declared.kind == "interval":
            agent = put(agent, path, jnp.array(value))
        if declared.kind == "flag":
            agent = put(agent, path, np.bool_(value))
    sizes = {
        field.name: jnp.int32(getattr(trainer, field.name))
        for field in dataclasses.fields(trainer)
        if field.name in ("num_steps", "num_updates", "batch_size", "buffer_size", "cycles")
    }
    env = dataclasses.replace(trainer.env, num_envs=np.int32(4), max_steps=jnp.int32(7))
    made = dataclasses.replace(trainer, agent=agent, env=env, **sizes)
    made.check()
    assert shapes(made) == shapes(trainer)
    assert hash(jax.tree.structure(made.agent)) == hash(jax.tree.structure(trainer.agent))
    recorded, expected = made.config(), trainer.config()
    assert json.loads(json.dumps(recorded)).keys() == expected.keys()
    assert recorded["trainer"] == expected["trainer"] and recorded["num_envs"] == 4
    assert type(recorded["num_envs"]) is int and recorded["max_steps"] == 7


WRONG = {
    "number": ["0.5", [0.5], np.array([0.5]), True, np.bool_(True), 0.5j, {}, float("nan"), int],
    "size": ["8", 4.0, np.float32(4), -1, True, np.bool_(True), [4, 4.0], {}, 2**31, int],
    "flag": ["True", 1, 0.0, None, np.array([True, False]), np.int64(1)],
    "choice": ["?", 1, None, np.array(["?"]), ["tanh"]],
    "interval": [1.0, "ab", None, (2.0, 1.0), (1.0,), ("1", "2"), (float("nan"), 1.0), (1, 2, 3)],
    "words": ["state", 3, None, (1,), np.array([1.0])],
}


@trainers
def test_wrong_types_are_one_line_that_names_the_field(name):
    trainer = TRAINERS[name]
    own = [
        (field.name, hyper.declaration(field).kind)
        for field in dataclasses.fields(trainer)
        if hyper.declaration(field)
    ]
    attempts = [
        (path[-1], lambda bad, path=path: {"agent": put(trainer.agent, path, bad)}, declared.kind)
        for path, declared, _ in entries(trainer.agent)
    ]
    attempts += [(field, lambda bad, field=field: {field: bad}, kind) for field, kind in own]
    for field, changed, kind in attempts:
        for bad in WRONG[kind]:
            with pytest.raises(UsageError, match=rf"\b{field} is ") as error:
                dataclasses.replace(trainer, **changed(bad)).check()
            assert "\n" not in str(error.value)
