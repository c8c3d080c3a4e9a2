"""Whole runs of off-policy training: the trainer's bits, and resumed ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from shared import assert_same_bits
from test_off_policy import small, trainer

from jaxrl import DSACT, TD3, UsageError, hyper, run
from jaxrl.run import devices
from jaxrl.run.devices import Programs, over_members
from jaxrl.run.placement import Placement


@pytest.mark.slow  # test_batch_learners.py resumes runs of several agents
@pytest.mark.exact
@pytest.mark.parametrize("kind", [TD3, DSACT])
def test_a_run_is_the_pure_function_and_resumes_bit_for_bit(kind, tmp_path):
    t = trainer(small(kind))
    total = t.first_step + 8 * t.steps_per_iteration
    settings = {"eval_episodes": 2, "eval_every": 24, "log_every": 12, "checkpoint_every": 12}
    settings |= {"devices": 1, "quiet": True, "seeds": [4]}
    whole = run(t, total, run_dir=tmp_path / "whole", **settings)
    alone, _ = jax.jit(lambda key: t.train(key, total))(jax.random.key(4))
    assert_same_bits(jax.tree.map(lambda x: x[0], whole.state), alone)

    half = run(t, t.first_step + 3 * t.steps_per_iteration, run_dir=tmp_path / "half", **settings)
    evaluated = [row["env_steps"] for row in half.rows if row["kind"] == "eval"]
    assert evaluated == [t.first_step + done for done in (0, 24, 36)]
    resumed = run(t, total, run_dir=tmp_path / "half", resume=True, **settings)
    assert_same_bits(resumed.state, whole.state)
    assert whole.summary["total_steps"] == total == t.first_step + 8 * 12


def test_a_single_member_runs_as_itself():
    """A batch of one would be another, slower program."""
    keys = jax.vmap(jax.random.key)(jax.numpy.arange(2))

    def f(key, x):
        return jax.random.normal(key) + x

    def alone(keys, x):
        (key,) = jax.tree.map(lambda x: x[0], (keys,))
        return f(key, x)[None]

    expected = {2: jax.vmap(f, (0, None)), 1: alone}
    for count, same in expected.items():
        members = keys[:count]
        programs = (
            str(jax.make_jaxpr(each)(members, 1.0)) for each in (over_members(f, shared=1), same)
        )
        assert len(set(programs)) == 1


@pytest.mark.exact
def test_members_that_take_turns_are_trained_as_if_alone(monkeypatch):
    """Bit for bit, with hyper-parameters of their own, and a state replaced in place."""
    monkeypatch.setattr(devices, "LARGE", 0)
    programs = Programs(trainer(small(TD3), buffer_size=30_000), Placement())
    sweep = {"gamma": jnp.float32([0.9, 0.99, 0.95])}
    start = jax.jit(programs.init)(sweep, jax.vmap(jax.random.key)(jnp.arange(3)))

    def trained(members, donated=0):
        own = jax.tree.map(lambda x: jnp.array(x[members], copy=True), (sweep, start))
        chunk = jax.jit(programs.chunk, donate_argnums=1 if donated else ())
        compiled = chunk.lower(*own, (), jnp.int32(2), jnp.int32(0)).compile()
        return compiled(*own, (), jnp.int32(2), jnp.int32(0)), compiled.memory_analysis()

    together, memory = trained(slice(None), donated=True)
    for i in range(3):
        alone, _ = trained(slice(i, i + 1))
        assert_same_bits(jax.tree.map(lambda x, i=i: x[i : i + 1], together), alone)
    state = memory.argument_size_in_bytes
    assert memory.alias_size_in_bytes > 0.99 * state
    assert memory.temp_size_in_bytes < 0.6 * state  # one member of three, and what it computes


@pytest.mark.parametrize(
    ("width", "sizes", "turns"),
    [
        (256, {"batch_size": 256}, True),
        (32, {"batch_size": 64}, False),
        (256, {"batch_size": 256, "num_steps": 8, "num_updates": 4}, False),
    ],
)
def test_large_updates_take_turns_on_a_cpu(width, sizes, turns, monkeypatch):
    widths = {"hidden_dims": (width, width)}
    agent = hyper.override(TD3(), {"policy": widths, "critic": widths})
    programs = Programs(trainer(agent, **sizes), Placement())
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    ts = jax.eval_shape(programs.init, {}, keys)
    assert programs.takes_turns(ts) is turns
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not programs.takes_turns(ts)


def test_buffers_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    t = trainer(buffer_size=2 * 10**9)
    words = "buffer_size is 2000000000, which needs .* GiB .* fits"
    with pytest.raises(UsageError, match=words):
        run(t, 1000, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
