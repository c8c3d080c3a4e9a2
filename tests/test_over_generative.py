"""DSRL, EditPolicy and PA-RL: updates against numpy, and the limits in which they are the policy
that they improve."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits, rows_of_pendulum

from jaxrl import (
    BC,
    DSRL,
    PARL,
    EditPolicy,
    Offline,
    OffPolicy,
    UsageError,
    VectorEnv,
    hyper,
    make,
)
from jaxrl import metrics as m
from jaxrl.agents.improvement import Ascent
from jaxrl.nn.composition import Composed
from jaxrl.nn.critics import Critic, ValueFunction
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.edm import EDM
from jaxrl.nn.flow import Flow, OneStep
from jaxrl.nn.policies import Deterministic, Gaussian, TanhGaussian
from jaxrl.optim import Adam

KEY = jax.random.key(0)
B, A = ref.BATCH, ref.ACTION
TANH = {"hidden_dims": (5,), "activation": "tanh"}
CRITIC = Critic(**TANH, num_critics=2)
FLOW = Flow(hidden_dims=(5,), sample_steps=2)
FAST = {"gamma": 0.9, "tau": 0.3, "critic_learning_rate": 0.02}

dsrl = partial(DSRL, actor=TanhGaussian(**TANH), critic=CRITIC, noise_scale=0.7, **FAST)
edit = partial(EditPolicy, edit=TanhGaussian(**TANH), critic=CRITIC, edit_scale=0.3, **FAST)
pa_rl = partial(
    PARL,
    critic=CRITIC,
    value=ValueFunction(**TANH),
    improver=Ascent(num_candidates=4, num_kept=3, num_steps=2, step_size=0.02),
    num_actions=3,
    num_min_critics=1,
    cql_alpha=0.7,
    **FAST,
)


def batch_of(seed=0):
    batch = ref.row(ref.batches(1, seed=seed), 0)
    returns = np.random.default_rng(1).normal(size=B) * 10
    return batch._replace(extras={"return_to_go": jnp.asarray(returns)})


def filled(agent):
    """A state with random weights of every size, those of a frozen policy included."""
    state, rng = ref.state(agent), np.random.default_rng(7)
    if hasattr(state.policy, "params"):
        return state
    return state._replace(
        policy=jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), state.policy)
    )


# --- in numpy -----------------------------------------------------------------------------------


def q_of(critic, obs, action, agent):
    return ref.critics(critic, obs, action, agent)[..., 0]


def one_step(params, obs, noise, agent):
    x = np.concatenate([np.broadcast_to(obs, (*noise.shape[:-1], ref.OBS)), noise], axis=-1)
    return np.clip(ref.mlp(params["network"], x, agent.policy.activation), -1.0, 1.0)


def gaussian(params, obs, noise, part):
    """An action of a tanh-squashed normal, and its log-probability."""
    return ref.policy(params, obs, noise, SimpleNamespace(policy=part))


def target_of(learner, batch, next_action):
    agent = learner.agent
    next_q = q_of(learner.targets["critic"], batch.next_obs, next_action, agent)
    return batch.reward + batch.discount * (next_q.mean(0) - agent.pessimism * next_q.std(0))


def fit_critic(learner, batch, y, name="critic", action=None):
    def loss(critic):
        values = q_of(critic, batch.obs, batch.action if action is None else action, learner.agent)
        return ((values - y) ** 2).mean(-1).sum()

    slopes = ref.gradient(loss, learner.params[name])
    learner.step(name, slopes, learner.agent.critic_learning_rate)


def fit_soft(learner, name, part, rate, sampled, q_of_sample):
    """The actor ``name`` and its temperature, as SAC does."""
    alpha = np.exp(learner.params["log_alpha"])

    def loss(actor):
        sample, log_prob = sampled(actor)
        return (alpha * log_prob - q_of_sample(sample).mean(0)).mean()

    entropy = -sampled(learner.params[name])[1].mean()
    learner.step(name, ref.gradient(loss, learner.params[name]), rate)
    slope = alpha * (entropy - learner.agent.target_entropy * A)
    learner.step("log_alpha", slope, learner.agent.alpha_learning_rate)


def dsrl_step(learner, batch, key, frozen):
    agent, params = learner.agent, learner.params
    noises = [np.asarray(jax.random.normal(k, (B, A))) for k in jax.random.split(key, 3)]
    u, _ = gaussian(params["actor"], batch.next_obs, noises[0], agent.actor)
    next_action = one_step(frozen, batch.next_obs, agent.noise_scale * u, agent)
    fit_critic(learner, batch, target_of(learner, batch, next_action))
    q = q_of(params["critic"], batch.obs, one_step(frozen, batch.obs, noises[1], agent), agent)
    fit_critic(learner, batch, q, "noise_critic", noises[1])
    fit_soft(
        learner,
        "actor",
        agent.actor,
        agent.actor_learning_rate,
        lambda actor: gaussian(actor, batch.obs, noises[2], agent.actor),
        lambda u: q_of(params["noise_critic"], batch.obs, agent.noise_scale * u, agent),
    )
    learner.update_targets()


def edit_step(learner, batch, key, frozen):
    agent, params = learner.agent, learner.params
    next_key, _, sample_key, edit_key = jax.random.split(key, 4)
    base_key, next_edit_key = jax.random.split(next_key)

    def edited(actor, obs, base, noise):
        e, log_prob = gaussian(actor, np.concatenate([obs, base], axis=-1), noise, agent.edit)
        return ref.clip(base + agent.edit_scale * e, -1.0, 1.0), log_prob

    def base_of(obs, key):
        return one_step(frozen, obs, np.asarray(jax.random.normal(key, (B, A))), agent)

    next_base = base_of(batch.next_obs, jax.random.split(base_key, 1)[0])
    noise = np.asarray(jax.random.normal(next_edit_key, (1, B, A)))[0]
    next_action, _ = edited(params["edit"], batch.next_obs, next_base, noise)
    fit_critic(learner, batch, target_of(learner, batch, next_action))
    base, noise = base_of(batch.obs, sample_key), np.asarray(jax.random.normal(edit_key, (B, A)))
    fit_soft(
        learner,
        "edit",
        agent.edit,
        agent.edit_learning_rate,
        lambda actor: edited(actor, batch.obs, base, noise),
        lambda action: q_of(params["critic"], batch.obs, action, agent),
    )
    learner.update_targets()


def ascended(critic, obs, actions, agent):
    """The best point on the way of each action up the slope of the critics' mean."""

    def value(a):
        return q_of(critic, np.broadcast_to(obs, (*a.shape[:-1], ref.OBS)), a, agent).mean(0)

    actions = np.clip(actions, -1.0, 1.0)
    best, best_q = actions, value(actions)
    for _ in range(agent.improver.num_steps):
        slope = np.stack([value(actions + 1e-30j * row).imag / 1e-30 for row in np.eye(A)], -1)
        actions = np.clip(actions + agent.improver.step_size * slope, -1.0, 1.0)
        higher = value(actions) > best_q
        best = np.where(higher[..., None], actions, best)
        best_q = np.where(higher, value(actions), best_q)
    return best, best_q


