"""FQL, Diffusion-QL, IDQL and IFQL: losses and updates against transcriptions, and their limits."""

from __future__ import annotations

from functools import partial

import agents_numpy as ref
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import (
    DSRL,
    FQL,
    IDQL,
    IFQL,
    IQL,
    PPO,
    BestOf,
    DiffusionQL,
    EditPolicy,
    Softmax,
    UsageError,
    hyper,
)
from jaxrl.agents import protocol
from jaxrl.agents.improvement import candidates
from jaxrl.nn.critics import Critic, ValueFunction
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.flow import Flow, OneStep
from jaxrl.nn.policies import Gaussian, TanhGaussian
from jaxrl.training.gradient_steps import gradient_steps

KEY = jax.random.key(0)
SMALL = {"hidden_dims": (5,), "activation": "tanh"}
FLOW = Flow(**SMALL, sample_steps=3)
DIFFUSION = Diffusion(**SMALL, num_steps=2, time_embedding="raw")
COMMON = {"gamma": 0.9, "tau": 0.3}


def fql(**options):
    parts = {"policy": FLOW, "one_step": OneStep(**SMALL), "critic": Critic(**SMALL)}
    return FQL(**parts, **COMMON, **{"learning_rate": 0.02, "alpha": 0.7} | options).bind(ref.SPEC)


def diffusion_ql(policy=DIFFUSION, **options):
    critic = Critic(**SMALL, num_critics=3)
    rates = {"actor_learning_rate": 0.03, "critic_learning_rate": 0.02}
    agent = DiffusionQL(policy=policy, critic=critic, **COMMON, **rates, **options)
    return agent.bind(ref.SPEC)


def idql(kind=IDQL, policy=DIFFUSION, **options):
    parts = {"policy": policy, "critic": Critic(**SMALL), "value": ValueFunction(**SMALL)}
    names = ("actor", "critic", "value")
    rates = {f"{name}_learning_rate": rate for name, rate in zip(names, (0.03, 0.02, 0.04))}  # noqa: B905
    return kind(**parts, **COMMON, **rates, **options).bind(ref.SPEC)


# --- networks, written out ----------------------------------------------------------------------


def mlp(layers, x):
    for name in sorted(name for name in layers if name.startswith("layer_")):
        x = jnp.tanh(x @ layers[name]["kernel"] + layers[name]["bias"])
    return x @ layers["head"]["kernel"] + layers["head"]["bias"]


def denoiser(params, x, time, obs):
    """Noisy action, time as it is, observation."""
    time = jnp.broadcast_to(time, x.shape[:-1])[..., None]
    obs = jnp.broadcast_to(obs, (*x.shape[:-1], obs.shape[-1]))
    return mlp(params["network"]["body"], jnp.concatenate([x, time, obs], -1))


def critics(params, obs, action):
    obs = jnp.broadcast_to(obs, (*action.shape[:-1], obs.shape[-1]))
    x = jnp.concatenate([obs, action], -1)
    return jax.vmap(lambda layers: mlp(layers, x)[..., 0])(params["network"])


def one_step(params, obs, noise):
    return mlp(params["network"], jnp.concatenate([obs, noise], -1))


def value(params, obs):
    return mlp(params["network"], obs)[..., 0]


def normal(key, *shape):
    return jax.random.normal(key, shape)


def polyak(target, online, tau):
    return jax.tree.map(lambda t, o: (1 - tau) * t + tau * o, target, online)


def assert_close(found, expected, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-6), found, expected)


# --- FQL ----------------------------------------------------------------------------------------


def flow_errors(params, batch, key):
    time_key, noise_key, _ = jax.random.split(key, 3)
    time = jax.random.uniform(time_key, (1, ref.BATCH))[0]
    x0 = normal(noise_key, 1, ref.BATCH, ref.ACTION)[0]
    x = x0 + time[:, None] * (batch.action - x0)
    return (denoiser(params, x, time, batch.obs) - (batch.action - x0)) ** 2


