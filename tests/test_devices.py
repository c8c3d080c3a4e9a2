"""Placement on 1, 2 and 8 devices: the same results, and communication only where it must be.

The number of devices is fixed at JAX's first computation, so a process of its own computes
(device_worker.py), on eight simulated ones.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import device_worker as worker
import jax
import numpy as np
import pytest
from scipy import stats
from shared import QUICK_FLAGS

from jaxrl.record import checkpoint
from jaxrl.run.placement import Placement

SCRIPT = Path(__file__).parents[1] / "experiments" / "ppo.py"
CPU = {"JAX_PLATFORMS": "cpu"}
NETWORKS = "--agent.policy.hidden-dims 4 --agent.critic.hidden-dims 4"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Settings to compile quickly; they leave alone what happens between devices."""
    return {
        "XLA_FLAGS": QUICK_FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="module")
def eight(cache):
    """Calls a function of the worker where there are eight devices."""
    context = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, context) as pool:
        for name, value in {**cache, **CPU, "JAX_NUM_CPU_DEVICES": "8"}.items():
            patch.setenv(name, value)
        yield lambda f, *args, **options: pool.submit(f, *args, **options).result()


TWO = pytest.param(2, marks=pytest.mark.slow)  # as eight, which are the harder case


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- choosing


def test_members_come_first_then_their_environments(eight):
    wanted = {
        **{(8, n): Placement(n, 1) for n in (1, 2, 4, 8)},
        **{(1, n): Placement(1, n) for n in (1, 2, 4, 8)},
        (2, 8): Placement(2, 4),
        (6, 4): Placement(2, 2),
        (12, 8): Placement(4, 2),
    }
    assert eight(worker.choices, list(wanted)) == list(wanted.values())


def test_what_does_not_divide_over_the_devices_asked_for_is_refused(eight):
    assert eight(worker.choices, [(1, 3), (5, 6), (8, 9), (8, 0)]) == [
        "num_envs is 8, which does not divide over 3 devices; 9 would, or fewer devices, or 3 "
        "times as many seeds",
        "num_envs is 8, which does not divide over 6 devices; 12 would, or fewer devices, or 6 "
        "times as many seeds",
        "devices is 9; this machine has 1 to 8",
        "devices is 0; this machine has 1 to 8",
    ]
    more = [(3, 3), (30, 6)]  # what the messages offer
    assert eight(worker.choices, more) == [Placement(3, 1), Placement(6, 1)]


@pytest.mark.parametrize(
    "env, wanted",
    [
        ("gymnax/CartPole-v1", {1: (1, 1), 2: (2, 1), 5: (5, 1), 9: (3, 1), 11: (1, 1)}),
        ("dear", {1: (1, 8), 2: (2, 4), 3: (3, 2), 5: (5, 1), 8: (8, 1), 9: (3, 2), 11: (1, 8)}),
    ],
)
def test_left_to_itself_it_drops_devices_and_shards_no_toys(eight, env, wanted):
    found = eight(worker.choices, [(members, None) for members in wanted], env)
    assert found == [Placement(*each) for each in wanted.values()]


# --- communication


@pytest.mark.parametrize("devices", [TWO, 8])
def test_seeds_over_devices_do_not_communicate(eight, devices):
    assert eight(worker.collectives, 8, devices, 1) == [(devices, [])] * 3


@pytest.mark.parametrize(
    "members, shards",
    [
        pytest.param(8, 2, marks=pytest.mark.slow),
        (8, 8),
        pytest.param(1, 8, marks=pytest.mark.slow),
    ],
)
def test_shards_add_up_gradients_and_statistics_alone(eight, members, shards):
    init, (devices, found), evaluate = eight(worker.collectives, members, 1, shards)
    assert devices == shards and init == evaluate == (shards, [])
    assert {operation for operation, _ in found} == {"all-reduce"}
    networks = 4 * 32 + 32 + 32 * 2 + 2 + 4 * 32 + 32 + 32 * 1 + 1
    gradient, statistics = members * networks, members * 4
    sizes = set().union(*(sizes for _, sizes in found))
    assert {gradient, statistics} <= sizes <= {gradient, statistics, members, 1}


