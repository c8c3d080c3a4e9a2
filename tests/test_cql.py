"""CQL, Cal-QL and discrete CQL: updates against numpy, and SAC, CQL and DQN as their limits."""

from __future__ import annotations

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import assert_same_bits

from jaxrl import CQL, DQN, SAC, CalQL, DiscreteCQL, UsageError, hyper
from jaxrl import metrics as m
from jaxrl.agents import protocol
from jaxrl.types import Batch, Box, Discrete, Spec

KEY = jax.random.key(0)
DRAWS = 3
RATES = {"critic_learning_rate": 0.02, "actor_learning_rate": 0.03, "alpha_learning_rate": 0.05}
SMALL = RATES | {"num_actions": DRAWS, "cql_alpha": 2.0}
DISCRETE = Spec(Box(-np.inf, np.inf, (ref.OBS,)), Discrete(3))


def small(kind, options=()):
    return ref.small(kind, SMALL | {"multiplier_learning_rate": 0.1} | dict(options))


def one_batch(seed=0, return_to_go=-np.inf):
    batch = ref.row(ref.batches(1, seed=seed), 0)
    bound = jnp.broadcast_to(jnp.asarray(return_to_go, batch.reward.dtype), ref.BATCH)
    return batch._replace(extras={"return_to_go": bound})


def quiet(state):
    """The state with small weights: Q is of the order of 1."""
    smaller = jax.tree.map(lambda x: 0.3 * x, state.critic.params)
    return ref.with_params(state, critic=smaller)


def critic_gradient(agent, state, batch):
    """The critics' loss with what comes with it, and its gradient."""
    loss = jax.value_and_grad(agent.critic_loss, has_aux=True)
    return loss(state.critic.params, state, batch, KEY)


# --- against numpy ------------------------------------------------------------------------------


def noise(agent, key):
    """All that ``agent.update`` draws with its key."""
    critic_key, actor_key = jax.random.split(key)
    uniform_key, policy_key = jax.random.split(jax.random.fold_in(critic_key, 1))
    rows = (ref.BATCH, ref.ACTION)

    def several(key, shape):
        keys = jax.random.split(key, DRAWS)
        return jnp.stack([jax.random.normal(key, shape) for key in keys])

    drawn = {
        "uniform": jax.random.uniform(uniform_key, (DRAWS, *rows), minval=-1.0),
        "proposals": several(policy_key, (2, *rows)),
        "next": several(critic_key, rows)
        if agent.max_target_backup
        else jax.random.normal(critic_key, rows)[None],
        "policy": jax.random.normal(actor_key, rows),
    }
    return jax.tree.map(np.asarray, drawn)


def logsumexp(x):
    largest = x.real.max(0)
    return np.log(np.exp(x - largest).sum(0)) + largest


def numpy_step(learner, batch, drawn):
    """Critics and multiplier, actor and temperature, target critics."""
    agent, params = learner.agent, learner.params

    def q(critic, obs, action):
        return ref.critics(critic, obs, action, agent)[..., 0]

    def at_s(critic, action):
        return np.stack([q(critic, batch.obs, each) for each in action], axis=1)

    target = [
        q(learner.targets["critic"], batch.next_obs, ref.policy(params["actor"], batch.next_obs,
                                                                each, agent)[0]).min(0)
        for each in drawn["next"]
    ]  # fmt: skip
    y = batch.reward + batch.discount * np.max(target, axis=0)
    pairs = [
        ref.policy(params["actor"], obs, drawn["proposals"][k, i], agent)
        for i, obs in enumerate((batch.obs, batch.next_obs))
        for k in range(DRAWS)
    ]
    actions, densities = (np.stack(x) for x in zip(*pairs, strict=True))

    def gaps(critic):
        data = q(critic, batch.obs, batch.action)
        uniform, policy = at_s(critic, drawn["uniform"]), at_s(critic, actions)
        if isinstance(agent, CalQL):
            bound = batch.extras["return_to_go"]
            policy = np.where(policy.real < bound, bound, policy)
        every = [data[:, None], uniform, policy]
        if agent.importance_sampling:
            every = [uniform - ref.ACTION * np.log(0.5), policy - densities]
        every = np.concatenate(every, axis=1)
        return np.stack([(logsumexp(x) - d).mean() for x, d in zip(every, data, strict=True)])

    def critic_loss(critic):
        error = ((q(critic, batch.obs, batch.action) - y) ** 2).mean(-1)
        gap = gaps(critic)
        if agent.lagrange_gap is not None:
            gap = np.exp(params["log_multiplier"]) * (gap - agent.lagrange_gap)
        return (error + agent.cql_alpha * gap).sum()

    def multiplier_loss(log_multiplier):
        return -np.exp(log_multiplier) * agent.cql_alpha * (gap.mean() - agent.lagrange_gap)

    gap = gaps(params["critic"])
    slopes = ref.gradient(critic_loss, params["critic"])
    learner.step("critic", slopes, agent.critic_learning_rate)
    if agent.lagrange_gap is not None:
        slopes = ref.gradient(multiplier_loss, params["log_multiplier"])
        learner.step("log_multiplier", slopes, agent.multiplier_learning_rate)

    alpha = np.exp(params["log_alpha"])

    def actor_loss(actor):
        action, log_prob = ref.policy(actor, batch.obs, drawn["policy"], agent)
        return (alpha * log_prob - ref.least(q(params["critic"], batch.obs, action))).mean()

    _, log_prob = ref.policy(params["actor"], batch.obs, drawn["policy"], agent)
    excess = -log_prob.mean() - agent.target_entropy * ref.ACTION
    learner.step("actor", ref.gradient(actor_loss, params["actor"]), agent.actor_learning_rate)
    slopes = ref.gradient(lambda x: np.exp(x) * excess, params["log_alpha"])
    learner.step("log_alpha", slopes, agent.alpha_learning_rate)
    learner.update_targets()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CQL, {}),
        (CQL, {"importance_sampling": False, "max_target_backup": True}),
        (CQL, {"lagrange_gap": 0.7}),
        (CalQL, {"max_target_backup": False}),
    ],
    ids=["defaults", "of actions as they are", "with a multiplier", "calibrated"],
)
def test_update_matches_numpy(kind, options):
    agent = small(kind, options)
    with jax.enable_x64(True):
        state = quiet(ref.state(agent))
        learner = ref.Learner(agent, state)
        for seed in range(3):
            bound = np.array([-np.inf, -5.0, -1.0, 0.0, 1.0, 3.0])
            batch, key = one_batch(seed, bound), jax.random.key(seed)
            state, metrics = ref.update(agent, state, batch, key)
            learner.norms = {name: [] for name in learner.params}
            numpy_step(learner, jax.tree.map(np.asarray, batch), noise(agent, key))
            values = m.values(metrics)
            learner.assert_equals(state, values)
            assert kind is CQL or 0.1 < values["bounded"] < 0.9


