"""TD3+BC, ReBRAC and EDAC: updates against numpy, and the limits in which agents coincide."""

from __future__ import annotations

import dataclasses

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import rows_of_pendulum

from jaxrl import (
    BC,
    EDAC,
    SAC,
    TD3,
    TD3BC,
    Offline,
    OffPolicy,
    ReBRAC,
    UsageError,
    VectorEnv,
    make,
)
from jaxrl import metrics as m
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import Deterministic

KEY = jax.random.key(0)
RATES = {"critic_learning_rate": 0.02, "actor_learning_rate": 0.03}
ALPHA = {"alpha_learning_rate": 0.05}
TANH = {f"{part}.activation": "tanh" for part in ("policy", "critic")}


def action_of(actor, obs, agent):
    return np.tanh(ref.mlp(actor["network"], obs, agent.policy.activation))


def q_of(critic, obs, action, agent):
    return ref.critics(critic, obs, action, agent)[..., 0]


def modulus(x):
    return np.where(x.real < 0, -x, x)


# --- against numpy ------------------------------------------------------------------------------


def deterministic_step(learner, batch, noise, update_actor, target_of, actor_loss):
    """Critics; and if ``update_actor``, the actor and all target networks."""
    agent, params, targets = learner.agent, learner.params, learner.targets
    epsilon = np.clip(agent.policy_noise * noise["next"], -agent.noise_clip, agent.noise_clip)
    next_action = np.clip(action_of(targets["actor"], batch.next_obs, agent) + epsilon, -1.0, 1.0)
    next_q = q_of(targets["critic"], batch.next_obs, next_action, agent).min(0)
    y = batch.reward + batch.discount * target_of(next_q, next_action)

    def critic_loss(critic):
        values = q_of(critic, batch.obs, batch.action, agent)
        return sum(((one - y) ** 2).mean() for one in values)

    slopes = ref.gradient(critic_loss, params["critic"])
    learner.step("critic", slopes, agent.critic_learning_rate)
    if update_actor:
        slopes = ref.gradient(actor_loss, params["actor"])
        learner.step("actor", slopes, agent.actor_learning_rate)
        learner.update_targets()


def td3_bc_step(learner, batch, noise, update_actor):
    agent = learner.agent

    def values(actor):
        action = action_of(actor, batch.obs, agent)
        return action, q_of(learner.params["critic"], batch.obs, action, agent)[0]

    def actor_loss(actor):
        action, q = values(actor)
        weight = agent.bc_alpha / np.abs(values(learner.params["actor"])[1]).mean()
        return -weight * q.mean() + ((action - batch.action) ** 2).mean()

    deterministic_step(learner, batch, noise, update_actor, lambda q, _: q, actor_loss)


def rebrac_step(learner, batch, noise, update_actor):
    agent = learner.agent

    def target_of(next_q, next_action):
        distance = ((next_action - batch.extras["next_action"]) ** 2).sum(-1)
        return next_q - agent.critic_bc * distance * batch.extras["has_next_action"]

    def values(actor):
        action = action_of(actor, batch.obs, agent)
        return action, ref.least(q_of(learner.params["critic"], batch.obs, action, agent))

    def actor_loss(actor):
        action, q = values(actor)
        size = np.abs(values(learner.params["actor"])[1]).mean() if agent.normalize_q else 1.0
        return (agent.actor_bc * ((action - batch.action) ** 2).sum(-1) - q / size).mean()

    deterministic_step(learner, batch, noise, update_actor, target_of, actor_loss)


def action_gradients(critic, obs, action, agent):
    """Of each critic with one hidden layer: ``[E, B, A]``, by hand."""
    x, found = np.concatenate([obs, action], axis=-1), []
    for i in range(agent.critic.num_critics):
        layers = jax.tree.map(lambda leaf, i=i: leaf[i], critic["network"])
        hidden = x @ layers["layer_0"]["kernel"] + layers["layer_0"]["bias"]
        slope = 1.0 - np.tanh(hidden) ** 2
        by_input = (slope * layers["head"]["kernel"][:, 0]) @ layers["layer_0"]["kernel"].T
        found.append(by_input[:, ref.OBS :])
    return np.stack(found)


def similarity_of(critic, batch, agent):
    """The mean over rows of the sum of all pairs' products of unit gradients."""
    g = action_gradients(critic, batch.obs, batch.action, agent)
    g = g / np.sqrt((g**2).sum(-1, keepdims=True))
    count = len(g)
    pairs = sum(g[i] * g[j] for i in range(count) for j in range(count) if i != j)
    return pairs.sum(-1).mean() / (count - 1)


