"""Many seeds in one program never block XLA's CPU pool, as several batched factorisations can."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxrl import PPO, NormalizeObs, OnPolicy, VectorEnv, make
from jaxrl.run.devices import Placement, Programs

AGAIN = """
import sys
import jax, jax.numpy as jnp
from jaxrl import PPO, OnPolicy, VectorEnv, make
from jaxrl.run.devices import Programs, choose

seeds = int(sys.argv[1])
trainer = OnPolicy(PPO(), VectorEnv(make("gymnax/CartPole-v1"), 4), unroll=16)
programs = Programs(trainer, choose(trainer, seeds))
init, chunk = jax.jit(programs.init), jax.jit(programs.chunk)
for i in range(20):
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds) + 1000 * i)
    ts, _ = jax.block_until_ready(chunk({}, init({}, keys), jnp.int32(2)))
print("ended", ts.updates.sum())
"""


@pytest.mark.parametrize("seeds", [32, 128])
def test_twenty_starts_of_many_seeds(seeds):
    command = [sys.executable, "-c", AGAIN, str(seeds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["ended", str(2 * seeds)]


@pytest.mark.parametrize("env", ["gymnax/CartPole-v1", "brax/ant"])
def test_programs_factorise_nothing(env):
    agent = NormalizeObs(PPO(hidden=(8,), epochs=1))
    programs = Programs(OnPolicy(agent, VectorEnv(make(env), 4), unroll=2), Placement())
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    state = jax.eval_shape(programs.init, {}, keys)
    lowered = (
        jax.jit(programs.init).lower({}, keys),
        jax.jit(programs.chunk).lower({}, state, jnp.int32(1)),
    )
    for program in lowered:
        called = set(re.findall(r"custom_call @(\w+)", program.as_text()))
        assert not {name for name in called if "lapack" in name or "Qr" in name}, called


def test_a_factorisation_would_be_seen():
    text = jax.jit(jnp.linalg.qr).lower(jnp.eye(3)).as_text()
    assert any("lapack" in name for name in re.findall(r"custom_call @(\w+)", text))


def test_physics_that_factorises_gets_a_large_pool_and_ends():
    """Batched factorisations of several seeds and environments, step after step."""
    again = AGAIN.replace("gymnax/CartPole-v1", "brax/inverted_pendulum")
    again = again.replace('pendulum")', 'pendulum", backend="generalized")').replace("16)", "2)")
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    done = subprocess.run(
        [sys.executable, "-c", again + "import os; print(os.environ.get('NPROC'))", "8"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=environment,
    )
    *ended, pool = done.stdout.split()
    assert ended[-2:] == ["ended", "16"]
    assert pool == ("8" if len(os.sched_getaffinity(0)) < 8 else "None")
