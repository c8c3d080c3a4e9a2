"""DPPO and ReinFlow: PPO on the chains of diffusion and flow policies."""

from __future__ import annotations

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from shared import (
    EXPERIMENTS,
    assert_same_bits,
    numerical_gradient,
    rows_of_pendulum,
    run_script,
    script_module,
)

from jaxrl import (
    BC,
    DPPO,
    Chunks,
    Dataset,
    NormalizeObs,
    Offline,
    OnPolicy,
    ReinFlow,
    UsageError,
    VectorEnv,
    hyper,
    load_policy,
    make,
    run,
)
from jaxrl import metrics as m
from jaxrl.agents import chains
from jaxrl.data import Windows
from jaxrl.nn.critics import ValueFunction
from jaxrl.nn.diffusion import Diffusion, betas
from jaxrl.nn.flow import Flow, NoisyFlow
from jaxrl.nn.policies import Gaussian
from jaxrl.record.writers import write_d4rl
from jaxrl.training import rollout

pytestmark = pytest.mark.usefixtures("shared_programs")

KEY = jax.random.key(0)
SIZES = {"hidden_dims": (4,), "activation": "tanh", "time_embedding": "raw"}
CRITIC = ValueFunction(hidden_dims=(4,), activation="tanh")
K = 3


def dppo(**options):
    """DPPO of three steps, with tiny networks."""
    policy = Diffusion(num_steps=K, min_std=0.1, **SIZES)
    return DPPO(policy=policy, critic=CRITIC, **options)


def reinflow(**options):
    """ReinFlow of three steps, with tiny networks."""
    policy = NoisyFlow(sample_steps=K, std_hidden_dims=(4,), **SIZES)
    return ReinFlow(policy=policy, critic=CRITIC, **options)


AGENTS = {
    "dppo": functools.partial(dppo, gamma_denoising=0.9, first_clip_eps=0.002, fine_tuned_steps=2),
    "guard": functools.partial(dppo, gamma_denoising=0.9, clip_eps=0.003, normalize_ratio=True),
    "reinflow": functools.partial(reinflow, entropy_coef=0.1),
}
update = jax.jit(lambda agent, state, batch, key: agent.update(state, batch, key))


@functools.partial(jax.jit, static_argnums=2)
def rollout_from(agent, state, venv, key):
    reset_key, key = jax.random.split(key)
    return rollout(agent, state, venv, venv.reset(reset_key), (), key, 8)[2]


@functools.cache
def played(name):
    """An agent with large weights, its state, and a rollout ``[8, 4]``; half the steps end."""
    agent = AGENTS[name](
        actor_learning_rate=0.01,
        critic_learning_rate=0.02,
        lr_decay_steps=4.0,
        update_epochs=2,
        num_minibatches=1,
    )
    venv = VectorEnv(make("gymnax/Pendulum-v1"), 4, max_steps=5)
    agent = agent.bind(venv.spec)
    state = agent.init(KEY)
    noise = [
        jax.tree.map(lambda p, i=i: p + 0.3 * jax.random.normal(jax.random.key(i), p.shape), x)
        for i, x in enumerate((state.actor.params, state.critic.params))
    ]
    actor, critic = map(agent.optimizer.start, noise)
    state = state._replace(actor=actor, critic=critic, updates=jnp.int32(1))
    if name == "dppo":
        state = state._replace(pretrained=agent.init(jax.random.key(5)).actor.params)
    return agent, state, rollout_from(agent, state, venv, jax.random.key(1))


# --- numpy transcriptions -----------------------------------------------------------------------


def mlp(params, x):
    layer, head = params["layer_0"], params["head"]
    return np.tanh(x @ layer["kernel"] + layer["bias"]) @ head["kernel"] + head["bias"]


def network(params, x, time, obs):
    """The denoiser at one time."""
    inputs = [x, np.full((*x.shape[:-1], 1), time), obs]
    return mlp(params["network"]["body"], np.concatenate(inputs, axis=-1))