# --- limits -------------------------------------------------------------------------------------


def test_without_its_term_it_is_sac_without_entropy_in_the_backup():
    """SAC's targets lose the entropy by rewards that make up for it."""
    with jax.enable_x64(True):
        cql, sac = small(CQL, {"cql_alpha": 0.0}), ref.small(SAC, RATES)
        theirs, batch = ref.state(sac), one_batch()
        ours = ref.state(cql)._replace(**theirs._asdict())
        critic_key, _ = jax.random.split(KEY)
        _, trace = sac.policy.dist(theirs.actor.params, batch.next_obs).sample(critic_key)
        bonus = batch.discount * jnp.exp(theirs.log_alpha.params) * trace.log_prob
        theirs, _ = ref.update(sac, theirs, batch._replace(reward=batch.reward + bonus), KEY)
        ours, _ = ref.update(cql, ours, batch, KEY)
        for name, expected in theirs._asdict().items():
            found = getattr(ours, name)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-9), found, expected)


def test_cal_ql_without_a_bound_is_cql_to_the_bit():
    """Operation by operation, as XLA may sum two compiled programs in different orders."""
    agents = [small(kind, {"max_target_backup": True}) for kind in (CQL, CalQL)]
    state, batch = quiet(ref.state(agents[0])), one_batch()
    (loss, (gap, _)), cql = critic_gradient(agents[0], state, batch)
    (same, (other, metrics)), calibrated = critic_gradient(agents[1], state, batch)
    assert_same_bits((loss, gap, cql), (same, other, calibrated))
    assert m.values(metrics)["bounded"] == 0.0


def test_far_below_the_bound_the_term_only_raises_the_data_s_actions():
    agent = small(CalQL, {"cql_alpha": 1.0})
    state, batch = quiet(ref.state(agent)), one_batch(return_to_go=1e3)
    gradient, params = jax.jit(critic_gradient), state.critic.params
    (_, (_, metrics)), whole = gradient(agent, state, batch)
    _, without = gradient(agent.replace(cql_alpha=0.0), state, batch)
    expected = jax.grad(lambda p: -agent.critic(p, batch.obs, batch.action).mean(-1).sum())(params)
    assert m.values(metrics)["bounded"] == 1.0
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(without))
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a - b, c, atol=1e-6 * scale),
        whole,
        without,
        expected,
    )


def test_the_multiplier_grows_where_the_gap_is_too_large_and_stays_finite():
    with jax.enable_x64(True):  # it shares the program above
        agent = small(CQL, {"lagrange_gap": -50.0})
        state = quiet(ref.state(agent))
        near, far = (ref.with_params(state, log_multiplier=jnp.asarray(x)) for x in (1.0, 80.0))
        after, metrics = ref.update(agent, near, one_batch(), KEY)
        assert m.values(metrics)["multiplier"] == pytest.approx(np.exp(1.1), rel=1e-3)
        assert after.log_multiplier.params == pytest.approx(1.1, rel=1e-3)
        _, metrics = ref.update(agent, far, one_batch(), KEY)
    assert m.values(metrics)["multiplier"] == 1e6 and m.values(metrics)["skipped_updates"] == 0
    assert agent.init(KEY).log_multiplier.params == pytest.approx(1.0)