def chosen(actions, index):
    return np.take_along_axis(actions, index[..., None], axis=0)


def largest(critic, obs, actions, agent):
    """The actions that are kept, best first."""
    tiled = np.broadcast_to(obs, (*actions.shape[:-1], ref.OBS))
    order = np.argsort(-q_of(critic, tiled, actions, agent).mean(0), axis=0)
    return chosen(actions, order[: agent.improver.num_kept])


def pa_rl_step(learner, batch, key, _):
    agent, params = learner.agent, learner.params
    sample_key, improve_key, critic_key, draw_key, _ = jax.random.split(key, 5)
    cal_ql = agent.critic_learning == "cal_ql"
    obs = np.stack([batch.obs, batch.next_obs]) if cal_ql else batch.obs
    keys = jax.random.split(sample_key, agent.improver.num_candidates)
    noise = np.stack([np.asarray(jax.random.normal(k, (*obs.shape[:-1], A))) for k in keys])

    def mean_of(policy, obs):
        return ref.mlp(policy["network"], obs, agent.policy.activation)

    actions = mean_of(params["policy"], obs) + np.exp(params["policy"]["log_std"]) * noise
    actions = np.clip(actions, -1.0, 1.0)
    targets, uniform_key, subset_key = learner.targets["critic"], *jax.random.split(critic_key)
    if cal_ql:
        moved, q = ascended(
            params["critic"], obs, largest(params["critic"], obs, actions, agent), agent
        )
        optimised = chosen(moved, q.argmax(0)[None])[0]
        actions = actions[:, 0]
        index = int(jax.random.permutation(subset_key, 2)[0])
        target = q_of(targets, batch.next_obs, optimised[1], agent)[index]
    else:
        index = int(jax.random.permutation(improve_key, 2)[0])
        q = q_of(targets, batch.obs, batch.action, agent)[index]

        def value_loss(value):
            u = q - ref.mlp(value["network"], batch.obs, agent.value.activation)[..., 0]
            return (np.where(u.real > 0, agent.expectile, 1 - agent.expectile) * u**2).mean()

        slopes = ref.gradient(value_loss, params["value"])
        learner.step("value", slopes, agent.critic_learning_rate)
        target = ref.mlp(params["value"]["network"], batch.next_obs, "tanh")[..., 0]
    uniform = np.asarray(jax.random.uniform(uniform_key, (agent.num_actions, B, A), minval=-1.0))
    y, bound = batch.reward + batch.discount * target, batch.extras["return_to_go"]

    def critic_loss(critic):
        q = q_of(critic, batch.obs, batch.action, agent)
        loss = ((q - y) ** 2).mean(-1).sum()
        if not cal_ql:
            return loss
        terms = np.exp(q) + sum(np.exp(q_of(critic, batch.obs, a, agent)) for a in uniform)
        for action in optimised:
            value = q_of(critic, batch.obs, action, agent)
            terms = terms + agent.num_actions * np.exp(np.where(value.real < bound, bound, value))
        return loss + agent.cql_alpha * (np.log(terms) - q).mean(-1).sum()

    learner.step("critic", ref.gradient(critic_loss, params["critic"]), agent.critic_learning_rate)
    best = largest(params["critic"], batch.obs, actions, agent)
    best = np.concatenate([best[:-1], batch.action[None]])
    moved, q = ascended(params["critic"], batch.obs, best, agent)
    gumbel = np.asarray(jax.random.gumbel(draw_key, q.shape, float))
    action = chosen(moved, (q + agent.distill_temperature * gumbel).argmax(0)[None])[0]

    def policy_loss(policy):
        z = (action - mean_of(policy, batch.obs)) / np.exp(policy["log_std"])
        return (0.5 * z**2 + policy["log_std"] + 0.5 * np.log(2 * np.pi)).sum(-1).mean()

    slopes = ref.gradient(policy_loss, params["policy"])
    learner.step("policy", slopes, agent.actor_learning_rate)
    learner.update_targets()