def edac_step(learner, batch, noise, update_actor):
    agent, params = learner.agent, learner.params
    alpha = np.exp(params["log_alpha"])
    next_action, next_log_prob = ref.policy(params["actor"], batch.next_obs, noise["next"], agent)
    next_q = q_of(learner.targets["critic"], batch.next_obs, next_action, agent).min(0)
    y = batch.reward + batch.discount * (next_q - alpha * next_log_prob)

    def critic_loss(critic):
        values = q_of(critic, batch.obs, batch.action, agent)
        error = sum(((one - y) ** 2).mean() for one in values)
        return error + agent.diversity_coef * similarity_of(critic, batch, agent)

    learner.step("critic", ref.gradient(critic_loss, params["critic"]), agent.critic_learning_rate)

    def actor_loss(actor):
        action, log_prob = ref.policy(actor, batch.obs, noise["policy"], agent)
        return (
            alpha * log_prob - ref.least(q_of(params["critic"], batch.obs, action, agent))
        ).mean()

    _, log_prob = ref.policy(params["actor"], batch.obs, noise["policy"], agent)
    entropy = -log_prob.mean()
    learner.step("actor", ref.gradient(actor_loss, params["actor"]), agent.actor_learning_rate)
    slope = np.exp(params["log_alpha"]) * (entropy - agent.target_entropy * ref.ACTION)
    learner.step("log_alpha", slope, agent.alpha_learning_rate)
    learner.update_targets()


@pytest.mark.parametrize(
    ("kind", "reference", "options"),
    [
        (TD3BC, td3_bc_step, {"policy_noise": 0.4}),
        (ReBRAC, rebrac_step, {"critic_bc": 0.7, "actor_bc": 0.3}),
        (ReBRAC, rebrac_step, TANH | {"normalize_q": False, "critic.post_norm": False}),
        (EDAC, edac_step, ALPHA | TANH | {"critic.num_critics": 3, "diversity_coef": 2.0}),
    ],
    ids=["TD3+BC", "ReBRAC", "ReBRAC without norms", "EDAC"],
)
def test_update_matches_numpy(kind, reference, options):
    agent = ref.small(kind, RATES | options)
    with jax.enable_x64(True):
        state = ref.state(agent)
        ref.Learner(agent, state).assert_matches(state, reference)


# --- limits -------------------------------------------------------------------------------------


def networks_of(kind, options=()):
    """An agent with the same small networks whatever its defaults."""
    critic = Critic(hidden_dims=(5,), num_critics=2)
    return kind(policy=Deterministic(hidden_dims=(5,)), critic=critic, **dict(options))


def learnt(agent, seed=0):
    """The state after two gradient steps from the same parameters, and the metrics."""
    agent = agent.bind(ref.SPEC)
    batch = ref.with_extras(agent, ref.batches(2, seed=seed))
    return ref.learn(agent, ref.state(agent), batch, KEY)


def assert_same(a, b, names=("actor", "critic")):
    for name in names:
        pairs = zip(*(jax.tree.leaves(getattr(x, name).params) for x in (a, b)), strict=True)
        for x, y in pairs:
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_td3_bc_with_alpha_0_is_behaviour_cloning():
    """Of the same batch: the mean over elements of actions is half the clone's sum over two."""
    rates = {"actor_learning_rate": 0.03, "policy_delay": 1}
    state, _ = learnt(networks_of(TD3BC, rates | {"bc_alpha": 0.0}))
    clone = BC(policy=Deterministic(hidden_dims=(5,)), learning_rate=0.03).bind(ref.SPEC)
    before = clone.init(KEY)
    params = ref.state(networks_of(TD3BC, rates).bind(ref.SPEC)).actor.params
    before = before._replace(policy=before.policy._replace(params=params))
    after, _ = ref.learn(clone, before, ref.batches(2), KEY)
    for x, y in zip(
        jax.tree.leaves(state.actor.params), jax.tree.leaves(after.policy.params), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)  # Adam does not see the factor


def test_rebrac_without_penalties_is_td3():
    """With the actor's values undivided, and both actors maximising the minimum."""
    options = RATES | {"policy_delay": 1}
    zero = {"actor_bc": 0.0, "critic_bc": 0.0, "normalize_q": False}
    assert_same(
        learnt(networks_of(ReBRAC, options | zero))[0],
        learnt(networks_of(TD3, options | {"actor_q": "min"}))[0],
    )
    penalised, _ = learnt(networks_of(ReBRAC, options | zero | {"critic_bc": 0.5}))
    with pytest.raises(AssertionError):
        assert_same(penalised, learnt(networks_of(TD3, options | {"actor_q": "min"}))[0])


def test_rebrac_with_one_critic_is_td3_bc():
    """``alpha = 1 / (actor_bc |A|)``: the same loss but for a factor, which Adam does not see."""
    critic = {"critic": Critic(hidden_dims=(5,), num_critics=1)}
    policy = {"policy": Deterministic(hidden_dims=(5,)), "policy_delay": 1} | RATES
    penalties = {"actor_bc": 0.2, "critic_bc": 0.0}
    one, _ = learnt(ReBRAC(**policy, **critic, **penalties))
    other, _ = learnt(TD3BC(**policy, **critic, bc_alpha=1 / (0.2 * ref.ACTION)))
    assert_same(one, other)


def test_edac_without_diversity_is_sac_with_the_minimum_of_all_critics():
    options = RATES | ALPHA | {"critic.num_critics": 4}
    edac = ref.small(EDAC, options | {"diversity_coef": 0.0})
    sac = dataclasses.replace(ref.small(SAC, options), policy=edac.policy, critic=edac.critic)
    one, two = learnt(edac)[0], learnt(sac)[0]
    assert_same(one, two, ("actor", "critic", "log_alpha"))
    apart, _ = learnt(dataclasses.replace(edac, diversity_coef=5.0))
    with pytest.raises(AssertionError):
        assert_same(apart, two)


