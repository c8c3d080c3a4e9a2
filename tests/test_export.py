"""Policies as files: each plays as the policy does, knows what it is, or says why it cannot be."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import sys
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import onnxruntime
import pytest
from recurrent import Recurrent

from jaxrl import (
    BC,
    DQN,
    IDQL,
    PPO,
    PQN,
    SAC,
    TD3,
    TD3BC,
    Chunks,
    DiscreteCQL,
    NormalizeObs,
    RunError,
    ScaleReward,
    UsageError,
    _startup,
    hyper,
    make,
)
from jaxrl.agents import BestOf
from jaxrl.analysis.__main__ import main
from jaxrl.export import (
    JaxPolicy,
    NumpyPolicy,
    check,
    export_policy,
    export_run,
    files,
    numpy_policy,
)
from jaxrl.export.acting import Acting
from jaxrl.export.formats import write_npz, write_onnx
from jaxrl.export.metadata import metadata, observation_names
from jaxrl.export.trace import trace
from jaxrl.nn.critics import Critic, QNetwork
from jaxrl.nn.encoders import CNN, Flatten
from jaxrl.nn.flow import Flow
from jaxrl.nn.networks import ResidualMLP
from jaxrl.nn.policies import AutoPolicy, Categorical, Deterministic, Gaussian, TanhGaussian
from jaxrl.record import Policy
from jaxrl.types import Box, Discrete, Spec

# One element with one bound, one with none: they are not scaled.
ACTIONS = Box([-2.0, -np.inf, 0.0], [3.0, np.inf, np.inf], (3,))
VECTOR = Spec(Box(-np.inf, np.inf, (5,)), ACTIONS)
BOUNDED = Spec(Box(-np.inf, np.inf, (5,)), Box(-2.0, 3.0, (3,)))
CHOICE = Spec(Box(-1.0, 2.0, (5,)), Discrete(4))
PIXELS = Spec(Box(0, 255, (7, 6, 2), np.uint8), Discrete(4))
KEY = jax.random.key(0)


def random_policy(agent: Any, spec: Spec, mode: str = "greedy") -> Policy:
    """A policy whose parameters and statistics are random; nothing is compiled for them."""
    agent = agent.bind(spec)
    rng = np.random.default_rng(1)

    def draw(like):
        if jnp.issubdtype(like.dtype, jnp.floating):
            wide = np.sqrt(like.shape[0]) if len(like.shape) > 1 else 2.0
            return rng.normal(size=like.shape).astype(np.float32) / np.float32(wide)
        return np.ones(like.shape, like.dtype)

    state = jax.tree.map(draw, jax.eval_shape(agent.init, KEY))
    if hasattr(state, "statistics"):
        some = jax.tree.map(lambda x: np.abs(x) * 40 + 1, state.statistics.m2)
        state = state._replace(statistics=state.statistics._replace(size=np.float32(64), m2=some))
    return Policy(agent, state, spec, mode)


def wide(family, **options):
    return family(hidden_dims=(8, 6), **options)


@hyper.dataclass
class Residual(Deterministic):
    """A policy whose network has residual blocks."""

    @property
    def network_class(self):
        return ResidualMLP


MISH = wide(Deterministic, activation="mish", post_norm=True)
CNN_OF_TWO = CNN(filters=(3, 4), kernels=(3, 2), strides=(2, 1))
NETWORKS = {
    "gaussian-tanh": (NormalizeObs(PPO(policy=wide(AutoPolicy, activation="tanh"))), VECTOR),
    "state-std-relu": (PPO(policy=wide(Gaussian, std="softplus", activation="relu")), VECTOR),
    "squashed-mean": (PPO(policy=wide(Gaussian, squash_mean=True, layer_norm=True)), BOUNDED),
    "tanh-gaussian-gelu": (SAC(policy=wide(TanhGaussian, activation="gelu")), BOUNDED),
    "deterministic-elu": (TD3(policy=wide(Deterministic, activation="elu")), BOUNDED),
    "norms-behind-mish": (NormalizeObs(ScaleReward(TD3BC(policy=MISH))), BOUNDED),
    "categorical-swish": (BC(policy=wide(Categorical, activation="swish", dropout=0.1)), CHOICE),
    "moving-average": (BC(policy=wide(AutoPolicy), ema_decay=0.9), BOUNDED),
    "q": (DQN(q_network=wide(QNetwork)), CHOICE),
    "dueling": (DiscreteCQL(q_network=wide(QNetwork, dueling=True)), CHOICE),
    "pixels": (NormalizeObs(PQN(q_network=wide(QNetwork, encoder=CNN_OF_TWO))), PIXELS),
    "pixels-of-a-policy": (PPO(policy=wide(AutoPolicy, encoder=CNN_OF_TWO)), PIXELS),
    "residual": (TD3(policy=Residual(hidden_dims=(6, 6), activation="swish")), BOUNDED),
    "first-of-a-chunk": (Chunks(BC(policy=wide(AutoPolicy)), horizon=2, execute=1), BOUNDED),
    "noise-for-an-episode": (TD3(policy=wide(Deterministic), exploration_noise_max=0.4), BOUNDED),
}  # fmt: skip


def assert_equal_actions(found, wanted, spec):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    if isinstance(spec.action, Discrete):
        assert np.mean(found != wanted) <= 0.001
        assert len(np.unique(wanted)) > 1
    else:
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
        assert np.sum(np.std(wanted, axis=0) > 0.05) >= 2


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_play_in_numpy_and_onnx_as_they_do_in_jax(name, tmp_path):
    agent, spec = NETWORKS[name]
    policy = random_policy(agent, spec)
    network = trace(Acting(policy, "greedy"))
    facts = metadata(Acting(policy, "greedy"), None, network.inputs)
    obs = check.observations(policy)
    wanted = np.asarray(policy(obs))
    for play in (
        write_npz(network, facts, tmp_path / "policy.npz"),
        write_onnx(network, facts, tmp_path / "policy.onnx"),
    ):
        assert_equal_actions(play(obs), wanted, spec)
        for part in (obs[3], obs[:1], obs[:0], obs[:6].reshape(2, 3, *obs.shape[1:])):
            assert np.asarray(play(part)).shape == (
                *part.shape[: part.ndim - len(obs.shape) + 1],
                *spec.action.shape,
            )
        np.testing.assert_allclose(play(obs[3]), wanted[3], rtol=2e-5, atol=2e-5)
    names = {operation.name for operation in network.operations}
    assert "einsum" not in names and "matmul" not in names, "a dense layer is one operation"
    inner = agent
    while hasattr(inner, "agent"):
        inner = inner.agent
    part = getattr(inner, "policy", None) or inner.q_network
    norms = part.layer_norm or part.post_norm or isinstance(part, Residual)
    assert part.activation in names and ("layer_norm" in names) == norms
    assert ("conv" in names) == (spec is PIXELS)


# --- whole exports ------------------------------------------------------------------------------


def load_copied(path):
    """The reader beside the files, as a module that knows nothing of jaxrl."""
    spec = importlib.util.spec_from_file_location(path.stem + "_copied", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_export_has_all_formats_and_readers_that_need_no_jaxrl(tmp_path):
    policy = random_policy(NormalizeObs(SAC(policy=wide(TanhGaussian))), BOUNDED)
    done = export_policy(policy, tmp_path / "out")
    assert [each.path.name for each in done.files] == [
        "policy.npz", "policy.jaxexport", "policy.onnx",
    ]  # fmt: skip
    names = {"numpy_policy.py", "jax_policy.py"} | {each.path.name for each in done.files}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names and not done.notes
    assert all(each.difference < 2e-5 and each.microseconds > 0 for each in done.files)
    assert "policy.onnx: largest difference" in str(done) and "1,000 observations" in str(done)

    allowed = {"numpy_policy": {"json", "typing", "numpy"}}
    allowed["jax_policy"] = {"json", "math", "zipfile", "typing", "jax"}
    for name, packages in allowed.items():
        text = (tmp_path / "out" / f"{name}.py").read_text()
        tree = ast.parse(text, feature_version=(3, 8))
        imported = {
            (getattr(node, "module", None) or node.names[0].name).partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert imported <= packages | {"__future__"}

    obs, leading = check.observations(policy)[:6].reshape(2, 3, 5), (2, 3, 3)
    wanted = policy(obs)
    numpy_reader = load_copied(tmp_path / "out" / "numpy_policy.py").NumpyPolicy
    jax_reader = load_copied(tmp_path / "out" / "jax_policy.py").JaxPolicy
    made = [numpy_reader(tmp_path / "out" / "policy.npz")]
    made += [jax_reader(tmp_path / "out" / "policy.jaxexport")]
    for each in made:
        assert each(obs).shape == leading
        np.testing.assert_allclose(each(obs), wanted, rtol=2e-5, atol=2e-5)
        with pytest.raises(ValueError, match=r"obs has shape \(2, 4\); it must end with \(5,\)"):
            each(np.zeros((2, 4)))
        assert each.metadata["action"]["low"] == -2.0 and each.metadata["action"]["high"] == 3.0
        assert each.metadata["algorithm"] == "SAC"

    sampling = jax_reader(tmp_path / "out" / "policy.jaxexport", mode="sample")
    live = Policy(policy.agent, policy.state, policy.spec, "sample")
    np.testing.assert_allclose(sampling(obs[0], KEY), live(obs[0], KEY), rtol=2e-5, atol=2e-5)
    assert np.all(np.abs(sampling(obs[0], KEY) - sampling(obs[0], jax.random.key(1))) > 1e-6)
    with pytest.raises(ValueError, match="a policy that samples needs a key"):
        sampling(obs[0])
    with zipfile.ZipFile(tmp_path / "out" / "policy.jaxexport") as file:
        for mode in ("greedy", "sample"):
            program = jax.export.deserialize(bytearray(file.read(mode)))
            assert program.platforms == ("cpu", "cuda", "tpu")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "policy.onnx")
    stored = json.loads(session.get_modelmeta().custom_metadata_map["jaxrl"])
    assert stored == made[0].metadata

    with pytest.raises(UsageError, match="out .* has a policy.npz already; remove it"):
        export_policy(policy, tmp_path / "out", formats=["npz"])


def test_a_policy_sees_the_entries_that_it_reads(tmp_path):
    seen = Box(-1.0, 1.0, (2,))
    spec = Spec({"state": seen, "privileged_state": seen, "goal": seen}, BOUNDED.action)
    encoder = Flatten(obs_keys=("state", "goal"))
    policy = random_policy(NormalizeObs(PPO(policy=wide(AutoPolicy, encoder=encoder))), spec)
    done = export_policy(policy, tmp_path)
    obs = jax.tree.map(lambda x: x[:4], check.observations(policy))
    less = {"state": obs["state"], "goal": obs["goal"]}
    for play in (NumpyPolicy(tmp_path / "policy.npz"), JaxPolicy(tmp_path / "policy.jaxexport")):
        np.testing.assert_allclose(play(less), policy(obs), rtol=2e-5, atol=2e-5)
        boxes = play.metadata["observation"]
        assert [box["entry"] for box in boxes] == ["state", "goal"]
        with pytest.raises(KeyError, match="goal"):
            play({"state": obs["state"]})
    session = onnxruntime.InferenceSession(done.files[-1].path)
    assert [each.name for each in session.get_inputs()] == ["obs.state", "obs.goal"]


def test_memory_and_noise_go_into_the_jax_export_alone(tmp_path):
    """A queue of chunks made by a chain that starts from noise; histories of observations."""
    flow = Flow(hidden_dims=(8,), sample_steps=2)
    policy = random_policy(Chunks(BC(policy=flow), 3, execute=2, obs_horizon=2), BOUNDED)
    done = export_policy(policy, tmp_path)
    assert [each.path.name for each in done.files] == ["policy.jaxexport"]
    assert done.files[0].difference < 2e-5
    assert len(done.notes) == 2 and all("\n" not in note for note in done.notes)
    assert done.notes[0].startswith("policy.npz cannot hold this policy, which ")
    assert done.notes[0].endswith("; policy.jaxexport can, which --formats jax writes")

    loaded, obs = JaxPolicy(tmp_path / "policy.jaxexport"), check.observations(policy)
    with pytest.raises(ValueError, match="the policy has a memory"):
        loaded(obs)
    carries = [each.start(2) for each in (loaded, policy)]
    for step in range(5):
        rows, key = obs[2 * step : 2 * step + 2], jax.random.key(step)
        found, carries[0] = loaded.step(carries[0], rows, key)
        wanted, carries[1] = policy.step(carries[1], rows, key)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    with pytest.raises(UsageError, match="policy.onnx cannot hold this policy"):
        export_policy(policy, tmp_path / "other", formats=["onnx"])
    assert not list((tmp_path / "other").iterdir())


def test_a_recurrent_policy_is_exported_with_its_memory(tmp_path):
    policy = random_policy(Recurrent(width=6), BOUNDED)
    done = export_policy(policy, tmp_path)
    assert [each.path.name for each in done.files] == ["policy.jaxexport"]
    assert "which has a memory" in done.notes[0]


@jax.custom_jvp
def sine_and_cosine(x):
    return jnp.sin(x), jnp.cos(x)


@sine_and_cosine.defjvp
def _(primals, tangents):
    (x,), (t,) = primals, tangents
    return sine_and_cosine(x), (jnp.cos(x) * t, -jnp.sin(x) * t)


@hyper.dataclass
class Cosine(Deterministic):
    """A policy of a function that has two outputs, and a derivative of its own."""

    def action(self, params, obs):
        return sine_and_cosine(super().action(params, obs))[1]


def test_a_function_of_one_array_may_have_two_outputs(tmp_path):
    policy = random_policy(TD3(policy=wide(Cosine)), BOUNDED)
    done = export_policy(policy, tmp_path)
    assert len(done.files) == 3 and not done.notes


def test_a_state_of_numpy_arrays_is_exported(tmp_path):
    """As ``jax.device_get`` returns it; ``vmap`` over an ensemble refuses such arrays."""
    chain, critic = wide(Flow, sample_steps=1), wide(Critic)
    policy = random_policy(IDQL(policy=chain, critic=critic, improver=BestOf(2)), BOUNDED)
    assert isinstance(jax.tree.leaves(policy.state)[0], np.ndarray)
    done = export_policy(policy, tmp_path, formats=["jax"])
    assert done.files[0].difference < 1e-4


def test_a_file_that_plays_otherwise_is_not_written(tmp_path, monkeypatch):
    policy = random_policy(PPO(policy=wide(AutoPolicy)), BOUNDED)
    monkeypatch.setitem(numpy_policy.OPERATIONS, "dense", lambda x, kernel, bias: x @ kernel)
    with pytest.raises(RunError, match=r"policy.npz differs from the policy by .* not written"):
        export_policy(policy, tmp_path, formats=["npz"])
    assert not list(tmp_path.iterdir())


def test_a_policy_that_diverged_is_refused(tmp_path):
    policy = random_policy(PPO(policy=wide(AutoPolicy)), BOUNDED)
    state = jax.tree.map(lambda x: x * np.nan, policy.state)
    with pytest.raises(UsageError, match="the policy's actions are not finite"):
        export_policy(Policy(policy.agent, state, BOUNDED, "greedy"), tmp_path)


# --- metadata -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["Hopper", "Ant", "InvertedDoublePendulum", "Reacher"])
def test_elements_of_observations_have_the_names_of_what_they_are(task):
    """Values of the named joints, in a state of MuJoCo's own, are those observed."""
    env = make(f"mjx/{task}-v5")
    model = env.task.model
    data = mujoco.MjData(model)
    rng = np.random.default_rng(0)
    data.qpos[:], data.qvel[:] = rng.normal(size=model.nq), 0.1 * rng.normal(size=model.nv)
    mujoco.mj_forward(model, data)
    seen = env.task.observe(data)
    names = observation_names(env)
    assert len(names) == env.spec.observation.shape[0]
    known = 0
    for name, value in zip(names, seen, strict=True):
        words = (name or "").partition("[")[0].split()
        if words[-2:-1] not in (["qpos"], ["qvel"]):
            continue
        joint = getattr(data.joint(words[-1]), words[-2]).reshape(-1)
        index = int(name.rpartition("[")[2][:-1]) if "[" in name else 0
        change = {"sin": np.sin, "cos": np.cos}.get(words[0], lambda x: x)
        np.testing.assert_allclose(value, change(joint[index]), rtol=1e-6)
        known += 1
    assert known >= {"Hopper": 11, "Ant": 27, "InvertedDoublePendulum": 8, "Reacher": 8}[task]