def diffusion_normals(params, obs, points):
    """Means and deviations of all steps behind ``points``, DDPM's posterior: ``[..., k, A]``."""
    beta = betas("vp", K)
    alpha_bar = np.cumprod(1 - beta)
    count = points.shape[-2] - 1
    means, stds = [], []
    for i, k in enumerate(range(count - 1, -1, -1)):
        x, before = points[..., i, :], alpha_bar[k - 1] if k else 1.0
        epsilon = network(params, x, k, obs)
        action = (x - np.sqrt(1 - alpha_bar[k]) * epsilon) / np.sqrt(alpha_bar[k])
        action = np.clip(action, -1, 1)
        weight = np.sqrt(before) * beta[k] / (1 - alpha_bar[k])
        rest = np.sqrt(1 - beta[k]) * (1 - before) / (1 - alpha_bar[k])
        means.append(weight * action + rest * x)
        std = np.sqrt(beta[k] * (1 - before) / (1 - alpha_bar[k]))
        stds.append(np.full_like(x, max(std, 0.1)))
    return np.stack(means, axis=-2), np.stack(stds, axis=-2)


def flow_normals(params, obs, points):
    means, stds = [], []
    for i in range(K):
        x, time = points[..., i, :], i / K
        means.append(x + network(params, x, time, obs) / K)
        seen = np.concatenate([obs, np.full((*obs.shape[:-1], 1), time)], axis=-1)
        share = 0.5 * (np.tanh(mlp(params["std"], seen)) + 1)
        stds.append(0.1 ** (1 - share) * 0.24**share)
    return np.stack(means, axis=-2), np.stack(stds, axis=-2)


NORMALS = {"dppo": diffusion_normals, "guard": diffusion_normals, "reinflow": flow_normals}


def transcribed_loss(name, agent, params, rows, acted):
    """The actor's loss; ``acted`` are mean and deviation of the policy that acted."""
    obs, points, advantage = rows
    (mean, std), (old_mean, old_std) = NORMALS[name](params, obs, points), acted
    x = points[..., 1:, :]
    A = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    log_ratio = norm.logpdf(x, mean, std) - norm.logpdf(x, old_mean, old_std)
    if name == "reinflow":
        ratio, eps = np.exp(log_ratio.mean((-2, -1))), agent.clip_eps
        entropy = norm.entropy(0, std).mean()
        surrogate = np.minimum(ratio * A, np.clip(ratio, 1 - eps, 1 + eps) * A)
        return -surrogate.mean() - agent.entropy_coef * entropy
    if name == "guard":  # as GRPO-Guard writes it
        log_ratio = std * log_ratio + (mean - old_mean) ** 2 / (2 * std)
    total, steps = 0.0, mean.shape[-2]
    first = agent.first_clip_eps or agent.clip_eps
    for i in range(steps):
        ratio, share = np.exp(log_ratio[:, i].mean(-1)), i / (steps - 1)
        eps = first + (agent.clip_eps - first) * (np.exp(3 * share) - 1) / (np.exp(3) - 1)
        own = A * agent.gamma_denoising ** (steps - 1 - i)
        total += np.minimum(ratio * own, np.clip(ratio, 1 - eps, 1 + eps) * own).mean()
    return -total / steps


def adam(loss, params, rate):
    """Two steps of Adam by numerical gradients."""
    mean = var = 0.0
    for step in (1, 2):
        gradient, leaves, tree = numerical_gradient(loss, params)
        g = np.concatenate([x.ravel() for x in gradient])
        mean, var = 0.9 * mean + 0.1 * g, 0.999 * var + 0.001 * g**2
        change = (mean / (1 - 0.9**step)) / (np.sqrt(var / (1 - 0.999**step)) + 1e-8)
        moved = np.concatenate([x.ravel() for x in leaves]) - rate * change
        pieces = np.split(moved, np.cumsum([x.size for x in leaves])[:-1])
        params = tree.unflatten([p.reshape(x.shape) for p, x in zip(pieces, leaves, strict=True)])
    return params


def doubles(tree):
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