def fql_losses(params, known, target_critic, batch, key, agent):
    critic_key, actor_key = jax.random.split(key)
    shape = (ref.BATCH, ref.ACTION)
    following = one_step(known["one_step"], batch.next_obs, normal(critic_key, *shape))
    next_q = critics(target_critic, batch.next_obs, jnp.clip(following, -1, 1))
    spread = jnp.sqrt(((next_q - next_q.mean(0)) ** 2).mean(0))
    next_v = {"mean": next_q.mean(0), "min": next_q.min(0)}[agent.target_q]
    y = batch.reward + batch.discount * (next_v - agent.pessimism * spread)
    critic_loss = ((critics(params["critic"], batch.obs, batch.action) - y) ** 2).mean()

    flow_key, noise_key = jax.random.split(actor_key)
    z = normal(noise_key, *shape)
    x = z
    for i in range(3):
        x = x + denoiser(known["policy"], x, i / 3, batch.obs) / 3
    action = one_step(params["one_step"], batch.obs, z)
    distillation = ((action - jnp.clip(x, -1, 1)) ** 2).mean()
    q = critics(known["critic"], batch.obs, jnp.clip(action, -1, 1)).mean(0)
    size = jax.lax.stop_gradient(jnp.abs(q).mean()) if agent.normalize_q_loss else 1.0
    flow = flow_errors(params["policy"], batch, flow_key).mean()
    return critic_loss + flow + agent.alpha * distillation - q.mean() / size


@pytest.mark.parametrize(
    "options", [{}, {"normalize_q_loss": False, "target_q": "min", "pessimism": 0.5}]
)
def test_update_of_fql(options):
    with jax.enable_x64(True):
        agent = fql(**options)
        state = ref.state(agent)
        learner, target = ref.Learner(agent, state), state.target_critic
        slopes = jax.jit(jax.grad(lambda *args: fql_losses(*args, agent)))
        for step in range(2):
            batch, key = ref.row(ref.batches(1, seed=step), 0), jax.random.key(step)
            known = learner.params["networks"]
            state, metrics = ref.update(agent, state, batch, key)
            learner.step("networks", slopes(known, known, target, batch, key), agent.learning_rate)
            target = polyak(target, known["critic"], agent.tau)  # the critics before the step
            assert_close(state.networks.params, learner.params["networks"])
            assert_close(state.target_critic, target)
        assert {"critic_loss", "actor_loss", "distillation_loss", "loss", "q"} <= {*metrics}


def test_fql_with_a_large_alpha_is_a_distilled_clone():
    """And nothing is learnt of the flow by distillation, nor of the critics by the policy."""
    agent = fql(alpha=1e7)
    state = jax.tree.map(lambda x: x.astype(jnp.float32), ref.state(agent))
    batch = jax.tree.map(jnp.float32, ref.row(ref.batches(1), 0))
    params = state.networks.params

    def clone(params):
        flow_key, noise_key = jax.random.split(KEY)
        z = normal(noise_key, ref.BATCH, ref.ACTION)
        flow = agent.policy.from_noise(state.networks.params["policy"], batch.obs, z)
        distance = ((one_step(params["one_step"], batch.obs, z) - flow) ** 2).mean()
        return flow_errors(params["policy"], batch, flow_key).mean() + agent.alpha * distance

    both = jax.jit(
        lambda p: (jax.grad(agent.actor_loss, has_aux=True)(p, state, batch, KEY)[0],
                   jax.grad(clone)(p))
    )  # fmt: skip
    found, expected = both(params)
    scaled = [jax.tree.map(lambda x: x / 1e7, tree["one_step"]) for tree in (found, expected)]
    assert_close(*scaled)
    assert_close(found["policy"], expected["policy"], 1e-4)
    assert all(not x.any() for x in jax.tree.leaves(found["critic"]))
    assert max(jnp.abs(x).max() for x in jax.tree.leaves(scaled[0])) > 1e-3


def test_fql_acts_with_the_one_step_policy():
    agent = fql()
    state = ref.state(agent)
    obs = normal(KEY, 4, ref.OBS)
    action, _, _ = jax.jit(lambda: agent.act(state, (), obs, KEY, "greedy"))()
    noise = normal(KEY, 4, ref.ACTION)
    expected = jnp.clip(one_step(state.networks.params["one_step"], obs, noise), -1, 1)
    assert_close(action, expected)


# --- Diffusion-QL -------------------------------------------------------------------------------

_T = np.arange(1, 3)
BETA = 1 - np.exp(-0.1 / 2 - 0.5 * 9.9 * (2 * _T - 1) / 4)
ALPHA_BAR = np.cumprod(1 - BETA)


