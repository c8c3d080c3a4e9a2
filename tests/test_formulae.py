"""Closed forms: losses, distributions, statistics, permutations, initialisers, optimiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxrl import PPO, ScaleReward, losses, optim
from jaxrl.counters import counter_add, counter_value, counter_zero
from jaxrl.errors import UsageError
from jaxrl.nn import running_statistics as statistics
from jaxrl.nn.distributions import Categorical, Normal, TanhNormal
from jaxrl.nn.encoders import Flatten
from jaxrl.nn.initializers import orthogonal
from jaxrl.sharding import reducing_over
from jaxrl.shuffle import permutations
from jaxrl.types import Box

RNG = np.random.default_rng(0)


def gae_by_definition(reward, value, next_value, terminated, truncated, gamma, lam):
    """Every advantage as its own sum of discounted TD errors, within its episode."""
    T, N = reward.shape
    advantage = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                bootstrap = 0.0 if terminated[k, n] else next_value[k, n]
                advantage[t, n] += weight * (reward[k, n] + gamma * bootstrap - value[k, n])
                weight *= gamma * lam
                if terminated[k, n] or truncated[k, n]:
                    break
    return advantage


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_equals_its_definition_with_both_kinds_of_end(lam):
    T, N = 23, 4
    reward, value, next_value = RNG.normal(size=(3, T, N)).astype(np.float32)
    terminated = RNG.random((T, N)) < 0.15
    truncated = (RNG.random((T, N)) < 0.15) & ~terminated
    found = losses.gae(reward, value, next_value, terminated, truncated, 0.97, lam)
    expected = gae_by_definition(reward, value, next_value, terminated, truncated, 0.97, lam)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def lambda_return_by_definition(reward, next_value, terminated, truncated, gamma, lam):
    """Every return as its own mixture of all n-step returns, within its episode."""
    T, N = reward.shape
    found = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            rewards, weight = 0.0, 1.0  # so far, and the weight that the longer returns have left
            for k in range(t, T):
                rewards += gamma ** (k - t) * reward[k, n]
                bootstrap = 0.0 if terminated[k, n] else gamma ** (k - t + 1) * next_value[k, n]
                last = terminated[k, n] or truncated[k, n] or k == T - 1
                found[t, n] += (weight if last else (1 - lam) * weight) * (rewards + bootstrap)
                weight *= lam
                if last:
                    break
    return found


@pytest.mark.parametrize("lam", [0.0, 0.65, 1.0])
def test_lambda_returns_equal_their_definition_with_both_kinds_of_end(lam):
    T, N = 23, 4
    reward, next_value = RNG.normal(size=(2, T, N)).astype(np.float32)
    terminated = RNG.random((T, N)) < 0.15
    truncated = (RNG.random((T, N)) < 0.15) & ~terminated
    terminated[-1], truncated[-1] = [True, False, False, False], [False, True, False, False]
    found = losses.lambda_returns(reward, next_value, terminated, truncated, 0.97, lam)
    expected = lambda_return_by_definition(reward, next_value, terminated, truncated, 0.97, lam)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_lambda_returns_are_advantages_and_the_value_where_values_agree():
    T, N = 16, 3
    reward, value = RNG.normal(size=(2, T, N)).astype(np.float32)
    next_value = np.concatenate([value[1:], RNG.normal(size=(1, N)).astype(np.float32)])
    never = np.zeros((T, N), bool)
    advantage = losses.gae(reward, value, next_value, never, never, 0.97, 0.8)
    found = losses.lambda_returns(reward, next_value, never, never, 0.97, 0.8)
    np.testing.assert_allclose(found, advantage + value, rtol=1e-4, atol=1e-5)


def test_the_value_of_an_action_is_read_and_its_gradient_is_at_that_action():
    q, action = RNG.normal(size=(5, 3)).astype(np.float32), np.array([0, 2, 1, 1, 0])
    found, gradient = jax.value_and_grad(lambda q: losses.value_of_action(q, action).sum())(q)
    assert found == pytest.approx(q[np.arange(5), action].sum(), rel=1e-5)
    np.testing.assert_array_equal(gradient, np.eye(3)[action])


def test_normalised_values_have_no_mean_and_unit_deviation_and_one_value_is_refused():
    np.testing.assert_allclose(losses.normalised(jnp.array([[1.0], [5.0]])), [[-1.0], [1.0]])
    for shape in [(), (1,), (1, 1), (0,)]:
        with pytest.raises(UsageError, match="one value is its own mean; give at least 2"):
            losses.normalised(jnp.zeros(shape))


def test_clipped_losses_equal_the_papers():
    ratio, advantage = np.exp(RNG.normal(size=100)), RNG.normal(size=100)
    expected = -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    found = losses.clipped_surrogate(jnp.array(ratio), jnp.array(advantage), 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    value, old, target = RNG.normal(size=(3, 100))
    clipped = old + np.clip(value - old, -0.2, 0.2)
    expected = np.maximum((value - target) ** 2, (clipped - target) ** 2)
    found = losses.clipped_value_loss(*map(jnp.array, (value, old, target)), 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_forbidden_indices_have_no_density_and_no_gradient() -> None:
    logits, mask = np.array([1.0, 2.0, 0.5]), np.array([True, False, True])
    p = np.where(mask, np.exp(logits), 0.0) / np.exp(logits[mask]).sum()
    surprise = -np.log(p[mask])

    def entropy(logits: jax.Array) -> jax.Array:
        return Categorical(jnp.where(mask, logits, -jnp.inf)).entropy()

    def log_prob(logits: jax.Array) -> jax.Array:
        return Categorical(jnp.where(mask, logits, -jnp.inf)).trace(jnp.int32(0)).log_prob

    np.testing.assert_allclose(entropy(logits), np.sum(p[mask] * surprise), rtol=1e-6)
    np.testing.assert_allclose(log_prob(logits), -surprise[0], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(log_prob)(logits), [1 - p[0], 0, -p[2]], atol=1e-6)
    slope = np.zeros(3)
    slope[mask] = p[mask] * (surprise - np.sum(p[mask] * surprise))
    np.testing.assert_allclose(jax.grad(entropy)(logits), slope, atol=1e-6)
    q = jnp.array([[1.0, -jnp.inf]])
    np.testing.assert_array_equal(losses.value_of_action(q, jnp.array([0])), [1.0])


def test_categorical_against_scipy():
    logits = jnp.array(RNG.normal(size=(5,)) * 2)
    p = np.exp(np.float64(logits))
    p /= p.sum()
    dist = Categorical(jnp.broadcast_to(logits, (40_000, 5)))
    counts = np.bincount(dist.sample(jax.random.key(1))[0], minlength=5)
    assert stats.chisquare(counts, p * counts.sum()).pvalue > 1e-3
    one = Categorical(jnp.broadcast_to(logits, (5, 5)))
    np.testing.assert_allclose(one.trace(jnp.arange(5)).log_prob, np.log(p), rtol=1e-5)
    np.testing.assert_allclose(one.entropy(), stats.entropy(p), rtol=1e-5)
    assert np.all(one.mode() == np.argmax(p))


def test_normal_against_scipy():
    mean, std, x = RNG.normal(size=3), np.exp(RNG.normal(size=3)), RNG.normal(size=(7, 3))
    dist = Normal(jnp.array(mean), jnp.array(std))
    expected = stats.norm(mean, std)
    found = dist.trace(jnp.array(x)).log_prob
    np.testing.assert_allclose(found, expected.logpdf(x).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(dist.entropy(), expected.entropy().sum(), rtol=1e-5)
    wide = Normal(jnp.broadcast_to(dist.mean, (20_000, 3)), dist.std)
    sampled, _ = wide.sample(jax.random.key(2))
    for i in range(3):
        assert stats.kstest(sampled[:, i], stats.norm(mean[i], std[i]).cdf).pvalue > 1e-3


def test_tanh_normal_density_integrates_to_one_and_entropy_is_its_mean():
    dist = TanhNormal(jnp.array([0.3]), jnp.array([0.8]))
    action = np.linspace(-1 + 1e-6, 1 - 1e-6, 400_001)
    density = np.exp(dist.trace(jnp.array(action)[:, None]).log_prob)
    assert np.trapezoid(density, action) == pytest.approx(1.0, abs=1e-3)
    exact = -np.trapezoid(density * np.log(np.maximum(density, 1e-30)), action)
    keys = jax.random.split(jax.random.key(0), 20_000)
    sampled = np.asarray(jax.vmap(dist.entropy)(keys))
    assert np.mean(sampled) == pytest.approx(exact, abs=4 * float(np.std(sampled)) / 20_000**0.5)


def test_tanh_normal_stays_finite_where_tanh_saturates():
    dist = TanhNormal(jnp.array([30.0, -30.0]), jnp.array([1.0, 1.0]))

    def loss(mean):
        action, trace = TanhNormal(mean, dist.std).sample(jax.random.key(0))
        return trace.log_prob + action.sum()

    value, grad = jax.value_and_grad(loss)(dist.mean)
    assert np.isfinite(value) and np.all(np.isfinite(grad))
    extreme = dist.trace(jnp.array([1.0, -1.0]))  # on the bounds
    assert np.isfinite(extreme.raw).all() and np.isfinite(extreme.log_prob)


FAMILIES = {
    "categorical": lambda m, s: Categorical(m),
    "normal": Normal,
    "squashed normal": TanhNormal,
}


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_a_trace_scores_its_sample_under_any_distribution(make):
    dist = make(jnp.array(RNG.normal(size=(3, 2))), jnp.ones((3, 2)))
    other = make(jnp.array(RNG.normal(size=(3, 2))), jnp.full((3, 2), 0.5))
    action, trace = dist.sample(jax.random.key(5))
    given = dist.trace(action)
    np.testing.assert_allclose(given.raw, trace.raw, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(given.log_prob, trace.log_prob, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(dist.log_prob(trace), trace.log_prob)
    np.testing.assert_allclose(other.log_prob(trace), other.trace(action).log_prob, rtol=1e-3)
    assert np.abs(other.log_prob(trace) - trace.log_prob).min() > 1e-3


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_shards_sample_rows_of_their_own_from_a_common_key(make):
    dist = make(jnp.zeros((4, 2)), jnp.ones((4, 2)))

    def on_shard(_):
        with reducing_over("shard"):
            return dist.sample(jax.random.key(5))[0]

    first, second = jax.vmap(on_shard, axis_name="shard")(jnp.arange(2))
    assert np.any(first != second)


def test_running_statistics_equal_numpys_over_all_batches():
    batches = [RNG.normal(3.0, 2.0, size=(4, n, 3)).astype(np.float32) for n in (1, 5, 64)]
    running = statistics.start(jax.ShapeDtypeStruct((3,), jnp.float32))
    np.testing.assert_array_equal(statistics.normalise(running, batches[0], 10.0), batches[0])
    for batch in batches:
        running = statistics.merge(running, jnp.array(batch))
    everything = np.concatenate([batch.reshape(-1, 3) for batch in batches])
    np.testing.assert_allclose(running.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(running.m2 / running.size, everything.var(0), rtol=1e-4)
    normalised = statistics.normalise(running, jnp.array(everything), 10.0)
    np.testing.assert_allclose(normalised.std(0), 1.0, rtol=1e-3)


def test_running_statistics_survive_large_offsets():
    running = statistics.start(jax.ShapeDtypeStruct((1,), jnp.float32))
    for _ in range(50):
        running = statistics.merge(running, jnp.array(1e4 + RNG.normal(size=(256, 1)), jnp.float32))
    assert (running.m2 / running.size)[0] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("rows", [1, 3])
def test_running_statistics_do_not_drift_where_their_size_is_rounded(rows):
    """From 2^24, one row leaves the size as it is, and three add four to it."""
    merges, size = 2**18, np.float32(2**24)
    running = statistics.RunningStatistics(size, jnp.zeros(1), jnp.full(1, size))

    def step(running, key):
        return statistics.merge(running, jax.random.normal(key, (rows, 1))), None

    after = jax.jit(lambda keys: jax.lax.scan(step, running, keys)[0])
    found = after(jax.random.split(jax.random.key(0), merges))
    assert found.size == size + {1: 0, 3: 4}[rows] * merges
    # The variance would be 1.5 % off either way, and further with every row.
    assert (found.m2 / found.size)[0] == pytest.approx(1.0, abs=4e-3)


@pytest.mark.parametrize(("dtype", "level"), [(np.float16, 100.0), (np.int32, 2.5e6)])
def test_statistics_of_narrow_floats_and_integers_do_not_overflow(dtype, level):
    rows = RNG.normal(level, level / 20, size=(128, 64, 2)).astype(dtype)
    running = statistics.start(jax.ShapeDtypeStruct((2,), dtype))
    running = statistics.merge(running, jnp.array(rows))
    exact = rows.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(running.mean, exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(running.m2 / running.size), exact.std(0), rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_rewards_and_saturated_actions_of_16_bits_are_learnt_as_float32(dtype):
    dist, one = TanhNormal(jnp.zeros((1, 1)), jnp.ones((1, 1))), jnp.ones((1, 1))
    assert jnp.isfinite(dist.trace(one).log_prob)
    assert dist.trace(one.astype(dtype)).log_prob == dist.trace(one).log_prob
    assert dist.log_probs(one.astype(dtype)) == dist.log_probs(one)
    learnt = ScaleReward(PPO(), 1e5).learnt_reward(jnp.full(2, 2.0, dtype))
    np.testing.assert_array_equal(learnt, 2e5)


@pytest.mark.parametrize("n", [1, 7, 512, 20480, 2 * 1009, 1000])
def test_permutations_are_permutations_and_differ(n):
    found = np.asarray(permutations(jax.random.key(3), n, 4))
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(n), (4, 1)))
    if n > 100:
        assert all((found[0] != other).mean() > 0.9 for other in found[1:])


def test_permutations_put_every_index_everywhere_and_mix_minibatches():
    n, count, blocks = 256, 4096, 4
    found = np.asarray(permutations(jax.random.key(0), n, count))
    where = np.argsort(found, axis=1) // (n // blocks)  # the minibatch of each index
    for index in (0, 1, 17, 255):
        counts = np.bincount(where[:, index], minlength=blocks)
        assert stats.chisquare(counts).pvalue > 1e-4
    # Two indices share a minibatch as often as under a uniform permutation, neighbours included.
    expected = (n / blocks - 1) / (n - 1)
    for a, b in [(0, 1), (0, 16), (0, 128), (5, 250), (32, 48)]:
        together = np.mean(where[:, a] == where[:, b])
        assert together == pytest.approx(expected, abs=5 * (expected / count) ** 0.5)


@pytest.mark.parametrize("n", [8 * 1009, 16 * 1009, 64 * 64])
def test_minibatches_are_spread_as_those_of_uniform_permutations(n):
    """Digits of unequal size once moved rows by one of 512 offsets: minibatches were windows."""
    blocks = np.asarray(permutations(jax.random.key(0), n, 300)).reshape(300, 4, -1)
    variance = blocks.mean(-1).var() / ((n * n - 1) / 12 / (n / 4) * 0.75)
    assert 0.8 < variance < 1.25


@pytest.mark.parametrize("shape", [(64, 64), (4, 64), (64, 2), (256, 256), (1, 1), (3, 3, 8, 16)])
def test_orthogonal_matrices_are_orthogonal(shape):
    keys = jax.random.split(jax.random.key(0), 8)
    for q in jax.vmap(lambda k: orthogonal(2.0)(k, shape))(keys):
        q = np.asarray(q).reshape(-1, shape[-1]) / 2.0
        gram = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=2e-4)


def test_orthogonal_matrices_have_no_preferred_direction():
    keys = jax.random.split(jax.random.key(0), 4000)
    q = np.asarray(jax.vmap(lambda k: orthogonal()(k, (3, 3)))(keys))
    assert np.abs(q.mean(0)).max() < 0.05
    np.testing.assert_allclose((q**2).mean(0), 1 / 3, atol=0.02)
    assert (np.linalg.det(q) > 0).mean() == pytest.approx(0.5, abs=0.05)


def test_observations_are_flattened_behind_their_leading_axes():
    flat = Flatten().bind(Box(-1, 1, (4, 3)), ("state",))
    x = jnp.arange(7.0 * 5 * 12).reshape(7, 5, 4, 3)
    np.testing.assert_array_equal(flat({}, x), x.reshape(7, 5, 12))
    assert flat.features == 12 and flat({}, x[0, 0]).shape == (12,)
    one = Flatten().bind(Box(-1, 1, (1, 4)), ("state",))  # leading axes of size 1 are no batch
    assert one({}, jnp.zeros((7, 1, 4))).shape == (7, 4) and one({}, jnp.zeros((1, 4))).shape == (
        4,
    )
    number = Flatten().bind(Box(-1, 1, ()), ("state",))
    assert number.features == 1 and number({}, jnp.zeros(7)).shape == (7, 1)
    two = Flatten(obs_keys=("b", "a")).bind({"a": Box(0, 1, (2,)), "b": Box(0, 1, (3,))}, ("a",))
    found = two({}, {"a": jnp.zeros((7, 2)), "b": jnp.ones((7, 3))})
    np.testing.assert_array_equal(found[0], [1, 1, 1, 0, 0])


@pytest.mark.parametrize(
    ("rectified", "optax_s"), [(False, optax.adam), (True, optax.radam)], ids=["Adam", "RAdam"]
)
def test_flattened_adam_equals_optax_tensor_by_tensor(rectified, optax_s):
    params = {"a": jnp.array(RNG.normal(size=(3, 2))), "b": jnp.array(RNG.normal(size=(5,)))}
    ours, theirs = params, params
    optimiser = optim.Adam(max_grad_norm=0.5, eps=1e-5, rectified=rectified)
    state = optimiser.init(params)
    reference = optax.chain(optax.clip_by_global_norm(0.5), optax_s(1e-2, eps=1e-5))
    reference_state = reference.init(params)
    for _ in range(8):  # RAdam adapts from the sixth on
        grads = jax.tree.map(lambda p: jnp.array(RNG.normal(size=p.shape) * 3), params)
        ours, state, _ = optimiser.step(grads, state, ours, 1e-2)
        updates, reference_state = reference.update(grads, reference_state)
        theirs = optax.apply_updates(theirs, updates)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(bad):
    params = {"a": jnp.ones(3)}
    optimiser = optim.Adam(0.5)
    state = optimiser.init(params)
    good, rotten = {"a": jnp.ones(3)}, {"a": jnp.array([1.0, bad, 1.0])}
    params, state, _ = optimiser.step(good, state, params, 0.1)
    after, skipped, metrics = optimiser.step(rotten, state, params, 0.1)
    np.testing.assert_array_equal(after["a"], params["a"])
    jax.tree.map(np.testing.assert_array_equal, skipped.moments, state.moments)
    assert (skipped.skipped, skipped.in_a_row) == (1, 1)
    assert metrics["skipped_updates"].total == 1 and metrics["grad_norm"].weight == 0
    _, again, _ = optimiser.step(rotten, skipped, after, 0.1)
    _, healed, _ = optimiser.step(good, again, after, 0.1)
    assert (again.in_a_row, healed.in_a_row, healed.skipped) == (2, 0, 2)


def test_minimize_names_its_metrics_after_the_loss_and_keeps_the_auxiliary():
    def critic_loss(w, x):
        return jnp.sum(jnp.square(w - x)), {"q": x}

    adam = optim.Adam()
    trained, aux, metrics = adam.minimize(critic_loss, adam.start(jnp.zeros(3)), 0.1, jnp.ones(3))
    np.testing.assert_allclose(trained.params, 0.1, rtol=1e-5)
    assert metrics["critic_loss"].total == 3 and aux["q"].shape == (3,)
    assert metrics["critic_grad_norm"].total == pytest.approx(12**0.5)
    names = {"critic_loss", "critic_grad_norm", "skipped_updates", "skipped_in_a_row"}
    assert metrics.keys() == names


def test_decoupled_weight_decay_equals_optax():
    params = {"a": jnp.array(RNG.normal(size=(3, 2))), "b": jnp.array(RNG.normal(size=(5,)))}
    ours, theirs = params, params
    optimiser = optim.AdamW(weight_decay=0.1)
    state, reference = optimiser.init(params), optax.adamw(1e-2, weight_decay=0.1)
    reference_state = reference.init(params)
    for _ in range(4):
        grads = jax.tree.map(lambda p: jnp.array(RNG.normal(size=p.shape)), params)
        ours, state, _ = optimiser.step(grads, state, ours, 1e-2)
        updates, reference_state = reference.update(grads, reference_state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for name in params:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_a_scalar_learnt_alone_does_not_decay():
    """As a temperature, whose gradient is 0 at the target entropy."""
    optimiser, log_alpha = optim.AdamW(weight_decay=0.1), jnp.log(jnp.float32(0.01))
    state = optimiser.init(log_alpha)
    after, _, _ = optimiser.step(jnp.float32(0.0), state, log_alpha, 1e-2)
    assert after == log_alpha


def test_the_minimum_over_critics_is_of_all_or_of_a_random_subset_in_common():
    q = jnp.array(RNG.normal(size=(4, 6)))
    key = jax.random.key(0)
    np.testing.assert_array_equal(losses.min_over_critics(q, None, key), q.min(0))
    pairs = {(i, j): np.minimum(q[i], q[j]) for i in range(4) for j in range(i)}
    counts = dict.fromkeys(pairs, 0)
    subset = jax.jit(jax.vmap(lambda key: losses.min_over_critics(q, 2, key)))
    for found in subset(jax.random.split(key, 600)):
        counts[next(pair for pair, least in pairs.items() if np.array_equal(least, found))] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_linear_decay_and_polyak():
    assert optim.linear_decay(jnp.int32(7), 0.0) == 1.0
    np.testing.assert_allclose(optim.linear_decay(jnp.arange(6), 4.0), [1, 0.75, 0.5, 0.25, 0, 0])
    np.testing.assert_allclose(optim.polyak(jnp.ones(2), jnp.zeros(2), 0.1), 0.9)


def test_counters_pass_two_to_the_32():
    counter = counter_zero()
    for _ in range(5):
        counter = counter_add(counter, 3_000_000_000)
    assert counter_value(counter) == 15_000_000_000
