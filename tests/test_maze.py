"""The point maze: walls, the goal, starts, and pictures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import UsageError, make
from jaxrl.analysis.episode import Episode
from jaxrl.analysis.frames import render_frames
from jaxrl.envs.contract import check_contract

ENV = make("maze/Stitch-v0")
KEY = jax.random.key(0)
STEP = jax.jit(jax.vmap(ENV.step, (None, 0, 0)))


def in_cells(obs):
    """The position ``[x, y]`` of an observation, in a map of 9 x 6 cells."""
    return (np.asarray(obs) + 1) * np.array([9, 6]) / 2


def test_it_is_an_environment_whose_names_are_known():
    check_contract(ENV)
    assert (ENV.name, ENV.spec.max_steps) == ("maze/Stitch-v0", 150)
    with pytest.raises(UsageError, match="maze/Stitch-v0: anywhere is 1; it must be True or False"):
        make("maze/Stitch-v0", anywhere=1)


def test_a_move_is_a_quarter_of_a_cell_and_walls_stop_the_component_that_enters_them():
    states = jnp.array([[2.0, 2.5], [1.1, 2.5], [3.9, 2.5], [2.0, 4.9], [4.5, 4.1]])
    actions = jnp.array([[1.0, -0.4], [-1.0, 1.0], [1.0, 1.0], [3.0, 1.0], [0.0, -1.0]])
    after, step = STEP(KEY, states, actions)
    expected = [[2.25, 2.4], [1.1, 2.75], [3.9, 2.75], [2.25, 4.9], [4.5, 4.1]]
    np.testing.assert_allclose(after[:3], expected[:3], atol=1e-6)
    np.testing.assert_allclose(after[4], expected[4], atol=1e-6)
    np.testing.assert_allclose(in_cells(step.obs), after, atol=1e-5)
    assert not step.reward[4] and not step.terminated.any() and not step.truncated.any()


def test_the_goal_pays_once_and_ends_the_episode():
    states = jnp.array([[7.5, 2.2], [7.5, 2.3], [7.5, 1.5]])
    _, step = STEP(KEY, states, jnp.array([[0.0, -1.0], [0.0, -1.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(step.terminated, [True, False, True])
    np.testing.assert_array_equal(step.reward, [1.0, 0.0, 1.0])


def test_episodes_begin_at_the_start_or_with_anywhere_at_every_free_cell():
    keys = jax.random.split(KEY, 500)
    near = in_cells(jax.vmap(ENV.reset)(keys)[1])
    assert (np.floor(near) == 1).all() and np.ptp(near, axis=0).min() > 0.5
    free = ENV.cells != "#"
    _, obs = jax.vmap(make("maze/Stitch-v0", anywhere=True).reset)(keys)
    columns, rows = np.floor(in_cells(obs)).astype(int).T
    seen = np.zeros_like(free)
    seen[rows, columns] = True
    np.testing.assert_array_equal(seen, free)


def test_its_picture_shows_walls_the_goal_and_the_point():
    state, obs = ENV.reset(KEY)
    frame = ENV.picture(state)
    assert frame.shape == (6 * 32, 9 * 32, 3) and frame.dtype == np.uint8
    colours = {tuple(int(c) for c in x) for x in frame.reshape(-1, 3)}
    assert colours == {(70, 70, 70), (255, 255, 255), (0, 158, 115), (0, 114, 178)}
    episode = Episode([state, state], *[()] * (len(Episode._fields) - 1))
    assert len(list(render_frames(ENV, episode).frames)) == 2