def diffusion_errors(params, batch, key):
    time_key, noise_key, _ = jax.random.split(key, 3)
    k = jnp.floor(2 * jax.random.uniform(time_key, (1, ref.BATCH))[0]).astype(int)
    noise = normal(noise_key, 1, ref.BATCH, ref.ACTION)[0]
    a = jnp.asarray(ALPHA_BAR)[k][:, None]
    x = jnp.sqrt(a) * batch.action + jnp.sqrt(1 - a) * noise
    return (denoiser(params, x, k, batch.obs) - noise) ** 2


def diffusion_sample(params, obs, key):
    """DDPM's posterior, with the predicted action clipped (Ho et al. 2020, eq. 7)."""
    x, *noise = normal(key, 3, ref.BATCH, ref.ACTION)
    for k, z in zip((1, 0), noise, strict=True):
        a, before, beta = ALPHA_BAR[k], (1.0, ALPHA_BAR[0])[k], BETA[k]
        action = (x - np.sqrt(1 - a) * denoiser(params, x, k, obs)) / np.sqrt(a)
        action = jnp.clip(action, -1, 1)
        mean = beta * np.sqrt(before) / (1 - a) * action
        mean += (1 - before) * np.sqrt(1 - beta) / (1 - a) * x
        x = mean + np.sqrt(beta * (1 - before) / (1 - a)) * z
    return jnp.clip(x, -1, 1)


def diffusion_ql_losses(state, agent, batch, key):
    """The critics' loss of their parameters, and the actor's of its own and the critics'."""
    critic_key, actor_key = jax.random.split(key)
    next_actions = [
        diffusion_sample(state.target_actor, batch.next_obs, each)
        for each in jax.random.split(critic_key, agent.num_next_actions)
    ]
    next_q = jnp.stack([critics(state.target_critic, batch.next_obs, a) for a in next_actions])
    y = batch.reward + batch.discount * next_q.max(0).min(0)

    def critic_loss(params):
        return ((critics(params, batch.obs, batch.action) - y) ** 2).mean(-1).sum()

    def actor_loss(params, critic):
        imitation_key, action_key, choice_key = jax.random.split(actor_key, 3)
        q = critics(critic, batch.obs, diffusion_sample(params, batch.obs, action_key))
        c, o = jax.random.permutation(choice_key, 3)[:2]
        size = jax.lax.stop_gradient(jnp.abs(q[o]).mean())
        errors = diffusion_errors(params, batch, imitation_key)
        return errors.mean() - agent.eta * q[c].mean() / size

    return critic_loss, actor_loss


def test_update_of_diffusion_ql():
    with jax.enable_x64(True):
        agent = diffusion_ql(eta=0.5, num_next_actions=3, ema_decay=0.6, ema_every=2, ema_start=1)
        agent = agent.replace(optimizer=agent.optimizer.replace(max_grad_norm=0.5))
        state = ref.state(agent)
        learner, first = ref.Learner(agent, state), state.target_actor

        @jax.jit
        def critic_slopes(state, batch, key):
            loss, _ = diffusion_ql_losses(state, agent, batch, key)
            return jax.grad(loss)(state.critic.params)

        @jax.jit
        def actor_slopes(state, critic, batch, key):
            _, loss = diffusion_ql_losses(state, agent, batch, key)
            return jax.grad(loss)(state.actor.params, critic)

        for step in range(3):
            batch, key = ref.row(ref.batches(1, seed=step), 0), jax.random.key(step)
            new, _ = ref.update(agent, state, batch, key)
            learner.step("critic", critic_slopes(state, batch, key), 0.02)
            slopes = actor_slopes(state, learner.params["critic"], batch, key)
            learner.step("actor", slopes, 0.03)
            target = polyak(state.target_critic, learner.params["critic"], 0.3)
            # The average moves on even steps, after the first.
            average = polyak(first, learner.params["actor"], 0.4) if step == 2 else first
            state = new
            for name in ("critic", "actor"):
                assert_close(getattr(state, name).params, learner.params[name], 1e-4)
            assert_close(state.target_critic, target, 1e-4)
            assert_close(state.target_actor, average, 1e-4)


def test_diffusion_ql_averages_every_second_step_however_rare_the_actor_s_are():
    agent = diffusion_ql(policy_delay=2, ema_every=2, ema_start=0, ema_decay=0.4)
    state, batches = agent.init(KEY), jax.tree.map(jnp.float32, ref.batches(4))
    first = state.target_actor
    (after, _), moved = jax.jit(partial(gradient_steps, agent))(state, batches, KEY), []
    jax.tree.map(lambda a, b: moved.append(np.abs(a - b).max()), after.target_actor, first)
    assert max(moved) > 1e-3