def test_metadata_say_what_a_robot_needs_to_know():
    env = make("mjx/Hopper-v5")
    policy = random_policy(PPO(policy=wide(AutoPolicy)), env.spec)
    facts = metadata(Acting(policy, "greedy"), env, ["obs"])
    assert facts["control_interval_seconds"] == pytest.approx(0.008)
    assert facts["environment"] == "mjx/Hopper-v5"
    action = facts["action"]
    assert action["elements"] == ["thigh_joint", "leg_joint", "foot_joint"]
    assert (action["low"], action["high"], action["shape"]) == (-1.0, 1.0, [3])
    (box,) = facts["observation"]
    assert (box["low"], box["high"], box["shape"], box["dtype"]) == (None, None, [11], "float32")
    assert box["elements"][0] == "qpos rootz" and box["elements"][5] == "qvel rootx"

    @dataclasses.dataclass
    class Own:
        name: str = "own/robot"
        dt: float = 0.02
        observation_names: tuple = ("a", "b", "c", "d", "e")
        action_names: tuple = ("left", "right")

    policy = random_policy(PPO(policy=wide(AutoPolicy)), VECTOR)
    facts = metadata(Acting(policy, "greedy"), Own(dt=np.float32(0.02)), ["obs"])
    assert facts["control_interval_seconds"] == pytest.approx(0.02)
    assert facts["observation"][0]["elements"] == ["a", "b", "c", "d", "e"]
    assert facts["action"]["elements"] is None, "two names, and three elements"
    assert facts["action"]["low"] == [-2.0, None, 0.0] and facts["action"]["high"][0] == 3.0
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A folder whose policies for the seeds 3 and 5 differ; ``tests/test_names.py`` has a run."""
    env = make("gymnax/Pendulum-v1")

    def load(folder, seed, mode, *others, **more):
        assert folder == str(tmp_path / "run")
        policy = random_policy(PPO(policy=wide(AutoPolicy)), env.spec)
        state = jax.tree.map(lambda x: x * (seed or 3), policy.state)
        return Policy(policy.agent, state, env.spec, mode), env

    monkeypatch.setattr("jaxrl.export.files.load_policy_and_env", load)
    monkeypatch.setattr(_startup, "prepare", lambda: None)
    return tmp_path / "run"


def test_the_command_writes_the_policy_of_a_run(run_dir, tmp_path, capsys):
    words = ["export", str(run_dir), "--formats", "npz", "onnx"]
    assert main(words) == 0
    assert main([*words, "--seed", "5"]) == 0, "an earlier export is replaced"
    assert "policy.npz: largest difference" in capsys.readouterr().out
    assert {path.name for path in (run_dir / "export").iterdir()} == {
        "policy.npz", "policy.onnx", "numpy_policy.py",
    }  # fmt: skip
    obs = np.random.default_rng(0).normal(size=(7, 3))
    found = NumpyPolicy(run_dir / "export" / "policy.npz")
    policies = [files.load_policy_and_env(str(run_dir), seed, "greedy")[0] for seed in (3, 5)]
    np.testing.assert_allclose(found(obs), policies[1](obs), atol=2e-5)
    assert np.max(np.abs(found(obs) - policies[0](obs))) > 1e-3
    assert found.metadata["environment"] == "gymnax/Pendulum-v1"

    (tmp_path / "policy.npz").write_text("mine")
    for options, message in [
        (["--out", str(tmp_path)], "has a policy.npz already; remove it, or give another --out"),
        (["--out", str(tmp_path / "policy.npz")], "is not a folder; give another --out"),
        (["--formats", "onxx"], "formats has 'onxx'; did you mean onnx?"),
    ]:
        assert main(["export", str(run_dir), *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert (tmp_path / "policy.npz").read_text() == "mine"


def test_without_onnx_the_other_formats_are_written(run_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"policy.onnx needs onnxruntime; pip install 'jaxrl\["):
        export_run(str(run_dir), out=tmp_path / "out", formats=["npz", "onnx"])
    assert not list((tmp_path / "out").iterdir())
    (run_dir / "export").mkdir(parents=True)
    for name in ("policy.onnx", "mine.txt"):
        (run_dir / "export" / name).touch()
    written = export_run(str(run_dir))
    assert [each.path.name for each in written.files] == ["policy.npz", "policy.jaxexport"]
    left = {path.name for path in (run_dir / "export").iterdir()}
    assert "policy.onnx" not in left, "it was of another policy"
    assert len(left) == 5 and "mine.txt" in left
    assert written.notes == ["policy.onnx needs onnxruntime; pip install 'jaxrl[export]'"]