@pytest.mark.parametrize("name", AGENTS)
def test_one_update_equals_a_numpy_transcription(name):
    agent, state, batch = played(name)
    new, metrics = update(agent, state, batch, jax.random.key(3))
    actor, critic = doubles(state.actor.params), doubles(state.critic.params)
    obs, next_obs, reward, points = doubles(
        (batch.obs, batch.next_obs, batch.reward, batch.extras["trace"])
    )
    value, next_value = (mlp(critic["network"], x)[..., 0] for x in (obs, next_obs))
    T, N = reward.shape
    advantage = np.zeros((T, N))
    for n in range(N):
        g = 0.0
        for t in reversed(range(T)):
            alive = 0.0 if batch.terminated[t, n] else 1.0
            delta = reward[t, n] + agent.gamma * alive * next_value[t, n] - value[t, n]
            cut = batch.terminated[t, n] or batch.truncated[t, n]
            g = delta + (0.0 if cut else agent.gamma * agent.gae_lambda * g)
            advantage[t, n] = g
    rows = obs, points, advantage = [
        x.reshape(T * N, *x.shape[2:]) for x in (obs, points, advantage)
    ]
    target = advantage + value.reshape(-1)
    acted = NORMALS[name](actor, obs, points)

    def actor_loss(params):
        return transcribed_loss(name, agent, params, rows, acted)

    def critic_loss(params):
        return 0.5 * np.mean((mlp(params["network"], obs)[:, 0] - target) ** 2)

    expected = adam(actor_loss, actor, 0.0075), adam(critic_loss, critic, 0.015)
    for found, wanted in zip((new.actor, new.critic), expected, strict=True):
        for x, y in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4)
    values = m.values(metrics)
    assert values["skipped_updates"] == 0 and values["clip_fraction"] > 0.03 and values["kl"] > 0
    assert int(new.updates) == 2
    if name == "dppo":  # the frozen steps stay as they are
        assert_same_bits(new.pretrained, state.pretrained)


# --- chains and ratios --------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_the_chain_s_log_probability_is_the_sum_of_its_normal_steps(name):
    agent, state, batch = played(name)
    points = batch.extras["trace"]
    steps = 2 if name == "dppo" else K
    assert points.shape == (8, 4, steps + 1, 1)
    np.testing.assert_allclose(np.clip(points[..., -1, :], -1, 1), batch.action, atol=1e-6)
    mean, std = NORMALS[name](doubles(state.actor.params), doubles(batch.obs), doubles(points))
    by_hand = norm.logpdf(doubles(points)[..., 1:, :], mean, std).sum((-2, -1))

    @jax.jit
    def scored(params, obs, points):
        if name == "reinflow":
            return agent.log_prob(params, obs, points)[0] * K
        found, std = agent.step_normals(params, obs, points)
        return jax.scipy.stats.norm.logpdf(points[..., 1:, :], found, std).sum((-2, -1))

    found = scored(state.actor.params, batch.obs, points)
    np.testing.assert_allclose(found, by_hand, rtol=1e-4, atol=1e-4)
    assert by_hand.std() > 0.5


@jax.jit
def exactly_one(agent, params, batch):
    """Whether all ratios are 1 where the policy that acted is the present one."""
    points = batch.extras["trace"]
    if isinstance(agent, ReinFlow):
        old, _ = agent.log_prob(params, batch.obs, points)
        log_ratio = agent.log_prob(params, batch.obs, points)[0] - old
    else:
        old, _ = agent.step_normals(params, batch.obs, points)
        log_ratio = agent.log_ratio(params, chains.Minibatch(batch.obs, points, old, (), ()))
    return jnp.all(jnp.exp(log_ratio) == 1.0)


@pytest.mark.parametrize("name", AGENTS)
def test_the_ratio_is_one_before_the_first_step(name):
    agent, state, batch = played(name)
    still = agent.replace(update_epochs=1, num_minibatches=4, actor_learning_rate=1e-30)
    values = m.values(update(still, state, batch, jax.random.key(3))[1])
    assert abs(values["kl"]) < 1e-10 and values["clip_fraction"] == 0
    assert exactly_one(agent, state.actor.params, batch)
    # and is not one after a step
    after = m.values(update(agent, state, batch, jax.random.key(3))[1])
    assert after["kl"] > 1e-7