@jax.jit
def similarity(agent, params):
    batch = ref.row(ref.batches(1), 0)
    return agent.similarity(agent.critic.with_gradients(params, batch.obs, batch.action)[1])


def test_the_similarity_of_the_same_critics_is_their_number_and_of_opposite_ones_minus_two():
    agent = ref.small(EDAC, {"critic.num_critics": 5})
    params = ref.state(agent).critic.params
    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), params)
    assert similarity(agent, alike) == pytest.approx(5.0, rel=1e-5)

    linear = ref.small(EDAC, {"critic.num_critics": 2, "critic.hidden_dims": ()})
    params = ref.state(linear).critic.params
    opposite = jax.tree.map(lambda x: jnp.stack([x[0], -x[0]]), params)
    assert similarity(linear, opposite) == pytest.approx(-2.0, rel=1e-5)
    flat = jax.tree.map(jnp.zeros_like, params)
    slope = jax.jit(jax.grad(similarity, argnums=1))(linear, flat)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    with pytest.raises(UsageError, match="critic.num_critics is 1; EDAC needs at least 2"):
        ref.small(EDAC, {"critic.num_critics": 1}).check(8)


SWEPT = {TD3BC: ["bc_alpha"], ReBRAC: ["actor_bc", "critic_bc"], EDAC: ["diversity_coef"]}


@pytest.mark.parametrize("kind", SWEPT)
def test_alphas_and_penalties_and_seeds_are_swept_by_vmap(kind):
    """Each of four members is what it is alone; seeds draw other noise, and numbers do act."""
    agent = ref.small(kind, {"critic.num_critics": 2} | RATES)
    batch, start = ref.with_extras(agent, ref.batches(2)), ref.state(agent)

    def member(value, key):
        swept = dataclasses.replace(agent, **dict.fromkeys(SWEPT[kind], value))
        state, metrics = ref.learn.__wrapped__(swept, start, batch, key)
        return state, m.values(metrics)

    values = jnp.array([0.01, 0.01, 100.0, 100.0])
    keys = jax.random.split(KEY, 2)[jnp.arange(4) % 2]
    states, _ = jax.jit(jax.vmap(member))(values, keys)
    alone = jax.jit(member)
    for i, (value, key) in enumerate(zip(values, keys, strict=True)):
        assert_same(jax.tree.map(lambda x, i=i: x[i], states), alone(value, key)[0])
    params = jax.tree.leaves((states.actor.params, states.critic.params))
    for i, j, least in ((0, 1, 0.0), (0, 2, 1e-3), (1, 3, 1e-3)):
        assert any(np.abs(x[i] - x[j]).max() > least for x in params)


# --- trainers -----------------------------------------------------------------------------------


@pytest.mark.slow  # as test_batch_learners.py
@pytest.mark.parametrize("kind", SWEPT)
def test_agents_go_from_offline_to_online(kind):
    agent = ref.agent_of(kind, {"policy.hidden_dims": (8,), "critic.hidden_dims": (8,)})
    env = VectorEnv(make("gymnax/Pendulum-v1"), 2)
    offline = Offline(agent, env, batch_size=8, num_updates=2)
    sizes = {"batch_size": 8, "num_updates": 2, "learning_starts": 8, "buffer_size": 64}
    online = OffPolicy(agent, env, **sizes, cycles=4)

    def both(key, data):
        first, before = offline.iteration(offline.init(key, data), data)
        second, after = online.iteration(online.continue_from(first))
        return first, second, m.values(before), m.values(after)

    first, second, before, after = jax.jit(both)(
        KEY, jax.device_put(rows_of_pendulum().with_next_action())
    )
    assert (int(second.gradient_steps[0]), int(first.gradient_steps[0])) == (10, 2)
    for metrics in (before, after):
        assert metrics["skipped_updates"] == 0 < metrics["critic_grad_norm"]
        assert kind is not ReBRAC or metrics["critic_bc_loss"] > 0
    one, two = (jax.tree.leaves(ts.agent.actor.params) for ts in (first, second))
    assert any(np.abs(x - y).max() > 0 for x, y in zip(one, two, strict=True))


def test_initial_weights_are_those_of_the_papers_code():
    agent = ReBRAC().bind(ref.SPEC)
    state = jax.jit(agent.init)(KEY)
    for params, bound in ((state.actor.params, 1e-3), (state.critic.params, 3e-3)):
        layers = params["network"]
        assert np.abs(layers["head"]["kernel"]).max() == pytest.approx(bound, rel=0.02)
        assert np.abs(layers["head"]["bias"]).max() <= bound
        assert (layers["layer_1"]["bias"] == 0.1).all()
        assert np.abs(layers["layer_1"]["kernel"]).max() == pytest.approx(1 / 16, rel=0.01)
    assert "post_norm_2" in state.critic.params["network"]
    assert "post_norm_2" not in state.actor.params["network"]
