"""Every agent that learns from batches: killed in either phase it goes on, bit for bit."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits, killed, rows_of_pendulum

import jaxrl
from jaxrl import NormalizeObs, Offline, OffPolicy, Phase, VectorEnv, hyper, make, run
from jaxrl.agents.chunks import Chunks
from jaxrl.data import Mixed, UniformReplay
from jaxrl.data.windows import Windows
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.edm import EDM
from jaxrl.nn.flow import Flow

pytestmark = pytest.mark.usefixtures("shared_programs")

SMALL = {"hidden_dims": (8,)}
FLOW, DIFFUSION = Flow(**SMALL, sample_steps=2), Diffusion(**SMALL, num_steps=2)
# Each with a hyper-parameter to sweep.
LEARNERS = {
    "SAC": (jaxrl.SAC(), "tau"),
    "TD3": (jaxrl.TD3(), "tau"),
    "DSACT": (jaxrl.DSACT(), "tau"),
    "BC": (jaxrl.BC(FLOW, ema_decay=0.9), "ema_decay"),
    "TD3BC": (jaxrl.TD3BC(), "bc_alpha"),
    "IQL": (jaxrl.IQL(), "expectile"),
    "ReBRAC": (jaxrl.ReBRAC(), "actor_bc"),
    "CQL": (jaxrl.CQL(num_actions=2), "cql_alpha"),
    "CalQL": (jaxrl.CalQL(num_actions=2), "cql_alpha"),
    "EDAC": (hyper.override(jaxrl.EDAC(), {"critic": {"num_critics": 3}}), "diversity_coef"),
    "FQL": (jaxrl.FQL(policy=FLOW), "alpha"),
    "DiffusionQL": (jaxrl.DiffusionQL(policy=DIFFUSION), "eta"),
    "IDQL": (jaxrl.IDQL(policy=DIFFUSION), "expectile"),
    "IFQL": (jaxrl.IFQL(policy=FLOW), "expectile"),
    "PARL": (jaxrl.PARL(policy=EDM(**SMALL, sample_steps=2)), "improver.step_size"),
    "EditPolicy": (jaxrl.EditPolicy(policy=FLOW), "edit_scale"),
    "DSRL": (jaxrl.DSRL(policy=FLOW), "noise_scale"),
}
QUICK = ("IQL",)
UPDATES = 4


def dataset():
    return rows_of_pendulum().with_next_action().with_return_to_go(0.99)


def phases(name):
    """Four iterations offline, then four online from both kinds of rows."""
    agent = LEARNERS[name][0]
    names = {field for field in hyper.names(agent) if field.endswith("hidden_dims")}
    parts = {field.split(".")[0] for field in names if field.count(".") == 1}
    agent = NormalizeObs(hyper.override(agent, dict.fromkeys(parts, SMALL)), frozen=True)
    env = VectorEnv(make("gymnax/Pendulum-v1", max_steps=6), 2)
    offline = Offline(agent, env, batch_size=8, num_updates=UPDATES)
    sizes = {"batch_size": 8, "learning_starts": 8, "buffer_size": 64, "num_updates": UPDATES}
    sampler = Mixed(0.5, UniformReplay(2))
    online = OffPolicy(agent, env, cycles=2, sampler=sampler, **sizes)
    steps = 8 + 4 * online.steps_per_iteration
    return [Phase(offline, 4 * UPDATES, "offline"), Phase(online, steps, "online")]


def train(name, values, folder=None, **options):
    small = {"eval_episodes": 2, "devices": 1, "quiet": True, "seeds": 2, "run_dir": folder}
    swept = {LEARNERS[name][1]: values}
    return run(phases(name), data=dataset(), sweep=swept, **small | options)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in LEARNERS]
)
def test_killed_in_either_phase_and_resumed_it_is_the_uninterrupted_run(name, tmp_path):
    """Chunks are cut elsewhere too; members of a sweep differ, and seeds do."""
    values = [0.6, 0.9]
    whole = train(name, values, tmp_path / "whole")
    again = partial(train, name, values, tmp_path / "run")
    with killed("advance", 3):  # offline
        again()
    with killed("begin", 1):  # between the phases
        again(resume=True)
    with killed("advance", 3):  # online: one iteration offline is made again, then two
        again(resume=True)
    resumed = again(resume=True)
    assert_same_bits(resumed.state, whole.state)
    rows = [(tmp_path / each / "metrics.jsonl").read_bytes() for each in ("run", "whole")]
    assert rows[0] == rows[1]
    assert_same_bits(train(name, values, log_every=4 * UPDATES).state, whole.state)
    params = [np.asarray(x) for x in jax.tree.leaves(whole.state.agent) if x.ndim > 2]
    for i, j in ((0, 1), (0, 2)):  # seeds; values
        assert any(np.abs(x[i] - x[j]).max() > 0 for x in params)


def test_a_clone_of_chunks_goes_on_with_its_average(tmp_path):
    agent = Chunks(jaxrl.BC(FLOW, ema_decay=0.9), horizon=4, execute=2, obs_horizon=2)
    env = VectorEnv(make("gymnax/Pendulum-v1", max_steps=6), 2)
    trainer = Offline(agent, env, sampler=Windows(4, 2), batch_size=8, num_updates=UPDATES)
    small = {"eval_episodes": 2, "devices": 1, "quiet": True, "seeds": 2, "data": dataset()}
    whole = run(trainer, 16, run_dir=tmp_path / "whole", **small)
    with killed("advance", 3):
        run(trainer, 16, run_dir=tmp_path / "run", **small)
    resumed = run(trainer, 16, run_dir=tmp_path / "run", resume=True, **small)
    assert_same_bits(resumed.state, whole.state)
    average = jax.tree.leaves(whole.state.agent.ema)
    assert any(jnp.abs(x).max() > 0 for x in average)