def guard_rows():
    """Points, the means that made them, others, and deviations of three steps of two elements."""
    keys = jax.random.split(KEY, 3)
    old, moved, noise = (jax.random.normal(key, (64, K, 2)) for key in keys)
    std = jnp.array([1.0, 0.3, 0.1])[:, None]
    points = jnp.concatenate([jnp.zeros((64, 1, 2)), old + std * noise], axis=1)
    return points, old, old + 0.05 * moved, std, noise


def test_the_normalised_ratio_is_that_of_grpo_guard():
    points, old, mean, std, noise = guard_rows()

    class Given(DPPO):
        def step_normals(self, params, obs, points):
            return params, std

    batch = chains.Minibatch((), points, old, (), ())
    guarded, plain = (Given(normalize_ratio=on).log_ratio(mean, batch) for on in (True, False))
    wanted = jnp.mean(noise * (mean - old), axis=-1)
    np.testing.assert_allclose(guarded, wanted, atol=1e-5)
    apart = jnp.mean(jnp.square(mean - old), axis=-1)
    np.testing.assert_allclose(guarded, std[:, 0] * plain + apart / (2 * std[:, 0]), atol=1e-5)
    # One scale and mean zero for all steps, which the plain ratios have not.
    spread, center = (np.asarray(f(guarded, axis=0)) for f in (np.std, np.mean))
    assert spread.max() < 1.5 * spread.min() and np.abs(center).max() < 0.02
    assert plain.std(0)[2] > 5 * plain.std(0)[0] and plain.mean(0)[2] < -0.05


def test_frozen_steps_are_the_pretrained_policy_s():
    agent, state, batch = played("dppo")
    spec = VectorEnv(make("gymnax/Pendulum-v1"), 1).spec
    whole = dppo().bind(spec)
    obs, key = batch.obs[0], jax.random.key(4)

    @jax.jit
    def play(state):
        return agent.act(state, (), obs, key, "explore")[2]["trace"]

    pretrained = state.actor._replace(params=state.pretrained)
    before = whole.init(KEY)._replace(actor=pretrained)
    action, _, extras = jax.jit(lambda: whole.act(before, (), obs, key, "explore"))()
    chain = extras["trace"]
    np.testing.assert_allclose(play(state)[:, 0], chain[:, 1], atol=1e-6)
    assert np.abs(play(state)[:, 1:] - chain[:, 2:]).max() > 1e-3
    np.testing.assert_allclose(play(state._replace(actor=pretrained)), chain[:, 1:], atol=1e-6)
    # With no frozen steps, it acts as the policy itself does.
    sample = jax.jit(lambda: whole.policy.sample(state.pretrained, obs, key))()
    np.testing.assert_allclose(action, sample[0], atol=1e-6)
    np.testing.assert_allclose(chain, sample[1].points, atol=1e-6)
    greedy, _, extras = jax.jit(lambda: whole.act(before, (), obs, key, "greedy"))()
    wanted = jax.jit(lambda: whole.policy.mode(state.pretrained, obs, key))()
    np.testing.assert_allclose(greedy, wanted, atol=1e-6)
    assert extras == {} and np.abs(greedy - action).max() > 1e-3