ONE_STEP, NORMAL = OneStep(**TANH), Gaussian(**TANH)
TRANSCRIBED = {
    "DSRL": (dsrl(policy=ONE_STEP, actor_learning_rate=0.03, alpha_learning_rate=0.05), dsrl_step),
    "edit": (
        edit(policy=ONE_STEP, frozen=True, edit_learning_rate=0.03, alpha_learning_rate=0.05),
        edit_step,
    ),
    "PA-RL with Cal-QL": (pa_rl(policy=NORMAL, actor_learning_rate=0.03), pa_rl_step),
    "PA-RL with IQL": (
        pa_rl(policy=NORMAL, critic_learning="iql", expectile=0.9, distill_temperature=3.0),
        pa_rl_step,
    ),
}


@pytest.mark.parametrize("name", TRANSCRIBED)
def test_update_matches_numpy(name):
    """Two updates, so that Adam has a past. A frozen policy stays what it was."""
    agent, step = TRANSCRIBED[name]
    agent = agent.bind(ref.SPEC)
    with jax.enable_x64(True):
        state = filled(agent)
        frozen = state.policy
        learner = ref.Learner(agent, state)
        for seed in (1, 2):
            batch, key = batch_of(seed), jax.random.key(seed)
            state, metrics = ref.update(agent, state, batch, key)
            learner.norms = {each: [] for each in learner.params}
            step(learner, jax.tree.map(np.asarray, batch), key, jax.tree.map(np.asarray, frozen))
            learner.assert_equals(state, m.values(metrics))
        if "policy" not in learner.params:
            assert_same_bits(state.policy, frozen)


# --- limits -------------------------------------------------------------------------------------

OBS = jnp.asarray(np.random.default_rng(3).normal(size=(B, ref.OBS)), jnp.float32)


@pytest.mark.parametrize(
    "policy",
    [FLOW, Diffusion(hidden_dims=(5,), num_steps=2), EDM(hidden_dims=(5,)), ONE_STEP],
    ids=lambda policy: type(policy).__name__,
)
def test_dsrl_with_hardly_any_noise_acts_as_the_policy_at_noise_0(policy):
    agent = dsrl(policy=policy).bind(ref.SPEC)
    state = agent.init(KEY)

    @jax.jit
    def act(scale):
        steered = dataclasses.replace(agent, noise_scale=scale)
        at_zero = agent.policy.from_noise(state.policy, OBS, jnp.zeros((B, A)))
        return steered.act(state, (), OBS, KEY, "explore")[0], at_zero

    near, expected = act(1e-6)
    np.testing.assert_allclose(near, expected, atol=1e-4)
    assert np.abs(act(1.0)[0] - expected).max() > 1e-2