@pytest.mark.parametrize("kind", ["DiffusionQL", "IDQL", "IFQL"])
def test_acting_takes_the_best_sample(kind):
    """Of the policy or of its average, by the critics or by their targets."""
    made = {"DiffusionQL": diffusion_ql, "IDQL": idql, "IFQL": lambda **o: idql(IFQL, FLOW, **o)}
    agent = made[kind](improver=Softmax(6, 0.0) if kind == "DiffusionQL" else BestOf(6))
    state, obs = ref.state(agent), normal(KEY, 4, ref.OBS)
    policy = state.actor.params if kind == "DiffusionQL" else state.target_actor
    critic = state.critic.params if kind == "IFQL" else state.target_critic

    @jax.jit
    def found():
        samples = candidates(agent.policy, policy, obs, jax.random.split(KEY)[0], 6)
        return samples, critics(critic, obs, samples), agent.act(state, (), obs, KEY, "greedy")[0]

    samples, q, action = found()
    assert q.shape == (agent.critic.num_critics, 6, 4)
    index = np.argmin(-np.asarray(q).min(0), axis=0)
    assert_close(action, np.asarray(samples)[index, np.arange(4)])


# --- IDQL and IFQL ------------------------------------------------------------------------------


def with_parts(state, other, names):
    return state._replace(**{name: getattr(other, name) for name in names})


def test_critics_of_idql_are_those_of_iql():
    """From the same parameters, whatever the policies are; the policy is a clone."""
    with jax.enable_x64(True):
        agent = idql(lr_decay_steps=3.0, ema_decay=0.6)
        parts = {name: getattr(agent, name) for name in ("critic", "value")}
        rates = {"critic_learning_rate": 0.02, "value_learning_rate": 0.04}
        iql = IQL(policy=Gaussian(**SMALL), **parts, **rates, **COMMON).bind(ref.SPEC)
        state, shared = ref.state(agent), ("critic", "value", "target_critic")
        other = with_parts(ref.state(iql), state, shared)
        learner, average = ref.Learner(agent, state), state.target_actor
        slopes = jax.jit(jax.grad(lambda p, batch, key: diffusion_errors(p, batch, key)
                                  .sum(-1).mean()))  # fmt: skip
        for step in range(2):
            batch, key = ref.row(ref.batches(1, seed=step), 0), jax.random.key(step)
            rate = 0.03 * (1 + np.cos(np.pi * step / 3)) / 2
            learner.step("actor", slopes(state.actor.params, batch, key), rate)
            average = polyak(average, learner.params["actor"], 0.4)
            state, metrics = ref.update(agent, state, batch, key)
            other, _ = ref.update(iql, other, batch, key)
            for name in shared:
                assert_close(getattr(state, name), getattr(other, name), 1e-9)
            assert_close(state.actor.params, learner.params["actor"])
            assert_close(state.target_actor, average)
        assert {"actor_loss", "value_loss", "critic_loss", "advantage"} <= {*metrics}


def test_update_of_ifql():
    """All at once, each by the networks before the step."""
    with jax.enable_x64(True):
        agent = idql(IFQL, FLOW, target_q="mean", pessimism=0.5)
        state = ref.state(agent)
        learner, target = ref.Learner(agent, state), state.target_critic

        @jax.jit
        def slopes(known, target, batch, key):
            q = critics(target, batch.obs, batch.action)
            q = q.mean(0) - 0.5 * q.std(0)

            def value_loss(params):
                u = q - value(params, batch.obs)
                return (jnp.abs(0.9 - (u < 0)) * u**2).mean()

            y = batch.reward + batch.discount * value(known["value"], batch.next_obs)
            losses = {
                "value": value_loss,
                "critic": lambda p: ((critics(p, batch.obs, batch.action) - y) ** 2).sum(0).mean(),
                "actor": lambda p: flow_errors(p, batch, key).sum(-1).mean(),
            }
            return {name: jax.grad(loss)(known[name]) for name, loss in losses.items()}

        for step in range(2):
            batch, key = ref.row(ref.batches(1, seed=step), 0), jax.random.key(step)
            known = dict(learner.params)
            found = slopes(known, target, batch, key)
            for name, rate in (("critic", 0.02), ("actor", 0.03), ("value", 0.04)):
                learner.step(name, found[name], rate)
            target = polyak(target, known["critic"], 0.3)
            state, _ = ref.update(agent, state, batch, key)
            for name in learner.params:
                assert_close(getattr(state, name).params, learner.params[name])
            assert_close(state.target_critic, target)
            assert_close(state.target_actor, state.actor.params)  # no average