def test_reinflow_with_hardly_any_noise_is_the_plain_flow():
    agent, state, batch = played("reinflow")
    quiet = agent.replace(policy=agent.policy.replace(std_min=1e-7, std_max=2e-7))

    @jax.jit
    def play(obs):
        action, _, extras = quiet.act(state, (), obs, KEY, "explore")
        first = extras["trace"][..., 0, :]
        return action, agent.policy.from_noise(state.actor.params, obs, first)

    action, plain = play(batch.obs)
    np.testing.assert_allclose(action, plain, atol=1e-5)
    assert action.std() > 0.1


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sizes"), [(dppo, {"num_steps": 3}), (reinflow, {"sample_steps": 2})]
)
def test_it_solves_the_probe_of_actions(kind, sizes):
    env = make("probe/both", continuous=True)
    agent = kind(gamma=0.9, actor_learning_rate=3e-3, critic_learning_rate=1e-2, clip_eps=0.2)
    policy = agent.policy.replace(hidden_dims=(16,), activation="relu", **sizes)
    agent = agent.replace(policy=policy)
    trainer = OnPolicy(agent, VectorEnv(env, 16), num_steps=32)
    ts, metrics = jax.jit(trainer.train, static_argnums=1)(KEY, 20_000)
    obs = jnp.tile(jnp.array([[-1.0], [1.0]]), (32, 1))
    action, _, _ = trainer.agent.act(ts.agent, (), obs, KEY, "greedy")
    np.testing.assert_allclose(action, env.best_action(obs), atol=0.15)
    returns = metrics["episode_return"]
    assert returns[-5:].mean() > 0.95 > 0.6 > returns[0]


# --- from a clone, by scripts -------------------------------------------------------------------


