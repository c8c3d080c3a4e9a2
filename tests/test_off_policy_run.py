"""Whole runs of off-policy training: the trainer's bits, and resumed ones."""

from __future__ import annotations

import jax
import pytest
from shared import assert_same_bits
from test_off_policy import small, trainer

from jaxrl import DSACT, TD3, UsageError, run
from jaxrl.run.devices import over_members


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


def test_buffers_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    t = trainer(buffer_size=2 * 10**9)
    words = "buffer_size is 2000000000, which needs .* GiB .* fits"
    with pytest.raises(UsageError, match=words):
        run(t, 1000, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