def test_dsrl_steers_a_composed_policy():
    agent = dsrl(policy=Composed(FLOW, FLOW)).bind(ref.SPEC)
    state, metrics = jax.jit(agent.update)(
        agent.init(KEY), jax.tree.map(jnp.float32, batch_of()), KEY
    )
    assert all(np.isfinite(x) for x in m.values(metrics).values())
    assert agent.act(state, (), OBS, KEY, "explore")[0].shape == (B, A)


def test_an_edit_of_scale_0_is_the_policy_and_its_policy_is_cloned():
    """The update of the policy is that of behaviour cloning on the same noise."""
    agent = edit(policy=FLOW, edit_scale=0.0, optimizer=Adam()).bind(ref.SPEC)
    state, batch = agent.init(KEY), jax.tree.map(jnp.float32, batch_of())
    clone = BC(policy=FLOW, learning_rate=agent.policy_learning_rate).bind(ref.SPEC)

    @jax.jit
    def both(agent):
        action, _, _ = agent.act(state, (), OBS, KEY, "sample")
        sample_key = jax.random.split(jax.random.split(KEY)[0], 1)[0]
        sample, _ = agent.policy.sample(state.policy.params, OBS, sample_key)
        mine, _ = agent.update(state, batch, KEY)
        before = clone.init(KEY)._replace(policy=state.policy)
        cloned, _ = clone.update(before, batch, jax.random.split(KEY, 4)[1])
        return action, sample, mine.policy.params, cloned.policy.params

    action, sample, mine, cloned = both(agent)
    np.testing.assert_allclose(action, sample, atol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), mine, cloned)
    moved = both(dataclasses.replace(agent, edit_scale=0.5))[0]
    assert 1e-2 < np.abs(moved - sample).max() <= 0.5 + 1e-6


def test_of_several_candidates_and_their_edits_the_best_acts():
    agent = edit(policy=FLOW, num_candidates=3).bind(ref.SPEC)
    state = filled(agent)

    @jax.jit
    def act(key):
        action, _, _ = agent.act(state, (), OBS, key, "explore")
        base_key, edit_key = jax.random.split(key)
        keys = jax.random.split(base_key, 3)
        sampled = jax.vmap(lambda k: agent.policy.sample(state.policy.params, OBS, k)[0])(keys)
        tiled = jnp.broadcast_to(OBS, (3, *OBS.shape))
        e, _ = agent.edit.dist(state.edit.params, (tiled, sampled)).sample(edit_key)
        edited = jnp.clip(sampled + 0.3 * e, -1.0, 1.0)
        return action, jnp.stack([sampled, edited])

    action, every = act(KEY)
    critic = jax.tree.map(np.asarray, state.critic.params)
    q = q_of(critic, np.broadcast_to(OBS, (2, 3, B, ref.OBS)), np.asarray(every), agent).mean(0)
    best = every.reshape(6, B, A)[q.reshape(6, B).argmax(0), np.arange(B)]
    np.testing.assert_allclose(action, best, atol=1e-5)


def test_pa_rl_without_steps_and_with_one_candidate_is_behaviour_cloning():
    """The data's action replaces the only candidate. With steps, values are at least the data's."""
    one = Ascent(num_candidates=1, num_kept=1, num_steps=1, step_size=0.0)
    agent = pa_rl(policy=FLOW, improver=one, critic_learning="iql").bind(ref.SPEC)
    state, batch = agent.init(KEY), jax.tree.map(jnp.float32, batch_of())
    clone = BC(policy=FLOW, learning_rate=agent.actor_learning_rate).bind(ref.SPEC)

    @jax.jit
    def both(step_size):
        improver = dataclasses.replace(one, step_size=step_size)
        stepping = dataclasses.replace(agent, improver=improver)
        mine, metrics = stepping.update(state, batch, KEY)
        before = clone.init(KEY)._replace(policy=state.policy)
        cloned, _ = clone.update(before, batch, jax.random.split(KEY, 5)[4])
        return mine.policy.params, cloned.policy.params, m.values(metrics)["gain"]

    mine, cloned, gain = both(0.0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), mine, cloned)
    assert abs(gain) < 1e-6
    *_, gain = both(0.1)
    assert gain > 1e-5


@jax.jit
def optimised(agent, state, batch):
    """The values of candidates, of what they and the data's actions become, and of acting."""
    agent = dataclasses.replace(agent, distill_temperature=0.0)
    q = agent.values(state, batch.obs)
    actions = agent.candidates(state, batch.obs, jax.random.split(KEY)[0])
    action, _, _ = agent.act(state, (), batch.obs, KEY, "greedy")
    best = agent.targets(state, batch, actions, KEY)
    return q(jnp.concatenate([actions, jnp.stack([batch.action, best, action])])), best


