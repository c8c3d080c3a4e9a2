"""SAC: updates against numpy, the temperature, critic subsets, policy_delay, and options."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from pathlib import Path

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl import DSAC, DSACT, SAC, TD3, UsageError, make
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.data.replay import Replay, ReplayBuffer
from jaxrl.data.samplers import UniformReplay
from jaxrl.nn.policies import Deterministic, Gaussian
from jaxrl.training.gradient_steps import gradient_steps
from jaxrl.types import Batch, Box, Spec, Transition

KEY = jax.random.key(0)
RATES = {"critic_learning_rate": 0.02, "actor_learning_rate": 0.03, "alpha_learning_rate": 0.05}


# --- against numpy ------------------------------------------------------------------------------


def numpy_step(learner, batch, noise, update_actor):
    """Critics, then actor and temperature, then target critics."""
    agent, params = learner.agent, learner.params

    def q(critic, obs, action):
        return ref.critics(critic, obs, action, agent)[..., 0]

    alpha = np.exp(params["log_alpha"])
    next_action, next_log_prob = ref.policy(params["actor"], batch.next_obs, noise["next"], agent)
    next_q = q(learner.targets["critic"], batch.next_obs, next_action)
    next_q = next_q[noise["critics"]].min(0)
    bonus = alpha * next_log_prob if agent.backup_entropy else 0.0
    y = batch.reward + batch.discount * (next_q - bonus)

    def critic_loss(critic):
        return sum(((one - y) ** 2).mean() for one in q(critic, batch.obs, batch.action))

    slopes = ref.gradient(critic_loss, params["critic"])
    learner.step("critic", slopes, agent.critic_learning_rate)

    def actor_loss(actor):
        action, log_prob = ref.policy(actor, batch.obs, noise["policy"], agent)
        values = q(params["critic"], batch.obs, action)
        value = ref.least(values) if agent.actor_q == "min" else values.mean(0)
        return (alpha * log_prob - value).mean()

    def alpha_loss(log_alpha):
        return np.exp(log_alpha) * (entropy - agent.target_entropy * ref.ACTION)

    if update_actor:
        _, log_prob = ref.policy(params["actor"], batch.obs, noise["policy"], agent)
        entropy = -log_prob.mean()
        slopes = ref.gradient(actor_loss, params["actor"])
        learner.step("actor", slopes, agent.actor_learning_rate)
        slopes = ref.gradient(alpha_loss, params["log_alpha"])
        learner.step("log_alpha", slopes, agent.alpha_learning_rate)
    learner.update_targets()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy_delay": 2},
        {"critic.num_critics": 1, "target_entropy": -0.5, "policy_delay": 2}
        | {"policy.log_std_range": (-1.0, 0.2), "policy.layer_norm": True},
        {"critic.num_critics": 3, "num_min_critics": 2, "actor_q": "mean", "policy_delay": 2}
        | {"backup_entropy": False},
        {"critic.num_critics": 3, "actor_q": "mean", "policy_delay": 2}
        | {"critic.layer_norm": True, "optimizer.max_grad_norm": 0.5}
        | {f"{part}.activation": "tanh" for part in ("policy", "critic")}
        | {f"{part}.hidden_dims": (4, 3) for part in ("policy", "critic")},
    ],
    ids=["defaults", "delayed", "one critic", "REDQ", "mean of three with layer norm"],
)
def test_update_matches_numpy(options):
    agent = ref.small(SAC, RATES | options)
    with jax.enable_x64(True):
        state = ref.state(agent)
        ref.Learner(agent, state).assert_matches(state, numpy_step)


@pytest.mark.parametrize("n_step", [1, 2])
def test_truncation_bootstraps_and_termination_does_not(n_step):
    """Through the replay buffer, whose last step is truncated, terminated or neither."""
    agent = ref.small(SAC)
    state, rows = ref.state(agent), ref.batches(n_step)  # [T, N]

    def critic_loss(terminated, truncated):
        last = jnp.zeros(rows.reward.shape, bool).at[-1].set(True)
        flags = last & terminated, last & truncated
        steps = Transition(rows.obs, rows.action, rows.reward, rows.next_obs, *flags, {})
        buffer = ReplayBuffer(n_step)
        empty = buffer.empty(jax.tree.map(lambda x: x[0], steps))
        store = Replay(buffer, buffer.write(empty, steps, 0), jnp.int32(n_step))
        sampler = UniformReplay(n_step)
        batch = sampler.sample(store, (), KEY, (ref.BATCH,), agent.gamma)
        _, metrics = ref.update(agent, state, batch, KEY)
        return float(m.values(metrics)["critic_loss"])

    neither = critic_loss(False, False)
    assert neither == critic_loss(False, True) != critic_loss(True, False)


def test_the_file_stays_short():
    path = Path(inspect.getfile(SAC))
    assert path.name == "sac.py" and len(path.read_text().splitlines()) <= 160
    own = {"critic_loss", "actor_loss", "alpha_loss", "update", "act"}
    assert own <= vars(SAC).keys()


# --- the temperature ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [SAC, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (DSAC, DSACT))]
)
def test_temperature_settles_where_the_policy_has_the_target_entropy(kind):
    """A bandit with reward ``-4 (a - 0.2)^2``, from two initial temperatures and targets."""
    steps, size = 3000, 64
    widths = {"policy.hidden_dims": (16,), "critic.hidden_dims": (16,)}
    rates = {"critic_learning_rate": 3e-3, "actor_learning_rate": 3e-3, "alpha_learning_rate": 1e-2}
    options = {"policy_delay": 1, "policy.log_std_range": (-20.0, 2.0)}
    agent = ref.agent_of(kind, widths | rates | options)
    agent = agent.bind(Spec(Box(-1.0, 1.0, (1,)), Box(-1.0, 1.0, (1,))))
    action = jax.random.uniform(KEY, (steps, size, 1), minval=-1.0)
    zeros = jnp.zeros((steps, size, 1))
    reward = -4.0 * (action[..., 0] - 0.2) ** 2
    batch = Batch(zeros, action, reward, jnp.zeros((steps, size)), zeros, {})

    def learn(target_entropy, initial_alpha):
        own = agent.replace(target_entropy=target_entropy, initial_alpha=initial_alpha)
        state, _ = gradient_steps(own, own.init(KEY), batch, jax.random.key(1))
        dist = own.policy.dist(state.actor.params, jnp.zeros((4096, 1)))
        entropy = dist.entropy(jax.random.key(2)).mean()
        return entropy, jnp.exp(state.log_alpha.params), dist.mode()[0, 0]

    targets = np.array([-1.0, -0.5])
    entropy, alpha, mode = jax.jit(jax.vmap(learn))(targets, np.array([1.0, 0.05]))
    np.testing.assert_allclose(entropy, targets, atol=0.12)
    np.testing.assert_allclose(mode, 0.2, atol=0.1)
    # Of exp(reward / alpha), nearly a normal where it is narrow: H = log(2 pi e alpha / 8) / 2.
    narrow = 8.0 * math.exp(2.0 * targets[0]) / (2.0 * math.pi * math.e)
    assert alpha[0] == pytest.approx(narrow, rel=0.4) and alpha[1] > 2 * alpha[0]


def test_learning_rate_of_zero_keeps_the_temperature():
    agent = ref.small(SAC, {"alpha_learning_rate": 0.0})
    before = ref.state(agent)
    after, _ = ref.update(agent, before, ref.row(ref.batches(1), 0), KEY)
    assert changed(before, after) == {"actor", "critic", "target_critic"}


# --- critics ------------------------------------------------------------------------------------


def constant(params, values):
    """Critics that return ``values[E]`` whatever they see."""
    flat = jax.tree.map(jnp.zeros_like, params)
    flat["network"]["head"]["bias"] = jnp.array(values, jnp.float32)[:, None]
    return flat


def without_entropy(state):
    """``state`` with a temperature of next to nothing, if it has one."""
    if not hasattr(state, "log_alpha"):
        return state
    return ref.with_params(state, log_alpha=jnp.float32(-40.0))


@pytest.mark.parametrize("kind", [SAC, TD3])
def test_target_is_the_minimum_over_a_random_subset_of_critics(kind):
    options = {"critic.num_critics": 4, "num_min_critics": 2, "gamma": 1.0}
    agent = ref.small(kind, options | {"critic.hidden_dims": (2,), "policy.hidden_dims": (2,)})
    batch = jax.tree.map(jnp.zeros_like, ref.row(ref.batches(1, size=1), 0))
    batch = batch._replace(discount=jnp.ones(1))
    state = without_entropy(ref.state(agent))

    def target(values, key):
        """Return the target, from the loss ``sum_i (0 - y)^2``."""
        critic = state.critic.params
        known = ref.with_params(state, critic=constant(critic, [0.0] * 4))
        known = known._replace(target_critic=constant(critic, values))
        return jnp.sqrt(m.values(agent.update(known, batch, key)[1])["critic_loss"] / 4)

    count = 1500
    several = jax.jit(jax.vmap(target, in_axes=(None, 0)))
    values = np.array([1.0, 2.0, 3.0, 4.0])
    for shift in range(4):
        keys = jax.random.split(jax.random.key(shift), count)
        found = np.asarray(several(np.roll(values, shift), keys))
        np.testing.assert_allclose(found, np.round(found), atol=1e-4)
        counts = np.bincount(np.round(found).astype(int), minlength=5)
        # Of the six pairs, three hold the smallest, two the second, one the third; none the largest
        # alone, as it would be of one critic.
        assert counts[0] == counts[4] == 0
        expected = np.array([3, 2, 1]) * count / 6
        assert stats.chisquare(counts[1:4], expected).pvalue > 1e-4


def test_subset_of_all_critics_is_the_whole_ensemble():
    """With the same next actions: the key is split only if a subset is drawn."""
    all_of_three = {"critic.num_critics": 3, "num_min_critics": None}
    agents = [ref.small(SAC, all_of_three | {"num_min_critics": num}) for num in (None, 3)]
    state, batch = ref.state(agents[0]), ref.row(ref.batches(1), 0)
    keys = jax.random.split(KEY)[0], KEY
    whole, subset = (
        jax.grad(agent.critic_loss, has_aux=True)(state.critic.params, state, batch, key)
        for agent, key in zip(agents, keys, strict=True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, subset)


@pytest.mark.parametrize(("actor_q", "expected"), [("min", -1.0), ("mean", 2.0)])
def test_actor_maximises_the_minimum_or_the_mean(actor_q, expected):
    options = {"critic.num_critics": 3, "actor_q": actor_q, "critic_learning_rate": 1e-9}
    agent = ref.small(SAC, options)
    state = without_entropy(ref.state(agent))
    state = ref.with_params(state, critic=constant(state.critic.params, [2.0, -1.0, 5.0]))
    _, metrics = ref.update(agent, state, ref.row(ref.batches(1), 0), KEY)
    assert m.values(metrics)["actor_loss"] == pytest.approx(-expected, abs=1e-5)


# --- policy_delay -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "delayed", "always"),
    [
        (SAC, {"actor", "log_alpha"}, {"critic", "target_critic"}),
        (TD3, {"actor", "target_actor", "target_critic"}, {"critic"}),
        (functools.partial(TD3, target_actor=False), {"actor"}, {"critic", "target_critic"}),
        (DSACT, {"actor", "log_alpha", "target_actor", "target_critic"}, {"critic"}),
    ],
)
def test_gradient_steps_are_single_updates_with_the_actor_on_schedule(kind, delayed, always):
    agent = ref.small(kind, {"policy_delay": 3})
    first, batches = ref.state(agent), ref.batches(6)
    whole, totals = ref.learn(agent, first, batches, KEY)

    state = first
    for g, key in enumerate(jax.random.split(KEY, 6)):
        before, step = state, ref.update if g % 3 == 2 else ref.without_actor
        state, metrics = step(agent, state, ref.row(batches, g), key)
        assert changed(before, state) == (always | delayed if g % 3 == 2 else always)
        assert ("actor_loss" in metrics) == (g % 3 == 2)
        assert m.values(metrics)["skipped_updates"] == 0
    close = {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), whole, state)
    assert (totals["critic_loss"].weight, totals["actor_loss"].weight) == (6, 2)
    assert whole.critic.optim.moments.count == 6 and whole.actor.optim.moments.count == 2


def test_few_batches_update_the_actor_on_the_last():
    agent = ref.small(TD3, {"policy_delay": 3})
    first, batches = ref.state(agent), ref.batches(5)
    two = jax.tree.map(lambda x: x[:2], batches)
    state, metrics = ref.learn(agent, first, two, KEY)
    assert (metrics["critic_loss"].weight, metrics["actor_loss"].weight) == (2, 1)
    keys = jax.random.split(KEY, 2)
    expected, _ = ref.without_actor(agent, first, ref.row(two, 0), keys[0])
    expected, _ = ref.update(agent, expected, ref.row(two, 1), keys[1])
    close = {"rtol": 1e-4, "atol": 1e-6}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), state, expected)

    message = "5 batches are no multiple of the policy_delay of 3; 6 would be"
    with pytest.raises(UsageError, match=message):
        gradient_steps(agent, first, batches, KEY)


def changed(before, after):
    """The names of the networks whose parameters differ."""

    def params(state):
        targets = {f"target_{name}": part for name, part in ref.target_params(state).items()}
        return ref.trained_params(state) | targets

    def differs(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return any(bool(jnp.any(x != y)) for x, y in pairs)

    old, new = params(before), params(after)
    return {name for name in old if differs(old[name], new[name])}


# --- acting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SAC, DSAC, DSACT])
def test_actions_are_distributed_like_the_policy(kind):
    agent = ref.small(kind)
    state = ref.state(agent)
    quiet = jax.tree.map(lambda x: 0.3 * x, state.actor.params)  # tanh is not saturated
    state = ref.with_params(state, actor=quiet)
    obs = jax.random.normal(jax.random.key(1), (7, ref.OBS))
    assert protocol.init_carry(agent, KEY, 7) == ()

    keys = jax.random.split(jax.random.key(2), 4000)
    actions, carry, extras = jax.vmap(lambda key: agent.act(state, (), obs, key, "explore"))(keys)
    assert actions.shape == (4000, 7, ref.ACTION) and (carry, extras) == ((), {})
    assert np.abs(actions).max() <= 1.0

    greedy, _, _ = agent.act(state, (), obs, KEY, "greedy")
    network = jax.tree.map(np.asarray, quiet["network"])
    out = ref.mlp(network, np.asarray(obs, float), "relu")
    mean, log_std = np.split(out, 2, axis=-1)
    std = np.exp(np.clip(log_std, *agent.policy.log_std_range))
    np.testing.assert_allclose(greedy, np.tanh(mean), rtol=1e-4, atol=1e-5)
    inside = np.clip(np.asarray(actions, float), -1 + 1e-7, 1 - 1e-7)
    quantiles = stats.norm(mean, std).cdf(np.arctanh(inside))
    for n in range(7):
        assert stats.kstest(quantiles[:, n, 0], "uniform").pvalue > 1e-4
    columns = quantiles.reshape(4000, -1)  # of rows and action elements
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 5 / 4000**0.5
    one, _, _ = agent.act(state, (), obs, jax.random.key(3), "sample")
    assert one.shape == greedy.shape and np.any(one != greedy)


# --- options ------------------------------------------------------------------------------------


def assert_refused(kind, options, message):
    """That the defaults pass the check, and that these options do not, with a one-line message."""
    protocol.check(ref.agent_of(kind).bind(ref.SPEC), 256)
    with pytest.raises(UsageError, match=message) as error:
        protocol.check(ref.agent_of(kind, options).bind(ref.SPEC), 256)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic_learning_rate": 0.0}, "critic_learning_rate is 0; it must be more than 0"),
        ({"critic_learning_rate": math.nan}, "critic_learning_rate is nan; it must be more than 0"),
        ({"actor_learning_rate": -1.0}, "actor_learning_rate is -1; it must be more than 0"),
        ({"alpha_learning_rate": -1e-3}, "alpha_learning_rate is -0.001; it must be at least 0"),
        ({"initial_alpha": 0.0}, "initial_alpha is 0; it must be more than 0"),
        ({"gamma": 1.2}, "gamma is 1.2; it must be at least 0 and at most 1"),
        ({"tau": -0.1}, "tau is -0.1; it must be at least 0 and at most 1"),
        ({"optimizer.max_grad_norm": 0.0}, "optimizer.max_grad_norm is 0; it must be more than 0"),
        ({"policy_delay": 0}, "policy_delay is 0; it must be at least 1"),
        ({"policy.hidden_dims": (64, 0)}, "policy.hidden_dims is 0; it must be at least 1"),
        ({"critic.hidden_dims": (64, 0)}, "critic.hidden_dims is 0; it must be at least 1"),
        ({"critic.activation": "rely"}, "critic.activation is 'rely'; did you mean relu"),
        ({"policy.initializer": "he"}, "policy.initializer is 'he'; .*orthogonal"),
        (
            {"policy.log_std_range": (2.0, -5.0)},
            r"policy.log_std_range is \(2.0, -5.0\); .*as \(-20.0, 2.0\)",
        ),
        ({"critic.num_critics": 0}, "critic.num_critics is 0; it must be at least 1"),
        (
            {"num_min_critics": 3},
            "num_min_critics is 3, and there are 2 critics; it must be at most 2",
        ),
        ({"num_min_critics": 0}, "num_min_critics is 0; it must be at least 1"),
        ({"actor_q": "first"}, "actor_q is 'first'; .*min"),
    ],
)
def test_invalid_hyperparameters_are_refused(options, message):
    assert_refused(SAC, options, message)


@pytest.mark.parametrize("kind", [SAC, DSAC, DSACT])
def test_policy_without_a_density_is_refused(kind):
    message = rf"^{kind.__name__} needs a policy with dist\(\), which Deterministic lacks; "
    with pytest.raises(UsageError, match=message + ".*TanhGaussian") as error:
        kind(policy=Deterministic()).bind(ref.SPEC)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [SAC, TD3, DSAC, DSACT])
def test_discrete_actions_are_refused(kind):
    message = f"{kind.__name__} needs continuous actions, .* has 2 discrete ones; .*DQN or PPO"
    spec = make("gymnax/CartPole-v1").spec
    with pytest.raises(UsageError, match=message) as error:
        kind().bind(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [SAC, TD3, DSAC, DSACT])
def test_a_squashing_policy_says_what_unbounded_actions_it_never_takes(kind):
    def bind(low, high):
        return kind().bind(Spec(Box(-1.0, 1.0, (3,)), Box(low, high, (2,))))

    family = type(kind().policy).__name__
    words = rf"^{family} acts in \[-1, 1\], and element 1 of the actions has the bounds "
    for low, high, stays in [
        (-np.inf, np.inf, r"-inf and inf, so it stays in \[-1, 1\]"),
        (0, np.float32(3.4028235e38), r"0 and inf, so it stays in \[0, 1\]"),
    ]:
        with pytest.warns(UserWarning, match=f"{words}{stays}; give it finite.*Gaussian$") as seen:
            bind([0, low], [10, high])
        assert len(seen) == 1 and "\n" not in str(seen[0].message)
    with pytest.raises(UsageError, match=words + r"5 and inf, so it stays in \[5, 5\]"):
        bind([0, 5], [10, np.inf])
    with warnings.catch_warnings(action="error"):
        bind([0, -2], [10, 3])
        Gaussian().bind(Spec(Box(-1.0, 1.0, (3,)), Box(-np.inf, np.inf, (2,))))