def cloned(policy, horizon, folder):
    """A run of behaviour cloning on Pendulum's observations, in chunks, with two seeds."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(64, 3)).astype(np.float32)
    ends = np.zeros(64, bool)
    data = Dataset.of(obs, np.tanh(obs[:, :1]), obs[:, 0], obs, ends, ends)
    agent = NormalizeObs(Chunks(BC(policy=policy), horizon))
    env = VectorEnv(make("gymnax/Pendulum-v1"), 1)
    trainer = Offline(agent, env, batch_size=8, sampler=Windows(horizon, 1))
    options = {"eval_episodes": 1, "devices": 1, "quiet": True}
    run(trainer, 8, data=data, seeds=2, run_dir=folder, **options)


@pytest.mark.parametrize(
    ("name", "policy", "horizon", "more"),
    [
        (
            "dppo",
            Diffusion(hidden_dims=(8,), num_steps=3, schedule="cosine"),
            1,
            "--num-steps 3 --fine-tuned-steps 2",
        ),
        (
            "reinflow",
            Flow(hidden_dims=(8,), time_embedding="sinusoidal"),
            2,
            "--policy.sample-steps 2 --env-options execute=2",
        ),
    ],
)
def test_scripts_fine_tune_a_clone_and_resume(name, policy, horizon, more, tmp_path, monkeypatch):
    cloned(policy, horizon, tmp_path / "clone")
    words = f"--env gymnax/Pendulum-v1 --num-envs 2 --num-seeds 2 {more} --policy-from "
    words += f"{tmp_path / 'clone'} --total-steps 64 --policy.hidden-dims 8 --devices 1 --quiet "
    words += "--critic.hidden-dims 8 --eval-episodes 1 --eval-every 64 --checkpoint-every 32 "
    words = words.replace("--num-steps 3", "--agent.policy.num-steps 3") + "--num-steps 8"
    words += f" --sweep clip_eps=0.01,0.1 --no-anneal --run-dir {tmp_path}"
    with script_module(name) as script:
        monkeypatch.setattr(script, "make", functools.cache(script.make))  # to share programs
        run_script(script, f"{words}/whole".split())
        run_script(script, f"{words}/parts --total-steps 32".split())
        run_script(script, f"{words}/parts --resume".split())
    whole, parts = (
        load_policy(tmp_path / folder, seed=1, config=1) for folder in ("whole", "parts")
    )
    assert_same_bits(whole.state, parts.state)
    assert float(whole.state.statistics.size) == 64  # those of the clone
    assert whole.spec.action.shape == (horizon,)


# --- the benchmark ------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch):
    """``benchmarks/fine_tuning.py``, which trains nothing."""
    folder = EXPERIMENTS.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    with script_module("fine_tuning", folder) as script:
        monkeypatch.setattr(script, "clone", lambda *_: pytest.fail("training began"))
        monkeypatch.setattr(script, "draw", lambda *_: None)
        yield script


def test_rows_of_other_numbers_of_steps_are_not_mixed(benchmark, tmp_path):
    """The rows are of 200,000 steps, and of 5,000 after 5,000 offline, up to whole iterations."""
    out = tmp_path / "fine_tuning.json"
    shutil.copy(EXPERIMENTS.parent / "results" / "fine_tuning.json", out)
    asked = {"steps": 200_000, "offline_steps": 5_000, "online_steps": 5_000, "out": out}
    benchmark.main(("dppo", "ppo", "dsrl", "edit"), **asked)
    benchmark.main(("dsrl",), **asked | {"steps": 300_000})
    benchmark.main(("ppo",), **asked | {"online_steps": 9})
    for method, other, line in (
        ("ppo", {"steps": 300_000}, "dppo has 0 offline and 200704 environment steps, and --steps"),
        ("dsrl", {"online_steps": 6_000}, "dsrl has 5056 offline and 5032 environment steps, and"),
        ("pa_rl", {"offline_steps": 6_000}, "and --offline-steps, --online-steps ask for 6016 and"),
    ):
        with pytest.raises(UsageError, match=line) as error:
            benchmark.main((method,), **asked | other)
        assert str(error.value).endswith(f"another file, such as {tmp_path}/fine_tuning_2.json")


def test_a_dataset_of_an_environment_with_options_is_not_played_without_them(benchmark, tmp_path):
    env = make("gymnax/Pendulum-v1")
    known = {"env": env.name, "env_options": {"max_speed": 4.0}}
    path = write_d4rl(rows_of_pendulum(), tmp_path / "data.hdf5", env.spec, known)
    with pytest.raises(UsageError, match="with the options {'max_speed': 4.0}, and this benchm"):
        benchmark.main(dataset=str(path), out=tmp_path / "out.json")


# --- what cannot work ---------------------------------------------------------------------------

PENDULUM = VectorEnv(make("gymnax/Pendulum-v1"), 2)


@pytest.mark.parametrize(
    ("agent", "line"),
    [
        (dppo(fine_tuned_steps=4), "fine_tuned_steps is 4, and the policy has 3 steps; give at m"),
        (DPPO(policy=Gaussian()), "DPPO needs a policy with chain_steps"),
        (DPPO(policy=Diffusion()), "policy.min_std is 0; it must be more than 0"),
        (
            DPPO(policy=Diffusion(min_std=0.1, clip="samples")),
            "policy.clip is 'samples', and points that are clipped have no density; give 'denoi",
        ),
        (dppo(clip_eps=0.0), "clip_eps is 0; it must be more than 0"),
        (dppo(first_clip_eps=0.0), "first_clip_eps is 0; it must be more than 0"),
        (dppo(gamma_denoising=1.5), "gamma_denoising is 1.5; it must be at least 0 and at most 1"),
        (dppo(num_minibatches=3), "num_minibatches is 3, which does not divide the 16 transition"),
        (ReinFlow(policy=Flow()), r"ReinFlow needs a policy with stds\(\), which Flow lacks; give"),
        (
            ReinFlow(policy=NoisyFlow(std_min=0.5)),
            "policy.std_max is 0.24; it must be at least 0.5",
        ),
        (reinflow(entropy_coef=-1.0), "entropy_coef is -1; it must be at least 0"),
        (reinflow(num_minibatches=16), "num_minibatches is 16, and so its minibatches have 1 of"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(agent, line):
    with pytest.raises(UsageError, match=line) as error:
        OnPolicy(agent, PENDULUM, num_steps=8).check()
    assert "\n" not in str(error.value)


def test_numbers_are_swept():
    names = {*hyper.numbers(dppo(first_clip_eps=0.01)), *hyper.numbers(reinflow())}
    assert {"clip_eps", "first_clip_eps", "gamma_denoising", "policy.min_std"} <= names
    assert {"entropy_coef", "policy.std_min", "policy.std_max"} <= names