# --- the same results


def test_a_seed_gets_the_same_bits_on_whichever_device_it_lies(eight):
    """The program is the same on each, and nothing comes from the seeds of the others."""
    found, moved = eight(worker.iterations, 8, 3), eight(worker.iterations, 8, 3, shift=3)
    assert_same_bits(jax.tree.map(lambda x: np.roll(x, -3, axis=0), moved), found)


@pytest.mark.parametrize("devices", [TWO, 8])
def test_seeds_give_the_same_results_on_any_number_of_devices(eight, devices):
    """The same draws and episodes; numbers as far as rounding lets them, for a device's program has
    another batch of seeds.
    """
    one, metrics = eight(worker.iterations, 1, 3)
    assert metrics["episodes"].min() > 0
    state, others = eight(worker.iterations, devices, 3)
    assert_same_bits((state.key, state.env.steps), (one.key, one.env.steps))
    for a, b in zip(*map(jax.tree.leaves, ((state, others), (one, metrics))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 8])
def test_learning_over_shards_is_as_good_as_on_one_device(eight, shards):
    """CartPole, eight seeds; a random policy lasts for 22 steps."""
    (reference, *_), _, _ = eight(worker.learn, 1)
    (early, late, greedy), _, _ = eight(worker.learn, shards)
    assert late.mean() > 350 and greedy.mean() > 350, (late, greedy)
    # The speed of learning, before all reach the limit of 500.
    assert early.mean() > 100
    assert stats.ttest_ind(early, reference, equal_var=False).pvalue > 1e-3
    assert len({*early, *reference}) == 16  # and yet other random numbers


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 8])
def test_all_shards_hold_one_agent_and_their_own_environments(eight, shards):
    _, agent, env = eight(worker.learn, shards)
    for devices in agent:
        assert len(devices) == shards
        for other in devices[1:]:
            np.testing.assert_array_equal(devices[0], other)
    for devices in env:
        assert [x.shape[:2] for x in devices] == [(8, 8 // shards)] * shards


@pytest.mark.parametrize("shards", [TWO, 8])
def test_shards_draw_their_own_random_numbers(eight, shards):
    """Two environments see or do the same half of the time, as coins do."""
    for drawn in eight(worker.rollouts, shards):
        assert drawn.shape == (128, 8)
        same = np.mean(drawn[:, :, None] == drawn[:, None, :], axis=0)
        assert np.all(same[~np.eye(8, dtype=bool)] < 0.75)


@pytest.mark.parametrize(
    "episodes, shards",
    [pytest.param(16, (2, 8), marks=pytest.mark.slow), (15, (8,))],  # 15 do not divide
)
def test_evaluation_does_not_depend_on_the_shards(eight, episodes, shards):
    found = eight(worker.evaluations, episodes, (1, *shards))
    assert found[1].shape == (8, episodes) and len(np.unique(found[1])) > 20
    for count in shards:
        np.testing.assert_array_equal(found[count], found[1])


@pytest.mark.parametrize("shards", [TWO, 8])
def test_a_sharded_update_is_that_of_all_the_data(eight, shards):
    """With one minibatch, the whole update and its metrics: advantages are normalised, gradients
    averaged and updates stopped early (on each of a range of thresholds) over all shards.
    """
    (one, metrics, _), (states, others, obs) = (eight(worker.updates, s) for s in (1, shards))
    leaves = jax.tree.leaves(one.agent.networks.params)
    params = np.concatenate([x[0].reshape(8, -1) for x in leaves], 1)
    assert 3 <= len(np.unique(params, axis=0)) < 8  # some thresholds stopped the updates

    def same(a, b):
        for shard in a:
            np.testing.assert_array_equal(shard, a[0])
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-6)

    jax.tree.map(same, states, one)
    jax.tree.map(same, others, metrics)
    rows = np.concatenate([x.reshape(-1, 4) for x in obs]).astype(np.float64)
    seen = jax.tree.map(lambda x: x[0, 0], states.statistics)
    assert seen.size == len(rows) == 512
    np.testing.assert_allclose(seen.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen.m2, rows.var(axis=0) * 512, rtol=1e-5)


def test_a_gradient_that_is_not_finite_on_one_shard_is_skipped_by_all(eight):
    before = eight(worker.first_agent)
    state, metrics, _ = eight(worker.updates, 8, poison=3)
    found, kept = (jax.tree.leaves(each.networks.params) for each in (state.agent, before))
    for new, old in zip(found, kept, strict=True):
        np.testing.assert_array_equal(new, np.broadcast_to(old, new.shape))
    assert np.all(state.agent.networks.optim.skipped == 6)
    np.testing.assert_array_equal(metrics["skipped_updates"], 3)
    np.testing.assert_array_equal(metrics["skipped_in_a_row"], 6)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.slow] * (x not in ("SAC", "FQL")))
        for x in worker.REPLAYED
    ],
)
def test_a_sharded_update_is_that_of_the_whole_batch(eight, name):
    """And every shard explores by noise of its own, where actions are not clipped."""
    (whole, metrics, _), (shards, others, drawn) = (eight(worker.replayed, name, n) for n in (1, 2))

    def same(a, b):
        np.testing.assert_array_equal(a[0], a[1])
        np.testing.assert_allclose(a[0], b[0], rtol=1e-4, atol=1e-5)

    jax.tree.map(same, shards, whole)
    jax.tree.map(same, others, metrics)
    norms = [value[0] for key, value in others.items() if key.endswith("grad_norm")]
    assert others["skipped_updates"][0] == 0 < min(norms)
    assert not np.any((drawn[0] == drawn[1]) & (np.abs(drawn[0]) < 1.0))
    assert np.any(drawn[0] != drawn[1])


