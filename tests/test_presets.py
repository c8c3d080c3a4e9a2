"""Presets: their merging, and that every name in them is an option."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib

import pytest
from shared import script_module

from jaxrl import PPO, SAC, UsageError, cli, hyper
from jaxrl.cli.presets import Preset, lookup
from jaxrl.cli.presets.preset import networks
from jaxrl.data.shipped import shipped
from jaxrl.envs import names
from jaxrl.run.policy_from import differences

ALGORITHMS = ["ppo", "pqn", "dqn", "sac", "td3", "dsac_t", "dppo", "reinflow"]


def presets_of(algorithm):
    return importlib.import_module(f"jaxrl.cli.presets.{algorithm}").PRESETS


def test_later_presets_override_earlier_ones_deeply():
    presets = [
        Preset("*", steps=1, agent={"rate": 0.1, "critic": {"width": 64, "depth": 2}}),
        Preset("a/*", steps=2, agent={"critic": {"width": 128}}),
        Preset("a/b", extra=(1, 2), agent={"rate": 0.2}),
        Preset("c/*", steps=9),
    ]
    assert lookup(presets, "a/b") == {
        "steps": 2,
        "extra": (1, 2),
        "agent": {"rate": 0.2, "critic": {"width": 128, "depth": 2}},
    }
    assert lookup(presets, "a/other")["agent"]["rate"] == 0.1
    assert lookup(presets, "x")["steps"] == 1
    assert lookup(presets[::-1], "a/b")["steps"] == 1  # the order decides, not the pattern
    assert lookup([], "a/b") == lookup(presets[3:], "a/b") == {}


def test_shared_blocks_are_overridden_by_later_blocks_and_by_keywords():
    first, second = {"a": 1, "agent": {"x": 1, "y": 1}}, {"a": 2, "agent": {"y": 2}}
    preset = Preset("*", first, second, agent={"z": 3})
    assert preset.settings == {"a": 2, "agent": {"x": 1, "y": 2, "z": 3}}
    assert (first["agent"], second["agent"]) == ({"x": 1, "y": 1}, {"y": 2})


def test_a_result_may_be_changed_without_changing_the_presets():
    presets = [Preset("*", agent={"x": {"y": [1]}}), Preset("*", other=1)]
    found = lookup(presets, "a")
    found["agent"]["x"]["y"].append(2)
    found["agent"]["new"] = 1
    assert lookup(presets, "a") == {"agent": {"x": {"y": [1]}}, "other": 1}


def test_nested_settings_override_the_defaults_of_an_agent_and_its_parts():
    agent = hyper.override(PPO(), dict(gamma=0.9, **networks(hidden_dims=(8,))))
    assert (agent.gamma, agent.policy.hidden_dims, agent.critic.hidden_dims) == (0.9, (8,), (8,))
    kept = PPO().policy
    assert (agent.policy.head_scale, agent.policy.activation) == (kept.head_scale, kept.activation)
    assert agent.gae_lambda == PPO().gae_lambda and hyper.override(PPO(), {}) == PPO()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gama": 0.9}, "PPO has no hyper-parameter 'gama'; did you mean gamma?"),
        ({"policy": {"hidden": (8,)}}, "AutoPolicy has no .* 'hidden'; did you mean hidden_dims"),
        ({"policy": {"action_dim": 3}}, "AutoPolicy has no hyper-parameter 'action_dim'"),
        ({"gamma": {"value": 0.9}}, "gamma is 0.99, which has no hyper-parameters of its own"),
    ],
)
def test_settings_that_are_no_hyper_parameters_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        hyper.override(PPO(), settings)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tasks_of_gymnasiums_v4_have_the_presets_of_v5(algorithm):
    tasks = [name for name in names("mjx") if name.endswith("-v4")]
    assert len(tasks) == 4
    for task in tasks:
        v5 = task.replace("-v4", "-v5")
        assert lookup(presets_of(algorithm), task) == lookup(presets_of(algorithm), v5)


def unknown(settings, node, prefix=""):
    """The names in nested settings that are no fields of a dataclass."""
    fields = {field.name for field in dataclasses.fields(node) if hyper.is_option(field)}
    found = [f"{prefix}{name}" for name in settings if name not in fields]
    for name, value in settings.items():
        inner = getattr(node, name, None)
        if isinstance(value, dict) and dataclasses.is_dataclass(inner):
            found += unknown(value, inner, f"{prefix}{name}.")
        elif isinstance(value, dict):
            found.append(f"{prefix}{name} (it has no fields)")
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_name_is_an_option(algorithm):
    with script_module(algorithm) as script:
        for preset in presets_of(algorithm):
            assert unknown(preset.settings, script.Config()) == [], preset.pattern


@pytest.mark.parametrize(
    ("cloning", "going_on"),
    [
        ("diffusion_bc", ["dppo", "pa_rl"]),
        ("flow_bc", ["reinflow", "dsrl", "edit"]),
    ],
)
def test_clones_of_shipped_datasets_are_those_that_others_start_from(cloning, going_on):
    tasks = {name.rpartition("/")[0] for name in shipped()}

    def defaults(algorithm):
        with script_module(algorithm) as script:
            presets = presets_of(algorithm)
            return {task: cli.parse(script.Config, presets, ["--env", task]) for task in tasks}

    clones = defaults(cloning)
    for algorithm in going_on:
        for task, config in defaults(algorithm).items():
            policies = clones[task].agent.policy, config.agent.policy
            assert list(differences(*policies, "policy")) == [], (algorithm, task)
            assert config.normalize_obs == clones[task].normalize_obs


def test_wrong_names_would_be_found():
    @dataclasses.dataclass
    class Config:
        steps: int = 1
        agent: Preset = dataclasses.field(default_factory=lambda: Preset("*"))

    settings = {"steps": {"a": 1}, "stps": 1, "agent": {"pattern": "x", "patern": "y"}}
    assert unknown(settings, Config()) == ["stps", "steps (it has no fields)", "agent.patern"]
    critic = {"num_critics": 2, "num_outputs": 2}  # the second is found out by the agent
    assert unknown({"critic": critic}, SAC()) == ["critic.num_outputs"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_pattern_matches_an_environment_and_changes_something(algorithm):
    presets = presets_of(algorithm)
    for index, preset in enumerate(presets):
        matching = [name for name in names() if fnmatch.fnmatchcase(name, preset.pattern)]
        without = presets[:index] + presets[index + 1 :]
        assert any(lookup(presets, name) != lookup(without, name) for name in matching), preset