@pytest.mark.parametrize("step_size", [1e-3, 10.0])
def test_optimised_actions_are_never_worse_than_what_they_are_made_of(step_size):
    improver = Ascent(num_candidates=3, num_kept=3, num_steps=2, step_size=step_size)
    agent = pa_rl(policy=FLOW, improver=improver).bind(ref.SPEC)
    state, batch = filled(agent), jax.tree.map(jnp.float32, batch_of())
    q, best = optimised(agent, state, batch)
    *sampled, data, target, acted = np.asarray(q)
    assert (target >= data - 1e-5).all() and (acted >= np.max(sampled, 0) - 1e-5).all()
    assert (target > data + 1e-3).any() and np.abs(best).max() <= 1.0


# --- sweeps, trainers, refusals -----------------------------------------------------------------

SWEPT = {
    "noise_scale": dsrl(policy=FLOW),
    "edit_scale": edit(policy=FLOW),
    "improver.step_size": pa_rl(policy=FLOW),
}


@pytest.mark.parametrize("name", SWEPT)
def test_seeds_and_numbers_are_swept_by_vmap(name):
    """Members are what they are alone; seeds and numbers do act."""
    agent = SWEPT[name].bind(ref.SPEC)
    batch = jax.tree.map(jnp.float32, batch_of())
    start = filled(agent)

    def member(value, key):
        swept = hyper.replace(agent, {name: value})
        state, _ = swept.update(start, batch, key)
        return state.critic.params, swept.act(state, (), OBS, key, "explore")[0]

    values = jnp.array([0.01, 0.01, 1.0])
    keys = jax.random.split(KEY, 2)[jnp.array([0, 1, 0])]
    found = jax.jit(jax.vmap(member))(values, keys)
    alone = jax.jit(member)(values[2], keys[2])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[2], y, rtol=1e-3, atol=1e-4), found, alone
    )
    action = np.asarray(found[1])
    assert np.abs(action[0] - action[1]).max() > 1e-4 < np.abs(action[0] - action[2]).max()


@pytest.mark.parametrize(
    "agent",
    [*SWEPT.values(), pa_rl(policy=FLOW, critic_learning="iql"), edit(policy=FLOW, frozen=True)],
    ids=["DSRL", "edit", "PA-RL", "PA-RL with IQL", "frozen edit"],
)
def test_agents_go_from_offline_to_online(agent):
    """By shapes: the state of the one trainer is that of the other."""
    env = VectorEnv(make("gymnax/Pendulum-v1"), 2)
    offline = Offline(agent, env, batch_size=8, num_updates=2)
    sizes = {"batch_size": 8, "num_updates": 2, "learning_starts": 8, "buffer_size": 64}
    online = OffPolicy(agent, env, **sizes, cycles=4)

    def both(key, data):
        first, before = offline.iteration(offline.init(key, data), data)
        second, after = online.iteration(online.continue_from(first))
        return first.agent, second.agent, before, after

    first, second, before, after = jax.eval_shape(
        both, KEY, rows_of_pendulum().with_return_to_go(0.99)
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert {"critic_loss", "skipped_updates"} <= before.keys() & after.keys()


@pytest.mark.parametrize(
    ("agent", "line"),
    [
        (dsrl(policy=NORMAL), "DSRL needs a policy with from_noise.., which Gaussian lacks"),
        (
            dsrl(policy=FLOW, actor=Deterministic()),
            "DSRL needs an actor with dist.., which Deterministic lacks",
        ),
        (
            dsrl(policy=FLOW, actor=Gaussian()),
            r"actor is a Gaussian, whose samples may leave \[-1, 1\]; give a TanhGaussian",
        ),
        (
            edit(policy=FLOW, edit=Gaussian()),
            r"edit is a Gaussian, whose samples may leave \[-1, 1\]; give a TanhGaussian",
        ),
        (edit(policy=ONE_STEP), "EditPolicy needs a policy with fit_loss.., which OneStep lacks"),
        (pa_rl(policy=ONE_STEP), "PARL needs a policy with fit_loss.., which OneStep lacks"),
        (pa_rl(improver=Ascent(4, 5)), "num_kept is 5, and there are 4 candidates; give at most 4"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(agent, line):
    with pytest.raises(UsageError, match=line) as error:
        agent.bind(ref.SPEC)
    assert "\n" not in str(error.value)