def test_one_seed_learns_from_a_dataset_on_two_devices(eight):
    """Its batches are shared; each device has all the data, which is counted once."""
    (_, one, _), (placement, two, agents) = (eight(worker.offline, n) for n in (1, 2))
    assert placement == Placement(1, 2)
    assert_same_bits(two, one)
    for first, second in agents:
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", worker.GENERATIVE)
def test_generative_agents_train_on_two_devices(eight, name):
    """Seeds over devices equal one device; both devices of shared seeds hold one agent."""
    one, metrics, _ = eight(worker.generative, name, 1, 1)
    state, others, _ = eight(worker.generative, name, 2, 1)
    assert_same_bits((state.key, state.env_steps), (one.key, one.env_steps))
    for a, b in zip(*map(jax.tree.leaves, ((state, others), (one, metrics))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    shared, others, agents = eight(worker.generative, name, 1, 2)
    assert others.keys() == metrics.keys() and not np.any(others["skipped_updates"])
    for first, second in agents:
        np.testing.assert_array_equal(first, second)
    assert_same_bits(
        (shared.iterations, shared.gradient_steps), (one.iterations, one.gradient_steps)
    )


# --- runs


@pytest.mark.parametrize(
    "members, layout",
    [
        (8, {"members": 8, "shards": 1}),
        pytest.param(1, {"members": 1, "shards": 8}, marks=pytest.mark.slow),
    ],
)
def test_runs_resume_on_the_same_devices_and_on_others(eight, tmp_path, members, layout):
    whole, _, _ = eight(worker.train, tmp_path / "whole", members, 8, 4, 2)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["placement"] == {**layout, "platform": "cpu"}
    part, _, _ = eight(worker.train, tmp_path / "part", members, 8, 2, 2)
    shutil.copytree(tmp_path / "part", tmp_path / "other")

    same, _, said = eight(worker.train, tmp_path / "part", members, 8, 4, 2, resume=True)
    assert "resumed at step 512" in said and "note:" not in said
    assert_same_bits(same, whole)
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("part", "whole")]
    assert metrics[0] == metrics[1]

    # On one device: what was saved is what is restored, and it goes on; then on eight again.
    def elsewhere(devices, *lengths):
        return eight(worker.train, tmp_path / "other", members, devices, *lengths, resume=True)

    name, moved, said = "members" if members == 8 else "shards", *elsewhere(1, 2, 2)[::2]
    assert f"note: resumed under another placement.{name} (8, now 1): results may differ" in said
    assert_same_bits(moved, part)
    alone, _, _ = elsewhere(1, 3, 2)
    back, _, said = elsewhere(8, 3, 2)
    assert f"{name} (1, now 8)" in said and "already finished" in said
    assert_same_bits(back, alone)
    count, every = (4, 2) if members == 8 else (worker.LEARNING, worker.LEARNING // 2)
    state, rows, _ = elsewhere(8, count, every)
    assert state.iterations.tolist() == [count] * members
    assert state.env_steps[:, 0].tolist() == [count * 256] * members
    if members == 8:  # seeds draw the same numbers on any device
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), state, whole
        )
    else:
        assert rows[-1]["episode_return"] > 80  # 22 at random