def test_one_program_sweeps_its_weight_and_seeds():
    agent, batch = small(CalQL), one_batch(return_to_go=0.0)

    def gradient(cql_alpha, params):
        own = hyper.replace(agent, {"cql_alpha": cql_alpha})
        return jax.grad(own.critic_loss, has_aux=True)(params, state, batch, KEY)[0]

    state = ref.state(agent)
    params = [ref.state(agent, seed).critic.params for seed in range(2)]
    alphas = jnp.array([0.0, 5.0])
    together = jax.jit(jax.vmap(gradient))(alphas, jax.tree.map(lambda *x: jnp.stack(x), *params))
    one = jax.jit(gradient)
    for i in range(2):
        found = jax.tree.map(lambda x, i=i: x[i], together)
        expected = one(alphas[i], params[i])
        scale = 1e-5 * max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
        close = {"rtol": 1e-4, "atol": scale}
        jax.tree.map(
            lambda a, b, close=close: np.testing.assert_allclose(a, b, **close), found, expected
        )


def test_what_cannot_work_is_refused():
    with pytest.raises(UsageError, match="CQL needs continuous actions"):
        CQL().bind(DISCRETE)
    with pytest.raises(UsageError, match="DiscreteCQL needs discrete actions"):
        DiscreteCQL().bind(ref.SPEC)
    with pytest.raises(UsageError, match="cql_alpha is -1; it must be at least 0"):
        protocol.check(CQL(cql_alpha=-1.0), 8)
    with pytest.raises(UsageError, match="num_actions is 0; it must be at least 1"):
        protocol.check(CQL(num_actions=0), 8)
    assert CalQL.batch_extras == ("return_to_go",) and not hasattr(CQL, "batch_extras")


# --- discrete actions ---------------------------------------------------------------------------


def discrete(kind, **options):
    network = kind().q_network.replace(hidden_dims=(5,))
    agent = kind(q_network=network, learning_rate=0.02, gamma=0.9, tau=0.3, **options)
    return agent.bind(DISCRETE)


def discrete_batch():
    batch = ref.row(ref.batches(1), 0)
    return batch._replace(action=jnp.arange(ref.BATCH) % 3)


def test_discrete_loss_matches_numpy():
    agent, batch = discrete(DiscreteCQL, cql_alpha=2.0), discrete_batch()
    state = ref.state(agent)
    loss, metrics = agent.q_loss(state.q.params, state, batch)
    rows = jax.tree.map(lambda x: np.asarray(x, np.float64), batch)
    action = np.asarray(batch.action)

    def q(params, obs):
        return ref.mlp(jax.tree.map(np.float64, params["network"]), obs, "relu")

    each = np.arange(ref.BATCH)
    best = q(state.q.params, rows.next_obs).argmax(-1)
    y = rows.reward + rows.discount * q(state.target_q, rows.next_obs)[each, best]
    values = q(state.q.params, rows.obs)
    gap = logsumexp(values.T) - values[each, action]
    expected = (0.5 * (values[each, action] - y) ** 2 + 2.0 * gap).mean()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert m.values(metrics)["gap"] == pytest.approx(gap.mean(), rel=1e-4)


def test_discrete_cql_without_its_term_is_double_dqn():
    ours = discrete(DiscreteCQL, cql_alpha=0.0)
    theirs = discrete(DQN, huber=None, target_every=1)
    state, batch = ref.state(ours), discrete_batch()
    other = ref.state(theirs)._replace(**state._asdict())
    state, _ = ref.update(ours, state, batch, KEY)
    other, _ = ref.update(theirs, other, batch, KEY)
    for name in ("q", "target_q"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            getattr(state, name),
            getattr(other, name),
        )


def test_discrete_cql_is_pessimistic_about_actions_without_data():
    """One state whose third action is never taken: its value falls, the others' stay."""
    one = jnp.ones((2, 1))
    spec = Spec(Box(0.0, 1.0, (1,)), Discrete(3))
    batch = Batch(one, jnp.array([0, 1]), jnp.array([1.0, 1.0]), jnp.zeros(2), one, {})

    def learn(cql_alpha):
        agent = DiscreteCQL(learning_rate=0.05, cql_alpha=cql_alpha)
        agent = agent.replace(q_network=agent.q_network.replace(hidden_dims=())).bind(spec)
        state = agent.init(KEY)
        state = jax.lax.fori_loop(0, 400, lambda _, s: agent.update(s, batch, KEY)[0], state)
        return agent.q_network(state.q.params, one[:1])[0]

    q = jax.jit(jax.vmap(learn))(jnp.array([0.0, 0.1]))
    np.testing.assert_allclose(q[0, :2], 1.0, atol=0.02)
    np.testing.assert_allclose(q[1, :2], 1.0, atol=0.1)
    assert q[1, 2] < min(q[0, 2], 0.0) - 1.0