# --- all of them --------------------------------------------------------------------------------


def test_numbers_and_seeds_are_swept_in_one_program():
    batch = jax.tree.map(jnp.float32, ref.row(ref.batches(1), 0))
    for agent, name in (
        (fql(), "alpha"),
        (diffusion_ql(), "eta"),
        (idql(policy=DIFFUSION.replace(dropout=0.1)), "expectile"),
        (idql(IFQL, FLOW), "expectile"),
    ):

        def member(key, number, agent=agent, name=name):
            agent = agent.replace(**{name: number})
            return agent.update(agent.init(key), batch, key)

        seeds, numbers = jax.random.split(KEY, 3), jnp.array([0.1, 0.5, 0.9])
        state, metrics = jax.eval_shape(jax.vmap(member), seeds, numbers)
        assert {leaf.shape[0] for leaf in jax.tree.leaves((state, metrics))} == {3}
        program = jax.make_jaxpr(member)(KEY, 0.5).jaxpr
        read = [x for equation in program.eqns for x in equation.invars]
        assert any(x is program.invars[1] for x in read), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "name"), [(fql(), "alpha"), (diffusion_ql(), "improver.temperature")]
)
def test_members_of_a_sweep_are_what_they_are_alone(agent, name):
    batch = jax.tree.map(jnp.float32, ref.row(ref.batches(1), 0))
    start = jax.tree.map(lambda x: x.astype(jnp.float32), ref.state(agent))

    def member(number):
        swept = hyper.replace(agent, {name: number})
        state, _ = swept.update(start, batch, KEY)
        return jax.tree.leaves(state), swept.act(state, (), 9.0 * batch.obs, KEY, "explore")[0]

    numbers = jnp.array([0.01, 30.0])
    found = jax.jit(jax.vmap(member))(numbers)
    for i, number in enumerate(numbers):
        assert_close(jax.tree.map(lambda x, i=i: x[i], found), jax.jit(member)(number), 1e-3)
    assert np.abs(np.diff(found[1], axis=0)).max() > 1e-3


def test_critics_value_the_actions_that_are_played():
    """A Gaussian's samples are not bounded, and environments clip them."""
    obs, seen = jnp.zeros((64, ref.OBS)), []
    for agent in (idql(policy=Gaussian(**SMALL)), diffusion_ql(policy=Gaussian(**SMALL))):
        critic = agent.critic

        def spied(params, obs, action, critic=critic):
            seen.append(float(jnp.abs(action).max()))
            return critic(params, obs, action)

        spy = agent.replace(critic=spied)
        action = spy.act(agent.init(KEY), (), obs, KEY, "explore")[0]
        assert np.abs(action).max() == 1.0
    assert seen == [1.0, 1.0]


def test_wrong_parts_are_one_line():
    with pytest.raises(
        UsageError, match=r"FQL needs a policy with from_noise\(\), which Gaussian lac"
    ):
        FQL(policy=Gaussian()).bind(ref.SPEC)
    with pytest.raises(UsageError, match=r"critic.num_critics is 1; DiffusionQL needs at least 2"):
        protocol.check(DiffusionQL(critic=Critic(num_critics=1)), 8)
    with pytest.raises(UsageError, match="target_q is 'max'; did you mean mean"):
        protocol.check(IDQL(target_q="max"), 8)


def test_dropout_is_refused_where_nothing_imitates():
    policy, normal, flow = (x(dropout=0.1) for x in (Gaussian, TanhGaussian, Flow))
    protocol.check(IQL(policy=policy), 8)
    protocol.check(EditPolicy(policy=flow), 8)
    for agent, name in (
        (PPO(policy=policy), "policy"),
        (DSRL(actor=normal), "actor"),
        (EditPolicy(edit=normal), "edit"),
        (EditPolicy(policy=flow, frozen=True), "policy"),
    ):
        line = f"{name}.dropout is 0.1, .*, and {type(agent).__name__} has none for its {name}; le"
        with pytest.raises(UsageError, match=line):
            protocol.check(agent, 8)
