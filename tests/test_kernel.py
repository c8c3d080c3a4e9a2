"""A notebook's kernel that is killed while it trains classes of its own, and a new one."""

from __future__ import annotations

import os
import signal
import time

import pytest
from shared import assert_same_bits

from jaxrl.record import checkpoint

pytestmark = pytest.mark.slow

CELL = """
import dataclasses
from typing import ClassVar

import jax, jax.numpy as jnp, mujoco, numpy as np
from jaxrl import SAC, OffPolicy, VectorEnv, hyper, load_policy, run
from jaxrl.analysis import render_run
from jaxrl.hyper import number
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import TanhGaussian
from jaxrl.types import Box, Spec, Step

WIRE = '''<mujoco><worldbody><light pos="0 0 4"/><body pos="0 0 .2">
<joint type="slide" axis="1 0 0"/><geom type="sphere" size=".2"/></body></worldbody></mujoco>'''

@dataclasses.dataclass(frozen=True)
class Bead:
    name: ClassVar[str] = "mine/bead"
    cheap: ClassVar[bool] = True
    spec = Spec(Box(-np.inf, np.inf, (2,)), Box(-2.0, 2.0, (1,)), 20)
    mj_model = property(lambda self: mujoco.MjModel.from_xml_string(WIRE))

    def pose(self, state):
        return {"qpos": np.asarray(state)[:1]}

    def reset(self, key):
        state = jax.random.uniform(key, (2,), minval=-1.0)
        return state, state

    def step(self, key, state, action):
        speed = 0.9 * state[1] + 0.05 * action[0] + 0.01 * jax.random.normal(key)
        state = jnp.stack([state[0] + 0.05 * speed, speed])
        far = jnp.abs(state[0]) > 2.0
        return state, Step(state, -state[0] ** 2, far, jnp.zeros_like(far), {})

@hyper.dataclass
class Cautious(SAC):
    caution: float = number(0.01, 0, help="weight of squared values")

    def critic_loss(self, params, state, batch, key):
        loss, aux = SAC.critic_loss(self, params, state, batch, key)
        q = self.critic(params, batch.obs, batch.action)
        return loss + self.caution * jnp.mean(jnp.square(q)), aux

def train(folder, steps=6400, **options):
    networks = {"policy": TanhGaussian(hidden_dims=(8,)), "critic": Critic(hidden_dims=(8,))}
    agent = Cautious(**networks, caution=0.5)
    sizes = {"buffer_size": 4096, "learning_starts": 64, "batch_size": 8, "cycles": 32}
    trainer = OffPolicy(agent, VectorEnv(Bead(), 2), **sizes)
    every = {"eval_every": 1600, "log_every": 320, "checkpoint_every": 640, "eval_episodes": 2}
    return run(trainer, steps, run_dir=folder, devices=1, **every, **options)
"""
USE = """
for missing in ({}, {"env": Bead()}):
    try:
        load_policy(FOLDER, **missing)
        raise AssertionError("it knows classes that nobody gave it")
    except ValueError as error:
        print(error)
mine = {"classes": [Cautious], "env": Bead()}
policy = load_policy(FOLDER, **mine)
assert type(policy.agent) is Cautious and policy.agent.caution == 0.5
for a, b in zip(jax.tree.leaves(policy.state), jax.tree.leaves(result.state.agent), strict=True):
    np.testing.assert_array_equal(a, b[0])
drawn = render_run(FOLDER, size=(64, 48), **mine)
"""


@pytest.fixture
def kernel():
    """A function that starts a kernel in which the cell has run."""
    jupyter = pytest.importorskip("jupyter_client")
    started = []

    def start():
        manager = jupyter.KernelManager(kernel_name="python3")
        manager.start_kernel(env=dict(os.environ))
        client = manager.client()
        started.append((manager, client))
        client.start_channels()
        client.wait_for_ready(timeout=120)
        executed(client, CELL)
        return manager, client

    yield start
    for manager, client in started:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def executed(client, code):
    """What a cell printed; an error in it is one here."""
    said: list[str] = []

    def hear(message):
        content = message["content"]
        said.extend([content.get("text", ""), *content.get("traceback", [])])

    reply = client.execute_interactive(code, timeout=300, output_hook=hear)
    assert reply["content"]["status"] == "ok", "\n".join(said)
    return "".join(said)


def test_a_killed_kernel_resumes_in_a_new_one_as_if_nothing_had_been(kernel, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    _, client = kernel()
    executed(client, f"result = train({str(whole)!r})")

    manager, client = kernel()
    client.execute(f"train({str(folder)!r})")
    while len(checkpoint.available(folder / "checkpoints")) < 2:
        assert manager.is_alive()
        time.sleep(0.002)
    os.kill(manager.provisioner.process.pid, signal.SIGKILL)
    while manager.is_alive():
        time.sleep(0.01)
    assert not (folder / "summary.json").exists()

    _, client = kernel()
    assert "resumed at step" in executed(client, f"result = train({str(folder)!r}, resume=True)")
    found, wanted = (checkpoint.restore(each / "checkpoints", None) for each in (folder, whole))
    assert found.iteration == wanted.iteration
    assert_same_bits(found.state, wanted.state)
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()

    said = executed(client, f"FOLDER = {str(folder)!r}\n{USE}")
    assert "unknown environment 'mine/bead'; pass the environment of the run" in said
    assert "unknown agent class 'Cautious'; pass your own classes, as classes=[Cautious]" in said
    assert {"episode.gif", "episode.npz"} <= {path.name for path in folder.iterdir()}