@pytest.mark.slow  # it is the test above with a kill as in test_interruption.py
def test_eight_seeds_on_two_devices_are_killed_and_go_on_as_if_nothing_had_been(tmp_path, cache):
    options = "--env probe/both --num-envs 4 --num-steps 8 --num-seeds 8 --devices 2 --quiet"
    options += f" {NETWORKS} --agent.num-minibatches 1 --eval-episodes 4"
    options += " --total-steps 32000 --log-every 320 --eval-every 3200 --checkpoint-every 640"

    def script(name, *more):
        return python(SCRIPT, *options.split(), "--run-dir", tmp_path / name, *more, **cache)

    whole = script("whole")
    assert whole.wait() == 0, whole.stderr.read()
    killed = script("killed")
    while len(checkpoint.available(tmp_path / "killed" / "checkpoints")) < 2:
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    resumed = script("killed", "--resume")
    assert resumed.wait() == 0, resumed.stderr.read()

    folders = [tmp_path / name for name in ("killed", "whole")]
    for folder in folders:
        placement = json.loads((folder / "config.json").read_text())["placement"]
        assert placement == {"members": 2, "shards": 1, "platform": "cpu"}
    found, wanted = (checkpoint.restore(each / "checkpoints", None) for each in folders)
    assert found.iteration == wanted.iteration == 1000
    assert_same_bits(worker.plain(found.state), worker.plain(wanted.state))
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in folders]
    assert metrics[0] == metrics[1]


# --- the number of devices


def python(*args, **environment):
    """Start Python, without the settings of whoever runs the tests."""
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        env={**kept, **CPU, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_one_device_per_core_unless_the_user_says_otherwise():
    count = "import jaxrl, jax; print(jax.local_device_count())"
    own = "import jax; jax.config.update('jax_num_cpu_devices', 7); " + count
    cores = os.sched_getaffinity(0)
    one = f"import os; os.sched_setaffinity(0, {{{min(cores)}}}); " + count
    flag = "--xla_force_host_platform_device_count=5"
    started = {
        len(cores): python("-c", count),
        1: python("-c", one),
        3: python("-c", count, JAX_NUM_CPU_DEVICES="3"),
        5: python("-c", count, XLA_FLAGS=flag),
        7: python("-c", own),
    }
    for wanted, process in started.items():
        out, err = process.communicate()
        assert out == f"{wanted}\n", err


def test_devices_on_the_command_line_are_obeyed(tmp_path, cache):
    tiny = "--env probe/both --num-envs 4 --num-steps 8 --total-steps 64 --num-seeds 2 --quiet"
    tiny += f" {NETWORKS} --agent.num-minibatches 1 --eval-episodes 4"

    def script(devices):
        options = [*tiny.split(), "--devices", devices, "--run-dir", tmp_path / str(devices)]
        return python(SCRIPT, *options, **cache)

    four, process = script(4), script(6)
    _, err = four.communicate()
    assert four.returncode == 0, err
    config = json.loads((tmp_path / "4" / "config.json").read_text())
    assert [*config["placement"].values()] == [2, 2, "cpu"]
    assert process.communicate()[1] == (
        "ppo.py: num_envs is 4, which does not divide over 3 devices; 6 would, or fewer devices, "
        "or 3 times as many seeds\n"
    )
    assert process.returncode == 2
    assert not (tmp_path / "6").exists()
