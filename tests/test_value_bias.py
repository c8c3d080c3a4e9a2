"""The study of the critics' bias: its returns against known sums, and what its agents share."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import run_script, script_module

from jaxrl import DSACT, SAC, UsageError, make
from jaxrl.analysis.statistics import final_return
from jaxrl.config import to_config
from jaxrl.hyper import override

GAMMA = 0.9


@pytest.fixture(scope="module")
def script():
    with script_module("value_bias") as module:
        yield module


def test_all_algorithms_share_every_setting_that_they_have_in_common(script):
    config = script.Config(policy_delay=2, gamma=0.95, tau=0.01, activation="gelu")
    config = dataclasses.replace(config, hidden_dims=(8,), initial_alpha=0.3, learning_rate=1e-2)
    agents = {name: flat(to_config(script.agent_of(config, name))) for name in script.AGENTS}
    assert agents["SAC"]["policy_delay"] == 2 and agents["DSAC"]["initial_alpha"] == 0.3
    assert agents["DSAC"]["critic.hidden_dims"] == (8,)
    own = {"critic.num_critics"}  # DSAC has one
    for other in ("DSAC", "DSAC-T"):
        common = agents["SAC"].keys() & agents[other].keys()
        assert {name for name in common if agents[other][name] != agents["SAC"][name]} <= own
        networks = {"critic.activation", "policy.hidden_dims", "policy.log_std_range"}
        rates = {f"{what}_learning_rate" for what in ("actor", "critic", "alpha")}
        assert {"tau", "gamma", "critic.initializer"} | networks | rates < common


def flat(config, path=""):
    """The values of a recorded agent by their dotted names, without classes."""
    found = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{path}{name}.") if inner else {f"{path}{name}": value}
    return {name: value for name, value in found.items() if not name.endswith("class")}


@pytest.mark.parametrize(("kind", "scale"), [(SAC, 1.0), (SAC, 10.0), (DSACT, 1.0)])
def test_soft_returns_are_sums_of_rewards_and_of_the_entropy_after_each(script, kind, scale):
    """Five steps of reward 1 and an end; the policy is the same everywhere, and so its entropy."""
    env, alpha, episodes, steps = make("probe/termination", continuous=True), 0.5, 4000, 8
    settings = {"gamma": GAMMA, "initial_alpha": alpha, "critic": {"hidden_dims": (4,)}}
    agent = override(kind(), settings).bind(env.spec)
    state = agent.init(jax.random.key(0))
    same = jax.tree.map(jnp.zeros_like, state.actor.params)
    state = state._replace(actor=state.actor._replace(params=same))
    keys = jax.random.split(jax.random.key(1), episodes)
    value, returns, going = jax.jit(
        lambda: script.soft_returns(agent, state, env, keys, jnp.float32(scale), steps)
    )()
    np.testing.assert_array_equal(going, np.arange(steps)[:, None] < np.full(episodes, 5))

    obs = jnp.arange(5, 0, -1)[:, None] / 5
    rewards = scale * np.asarray(env.value(obs, GAMMA))
    dist = agent.policy.dist(same, jnp.zeros((20_000, 1)))
    entropy = dist.entropy(jax.random.key(2)).mean()
    # The value of an action does not hold its own bonus: they begin one step later.
    bonuses = alpha * float(entropy) * (np.asarray(env.value(obs, GAMMA)) - 1.0)
    assert np.all(np.abs(bonuses[:3]) > 0.1)
    np.testing.assert_allclose(returns[:5].mean(1), rewards + bonuses, atol=0.05)
    assert np.ptp(np.asarray(returns[4])) == 0.0  # the last step: its reward alone
    assert value.shape == (steps, episodes) and np.isfinite(value).all()


def test_every_row_has_the_biases_of_its_own_members(script, monkeypatch, tmp_path):
    """Without training: member ``i`` has the state ``i``, and a bias of ``i`` times its scale."""
    config = script.Config(scales=(0.5, 2.0, 4.0), num_seeds=2)
    members = [SimpleNamespace(sweep={"reward_scale": s}) for s in config.scales for _ in range(2)]
    entries = [{"sweep": {"reward_scale": s}, "final_return": {"of": s}} for s in config.scales]
    state, summary = SimpleNamespace(agent=jnp.arange(6.0)), {"configurations": entries}
    result = SimpleNamespace(members=members, state=state, summary=summary)

    def biases(config, agent, state, env, scale):
        return scale * jnp.stack([state, 10.0 + state])

    monkeypatch.setattr(script, "run", lambda *_, **__: result)
    monkeypatch.setattr(script, "biases", biases)
    rows = script.measure(config, "SAC", tmp_path)
    assert [(x["reward_scale"], x["final_return"]["of"]) for x in rows] == [
        (s, s) for s in config.scales
    ]
    assert [x["bias"]["per_seed"] for x in rows] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    sizes = [x["mean_magnitude_of_returns"] for x in rows]
    assert sizes == [[10.0, 11.0], [12.0, 13.0], [14.0, 15.0]]


def rows_of(script, returns):
    """A row of each algorithm and scale, with these final returns and biases."""
    found = final_return(returns)
    return [
        {"algorithm": name, "reward_scale": scale, "final_return": found, "bias": found}
        for name in script.AGENTS
        for scale in script.Config().scales
    ]


def test_the_figure_and_the_table_show_the_iqm_whose_interval_they_show(script, tmp_path):
    returns = [490.0, *[500.0] * 14, 60.0]  # the mean is below the interval of the IQM
    rows = rows_of(script, returns)
    assert rows[0]["final_return"]["mean"] < rows[0]["final_return"]["ci95"][0]
    script.draw(script.Config(num_seeds=16), rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    assert script.shown(rows[0]).split() == ["SAC", "x0.1", "500.0", "+500.00"]


@pytest.mark.parametrize("lost", [slice(0, 1), slice(0, 3), slice(None)])
def test_rows_with_a_seed_that_is_not_finite_are_left_out(script, tmp_path, lost):
    rows = rows_of(script, [1.0, 2.0])
    for row in rows[lost]:
        row["bias"] = row["final_return"] = final_return([1.0, np.nan])
    script.draw(script.Config(num_seeds=2), rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()
    with mock.patch("matplotlib.axes.Axes.errorbar") as errorbar:
        script.draw(script.Config(num_seeds=2), rows, tmp_path / "again.png")
    drawn = [y for call in errorbar.call_args_list for y in call.args[1]]
    assert np.isfinite(drawn).all()
    assert len(drawn) == 2 * sum(row["bias"]["iqm"] is not None for row in rows)
    assert script.shown(rows[0]) == "SAC     x0.1   not all seeds are finite"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--gamma 1", "gamma is 1; it must be more than 0 and less than 1, as 0.99"),
        ("--gamma 0", "gamma is 0; it must be more than 0 and less than 1, as 0.99"),
        ("--gamma nan", "gamma is nan; it must be more than 0"),
        ("--scales 1 0", "scales is 0; it must be more than 0"),
        ("--scales 1 -2", "scales is -2; it must be more than 0"),
        ("--scales", r"scales is \(\); give at least one, as 0.1 1 10"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(
    script, words, line, tmp_path, monkeypatch
):
    monkeypatch.setattr(script, "measure", lambda *_: pytest.fail("training began"))
    with pytest.raises(UsageError, match=line) as error:
        run_script(script, [*words.split(), "--out", str(tmp_path / "bias")])
    assert "\n" not in str(error.value) and not (tmp_path / "bias").exists()
