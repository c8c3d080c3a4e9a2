"""Many seeds in one program never block XLA's CPU pool, as several batched factorisations can."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from shared import QUICK_FLAGS

from jaxrl import PPO, NormalizeObs, OnPolicy, VectorEnv, make
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.policies import AutoPolicy
from jaxrl.run.devices import Programs
from jaxrl.run.placement import Placement

AGAIN = """
import sys
import jax, jax.numpy as jnp
from jaxrl import PPO, OnPolicy, VectorEnv, make
from jaxrl.run.devices import Programs
from jaxrl.run.placement import choose

seeds = int(sys.argv[1])
agent = PPO(update_epochs=1, num_minibatches=1)
trainer = OnPolicy(agent, VectorEnv(make("gymnax/CartPole-v1"), 4), num_steps=16)
programs = Programs(trainer, choose([trainer], seeds))
init, chunk = jax.jit(programs.init), jax.jit(programs.chunk)
for i in range(20):
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds) + 1000 * i)
    ts, _ = jax.block_until_ready(chunk({}, init({}, keys), (), jnp.int32(2), jnp.int32(0)))
print("ended", ts.iterations.sum())
"""


def ended(code, seeds):
    """What ``code`` says in a process of its own; a blocked one is killed, and an error here.

    The variable NPROC, which makes the pool large, may be left of other tests' physics. Compiling
    quickly changes no call of LAPACK, and those are what blocks.
    """
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    environment["XLA_FLAGS"] = QUICK_FLAGS
    command = [sys.executable, "-c", code, str(seeds)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=300, check=True, env=environment
    )
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [32, 128])
def test_twenty_starts_of_many_seeds(seeds):
    assert ended(AGAIN, seeds) == ["ended", str(2 * seeds)]


def factorisations(lowered):
    """The names under which any backend would factorise, or solve with factors."""
    text = lowered.as_text()
    called = re.findall(r"custom_call @([\w.]+)|stablehlo\.(cholesky|triangular_solve)", text)
    pattern = re.compile("lapack|solver|blas|Qr|Householder|Eigh|cholesky|triangular")
    return {name for pair in called for name in pair if pattern.search(name)}


@pytest.mark.parametrize("env", ["gymnax/CartPole-v1", "brax/ant"])
def test_programs_factorise_nothing(env):
    policy, critic = (part(hidden_dims=(8,)) for part in (AutoPolicy, ValueFunction))
    agent = NormalizeObs(PPO(policy=policy, critic=critic, update_epochs=1))
    trainer = OnPolicy(agent, VectorEnv(make(env), 4), num_steps=2)
    programs = Programs(trainer, Placement())
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    state = jax.eval_shape(programs.init, {}, keys)
    counts = jnp.int32(1), jnp.int32(0)
    lowered = (
        jax.jit(programs.init).lower({}, keys),
        jax.jit(programs.chunk).lower({}, state, (), *counts),
    )
    for program in lowered:
        assert not factorisations(program)


@pytest.mark.parametrize(
    "f",
    [
        jnp.linalg.qr,
        jnp.linalg.cholesky,
        jnp.linalg.eigh,
        jnp.linalg.svd,
        jnp.linalg.inv,
        lambda x: jax.nn.initializers.orthogonal()(jax.random.key(0), x.shape),
    ],
)
def test_a_factorisation_would_be_seen(f):
    assert factorisations(jax.jit(jax.vmap(f)).lower(jnp.ones((2, 3, 3))))


@pytest.mark.slow
def test_physics_that_factorises_gets_a_large_pool_and_ends():
    """Batched factorisations of several seeds and environments, step after step."""
    again = AGAIN.replace("gymnax/CartPole-v1", "brax/inverted_pendulum")
    again = again.replace('pendulum")', 'pendulum", backend="generalized")').replace("16)", "2)")
    *_, word, iterations, pool = ended(again + "import os; print(os.environ.get('NPROC'))", 8)
    assert (word, iterations) == ("ended", "16")
    assert pool == ("8" if len(os.sched_getaffinity(0)) < 8 else "None")
