"""``rng.scan`` against ``jax.lax.scan`` over keys: the same values, drawn before the loop."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import names
from shared import assert_same_bits, bits

from jaxrl import VectorEnv, make, rng
from jaxrl.sharding import reducing_over

STEPS = 7
KEY = jax.random.key(3)


def plain(step, carry, keys, xs=None):
    return jax.lax.scan(lambda c, kx: step(kx[0], c, kx[1]), carry, (keys, xs))


def keys_of(key, steps=STEPS):
    return jax.random.split(key, steps)


def looped(f, *args):
    """The primitives inside the loops of ``f``."""
    return names(jax.make_jaxpr(lambda *args: f(*args))(*args).jaxpr, looped=True)


def assert_close(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(bits(a), bits(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


# --- steps --------------------------------------------------------------------------------------


def normals(key, carry, x):
    one, two = jax.random.split(key)
    y = carry + jax.random.normal(one, (3,))
    return 0.9 * y, {"y": y, "u": jax.random.uniform(two, (2,), minval=-1.0) * jnp.sum(carry)}


def categoricals(key, carry, x):
    index = jax.random.categorical(key, carry, shape=(5,))
    return carry + 0.1 * jnp.mean(index), index


def integers(key, carry, x):
    one, two, three = jax.random.split(key, 3)
    drawn = jax.random.bits(one, (4,)), jax.random.randint(two, (2,), 0, 9 + 0 * x)
    return carry + 1, (drawn, jax.random.uniform(three), jax.random.permutation(three, 5), x)


def of_one_call(key, carry, x):
    """Everything is inside of calls, some with draws and the carry both."""

    @jax.jit
    def moved(key, carry):
        noise = jax.jit(lambda key: jax.random.normal(key, (3,)))(key)
        return jax.jit(lambda a, b: a * b + 1.0)(carry, noise)

    after = moved(key, carry)
    return after, after.sum()


def rejecting(key, carry, x):
    """Draws until one is above 1: a ``while`` on the key alone."""

    def body(state):
        key, _ = state
        key, draw_key = jax.random.split(key)
        return key, jax.random.normal(draw_key)

    _, found = jax.lax.while_loop(lambda state: state[1] < 1.0, body, (key, jnp.float32(0)))
    return carry * found, found + carry


def nested(key, carry, x):
    def inner(key, carry, x):
        return carry + jax.random.normal(key, carry.shape), jax.random.bits(key)

    own, inner_key = jax.random.split(key)
    carry, drawn = rng.scan(inner, carry, keys_of(inner_key, 3))
    return carry * jax.random.uniform(own), drawn


def twice(key, carry, x):
    own, inner_key = jax.random.split(key)
    carry, ys = rng.scan(normals, carry, keys_of(inner_key, 3))
    return carry * jax.random.uniform(own), ys


def over_one_axis(key, carry, x):
    """A plain scan, of keys alone, is moved whole."""
    _, drawn = jax.lax.scan(lambda c, k: (c, jax.random.normal(k)), 0, keys_of(key, 3))
    return carry + drawn, carry.sum() * drawn


class Pair(NamedTuple):
    first: jax.Array
    second: dict


def trees_of_keys(keys, carry, x):
    y = jax.random.normal(keys.first) + carry["a"]
    return {"a": y, "b": carry["b"]}, jax.random.bits(keys.second["k"]) + x["n"]


def returned_keys(key, carry, x):
    """Keys in the carry and in the results."""
    one, two = jax.random.split(key)
    return one, (two, jax.random.bits(carry))


PENDULUM = VectorEnv(make("gymnax/Pendulum-v1"), 3, max_steps=2)


def environment(key, carry, x):
    act_key, env_key = jax.random.split(key)
    action = jax.random.uniform(act_key, (3, 1), minval=-1.0)
    state, step = jax.jit(PENDULUM.step)(env_key, carry, action)
    return state, (step.obs, step.reward, step.truncated)


START = jnp.arange(3.0)
CASES = {
    "normals": (normals, START, None),
    "categoricals": (categoricals, START, None),
    "integers": (integers, jnp.int32(0), jnp.arange(STEPS)),
    "calls": (of_one_call, START, None),
    "rejection": (rejecting, jnp.float32(1), None),
    "nested": (nested, START, None),
    "nested twice": (twice, START, None),
    "a scan of keys": (over_one_axis, START, None),
    "an environment": (environment, PENDULUM.reset(KEY), None),
    "a carry without arrays": (lambda key, carry, x: ((), jax.random.normal(key) * x), (), START),
    "numbers of Python": (lambda key, c, x: (c + jax.random.normal(key), c), 0.0, None),
    "no results": (lambda key, c, x: (c + jax.random.normal(key), None), jnp.float32(0), None),
    "a result of the key alone": (lambda key, c, x: (c, jax.random.bits(key)), START, None),
    "a constant result": (lambda key, c, x: (c, jnp.float32(3)), START, None),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_scan_over_keys_and_draws_before_the_loop(case, monkeypatch):
    step, carry, xs = CASES[case]
    keys = keys_of(KEY, 3 if xs is START else STEPS)

    def hoisted(carry, keys, xs):
        return rng.scan(step, carry, keys, xs)

    found = jax.jit(hoisted)(carry, keys, xs)
    assert_close(found, jax.jit(lambda *args: plain(step, *args))(carry, keys, xs))
    assert_close(found, hoisted(carry, keys, xs))  # not compiled
    left = looped(hoisted, carry, keys, xs)
    if case in ("rejection", "a scan of keys"):  # loops of their own, outside of the scan
        assert not loops_within_loops(hoisted, carry, keys, xs)
    else:
        assert not left & {"random_bits", "random_split", "random_fold_in"}
    monkeypatch.setattr(rng, "ENABLED", False)
    assert_close(found, jax.jit(lambda *args: rng.scan(step, *args))(carry, keys, xs))


def loops_within_loops(f, *args):
    from jaxprs import equations

    jaxpr = jax.make_jaxpr(lambda *args: f(*args))(*args).jaxpr
    return {e.primitive.name for e, inside in equations(jaxpr) if inside} & {"scan", "while"}


@pytest.mark.parametrize("unroll", [1, 3])
def test_draws_are_those_of_each_step_bit_for_bit(unroll):
    keys = keys_of(KEY)
    xs = jnp.arange(STEPS)
    _, found = jax.jit(lambda: rng.scan(integers, jnp.int32(0), keys, xs, unroll))()
    each = [integers(keys[t], jnp.int32(t), xs[t])[1] for t in range(STEPS)]
    assert_same_bits(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))


def test_trees_of_keys_and_keys_as_values():
    one, two = jax.random.split(KEY)
    keys = Pair(keys_of(one), {"k": keys_of(two)})
    carry = {"a": jnp.float32(1), "b": jnp.int32(2)}
    xs = {"n": jnp.arange(STEPS, dtype=jnp.uint32)}
    found = jax.jit(lambda: rng.scan(trees_of_keys, carry, keys, xs))()
    assert_close(found, jax.jit(lambda: plain(trees_of_keys, carry, keys, xs))())
    found = jax.jit(lambda: rng.scan(returned_keys, KEY, keys_of(one)))()
    assert_same_bits(found, jax.jit(lambda: plain(returned_keys, KEY, keys_of(one)))())
    assert jnp.issubdtype(found[0].dtype, jax.dtypes.prng_key)


def test_raw_keys():
    raw = jax.random.key_data(keys_of(KEY))
    found = jax.jit(lambda: rng.scan(normals, START, raw))()
    assert_same_bits(found, jax.jit(lambda: rng.scan(normals, START, keys_of(KEY)))())


def test_reading_shapes_is_no_use_of_a_key():
    """JAX's check of key reuse is content, also in scans within scans."""
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: rng.scan(twice, START, keys_of(key)))(jax.random.key(0))
        again = lambda key, carry, x: (carry + jax.random.uniform(key), jax.random.bits(key))  # noqa: E731
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda key: rng.scan(again, START, keys_of(key)))(jax.random.key(0))


@pytest.mark.parametrize("steps", [0, 1])
def test_short_scans(steps):
    found = jax.jit(lambda: rng.scan(normals, START, keys_of(KEY, steps)))()
    assert_close(found, jax.jit(lambda: plain(normals, START, keys_of(KEY, steps)))())
    assert found[1]["y"].shape == (steps, 3)


# --- transformations ----------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_under_vmap_each_seed_draws_its_own(shared):
    """With a carry for each seed, or one that they have in common."""
    seeds = jax.random.split(KEY, 4)
    carry = START if shared else jnp.stack([START * i for i in range(4)])
    axes = (None if shared else 0, 0)

    def run(scan):
        return jax.vmap(lambda carry, key: scan(normals, carry, keys_of(key)), axes)

    found = jax.jit(run(rng.scan))(carry, seeds)
    assert_close(found, jax.jit(run(plain))(carry, seeds))
    alone = rng.scan(normals, START if shared else carry[2], keys_of(seeds[2]))
    assert_close(jax.tree.map(lambda x: x[2], found), alone)
    assert len(np.unique(found[1]["y"][:, 0, 0])) == 4
    assert "random_bits" not in looped(run(rng.scan), carry, seeds)


def test_gradients_pass_through_by_state_and_by_what_the_step_closes_over():
    def loss(scan):
        def value(params, carry, keys):
            def step(key, carry, x):
                noise = jax.random.normal(key, (3,))
                carry = jnp.tanh(carry @ params["w"] + params["s"] * noise)
                return carry, jax.nn.softplus(carry).sum()

            carry, ys = scan(step, carry, keys)
            return ys.sum() + carry.sum()

        return jax.value_and_grad(value, (0, 1))

    params = {"w": jax.random.normal(KEY, (3, 3)), "s": jnp.float32(0.3)}
    args = (params, START, keys_of(KEY))
    found = jax.jit(loss(rng.scan))(*args)
    assert_close(found, jax.jit(loss(plain))(*args))
    assert all(np.any(x != 0) for x in bits(found[1]))
    assert "random_bits" not in looped(loss(rng.scan), *args)

    tangent = jax.tree.map(jnp.ones_like, params)

    def pushed(scan):
        return jax.jvp(lambda p: loss(scan)(p, *args[1:])[0], (params,), (tangent,))

    assert_close(pushed(rng.scan), pushed(plain))


def test_gradients_of_a_loss_inside_the_step():
    """As gradient steps are made: by parameters that are carried, with noise from the key."""

    def step(key, w, x):
        def loss(w):
            noise = jax.random.normal(key, (8, 3))
            return jnp.mean(jnp.square(jnp.tanh((x + noise) @ w)))

        value, slope = jax.value_and_grad(loss)(w)
        return w - 0.1 * slope, value

    xs = jax.random.normal(KEY, (STEPS, 8, 3))
    found = jax.jit(lambda: rng.scan(step, START, keys_of(KEY), xs))()
    assert_close(found, jax.jit(lambda: plain(step, START, keys_of(KEY), xs))())
    assert "random_bits" not in looped(lambda: rng.scan(step, START, keys_of(KEY), xs))


def test_under_checkpointing():
    def loss(scan, w):
        step = jax.checkpoint(lambda key, c, x: (jnp.sin(c * w) + jax.random.normal(key), c))
        return scan(step, jnp.float32(1), keys_of(KEY))[1].sum()

    found, expected = (jax.jit(jax.grad(lambda w, s=s: loss(s, w)))(0.5) for s in (rng.scan, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- what stays in the loop ---------------------------------------------------------------------


def branching(key, carry, x):
    drawn = jax.lax.cond(
        carry.sum() > 0, lambda: jax.random.normal(key, (3,)), lambda: jnp.zeros(3)
    )
    return carry - drawn, drawn


def waiting(key, carry, x):
    def body(state):
        key, value = state
        key, draw_key = jax.random.split(key)
        return key, value + jax.random.uniform(draw_key)

    _, value = jax.lax.while_loop(lambda state: state[1] < 3.0, body, (key, carry[0]))
    return carry.at[0].set(value - 3.0), value


def counting(key, carry, x):
    """A key made from what the loop counts."""
    return carry + jax.random.normal(jax.random.fold_in(key, x), (3,)), None


@pytest.mark.parametrize("step", [branching, waiting, counting])
def test_draws_that_depend_on_the_state_stay_and_are_the_same(step):
    xs = jnp.arange(STEPS)
    found = jax.jit(lambda: rng.scan(step, START, keys_of(KEY), xs))()
    assert_close(found, jax.jit(lambda: plain(step, START, keys_of(KEY), xs))())
    assert "random_bits" in looped(lambda: rng.scan(step, START, keys_of(KEY), xs))


def test_effects_stay_in_order():
    seen = []

    def step(key, carry, x):
        jax.debug.callback(
            lambda n: seen.append(("key", int(n))), jax.random.bits(key), ordered=True
        )
        jax.debug.callback(lambda n: seen.append(("carry", int(n))), carry, ordered=True)
        return carry + 1, None

    keys = keys_of(KEY, 3)
    jax.block_until_ready(jax.jit(lambda: rng.scan(step, jnp.int32(5), keys))())
    jax.effects_barrier()
    drawn = [int(jax.random.bits(key)) for key in keys]
    assert seen == [row for t in range(3) for row in (("key", drawn[t]), ("carry", 5 + t))]


def test_results_of_callbacks():
    """A pure callback on the key's draw may be called before the loop, with the same results."""

    def step(key, carry, x):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        doubled = jax.pure_callback(
            lambda u: np.float32(2 * u), shape, jax.random.uniform(key), vmap_method="sequential"
        )
        return carry + doubled, doubled

    found = jax.jit(lambda: rng.scan(step, jnp.float32(0), keys_of(KEY)))()
    expected = 2 * jax.vmap(jax.random.uniform)(keys_of(KEY))
    np.testing.assert_allclose(found[1], expected, rtol=1e-6)


def test_of_what_is_closed_over_nothing_is_repeated_for_every_step():
    """Rows of a traced table stay to be read in the loop; their indices leave it."""
    table = jnp.arange(1000.0).reshape(50, 20)

    def gathered(table, keys):
        def step(key, carry, x):
            return carry + table[jax.random.randint(key, (), 0, 50)], None

        return rng.scan(step, jnp.zeros(20), keys)[0]

    found = jax.jit(gathered)(table, keys_of(KEY))
    rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, 50))(keys_of(KEY))
    np.testing.assert_allclose(found, table[rows].sum(0))
    inside = looped(gathered, table, keys_of(KEY))
    assert "random_bits" not in inside and inside & {"gather", "dynamic_slice"}


def test_only_what_is_read_leaves_the_loop():
    """Values that nothing reads are not drawn, and the state is never expanded."""

    def step(key, carry, x):
        jax.random.normal(key, (1000,))
        return carry + jax.random.uniform(key), None

    def run(carry, keys):
        return rng.scan(step, carry, keys)[0]

    jaxpr = jax.make_jaxpr(run)(START, keys_of(KEY)).jaxpr
    scan = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    assert [x.aval.shape for x in scan.invars] == [(3,), (STEPS,)]


def test_a_wrong_step_raises_as_it_does_in_a_scan():
    with pytest.raises(TypeError, match="carry"):
        rng.scan(lambda key, c, x: (jnp.zeros(4), None), START, keys_of(KEY))
    with pytest.raises(ValueError, match="leading axis"):
        rng.scan(lambda key, c, x: (c, x), START, keys_of(KEY), jnp.arange(STEPS + 1))
    with pytest.raises(ValueError, match="leading axis"):
        rng.scan(normals, START, keys_of(KEY), jnp.arange(STEPS + 1))


# --- shards -------------------------------------------------------------------------------------


def test_outside_of_shards_a_row_key_is_the_key():
    with reducing_over(None):
        assert rng.row_key(KEY) == KEY


def rows_and_networks(key, carry, x):
    """Draws of rows, alone and in a call, and of a network; and a sum with the rows' own state."""
    row_key, called_key, network_key = jax.random.split(key, 3)
    rows = jax.random.normal(rng.row_key(row_key), (2,))
    called = jax.jit(lambda key: jax.random.uniform(rng.row_key(key), (2,)))(called_key)
    return carry + rows, (rows, called, jax.random.normal(network_key, (1, 3)), carry + rows)


def on_two_shards(check_vma, enabled):
    """Of a scan on two shards: results ``[T, rows or shards, ...]``, and what its loops hold."""
    rng.ENABLED = enabled
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("shard",))
    spec = jax.sharding.PartitionSpec

    def shard(carry, keys):
        with reducing_over("shard"):
            return rng.scan(rows_and_networks, carry, keys)[1]

    sharded = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(spec("shard"), spec()),
        out_specs=spec(None, "shard"),
        check_vma=check_vma,
    )
    carry = jnp.arange(4.0)
    jax.clear_caches()
    return jax.device_get(jax.jit(sharded)(carry, keys_of(KEY))), looped(
        sharded, carry, keys_of(KEY)
    )


@pytest.fixture(scope="module")
def two():
    """Calls a function where there are two devices: their number is fixed at the first use."""
    context = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, context) as pool:
        patch.setenv("JAX_NUM_CPU_DEVICES", "2")
        patch.setenv("JAX_PLATFORMS", "cpu")
        yield lambda f, *args: pool.submit(f, *args).result()


@pytest.mark.parametrize("check_vma", [False, True])
def test_shards_draw_rows_of_their_own_and_networks_in_common(two, check_vma):
    (rows, called, network, carry), left = two(on_two_shards, check_vma, True)
    for drawn in (rows, called):
        assert drawn.shape == (STEPS, 4) and len(np.unique(drawn)) == STEPS * 4
    np.testing.assert_array_equal(network[:, 0], network[:, 1])
    np.testing.assert_allclose(carry, np.arange(4) + np.cumsum(rows, axis=0), rtol=1e-5, atol=1e-6)
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys_of(KEY))
    for shard in range(2):
        own = jax.vmap(lambda key, i=shard: jax.random.fold_in(key, i))(keys[:, 0])
        expected = jax.vmap(lambda key: jax.random.normal(key, (2,)))(own)
        np.testing.assert_allclose(rows[:, 2 * shard : 2 * shard + 2], expected, atol=1e-6)
    assert not left & {"random_bits", "random_fold_in", "random_split"}
    again, inside = two(on_two_shards, check_vma, False)
    assert "random_bits" in inside
    for a, b in zip((rows, called, network, carry), again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# --- deferred outputs ---------------------------------------------------------------------------


def scored(key, carry, x):
    """A sample whose score only the outputs need, and one output of every other kind."""
    y = 0.9 * carry + jax.random.normal(key, (3,))
    score = jnp.log1p(jnp.square(y)).sum() * jnp.cos(scale)
    return jnp.tanh(y), {"score": score, "y": y, "x": x, "key": key, "constant": jnp.arange(2)}


scale = jnp.float32(0.3)


def test_outputs_that_the_carry_does_not_need_are_computed_behind_the_loop():
    keys, xs = keys_of(KEY), jnp.arange(STEPS, dtype=jnp.float32)
    carry = jnp.ones(3)
    expected = plain(scored, carry, keys, xs)
    found = rng.scan(scored, carry, keys, xs, defer=True)
    assert_close(found, expected)
    inside = looped(lambda c: rng.scan(scored, c, keys, xs, defer=True), carry)
    assert "tanh" in inside and "log1p" not in inside and "random_bits" not in inside
    assert "log1p" in looped(lambda c: rng.scan(scored, c, keys, xs), carry)


def test_deferred_outputs_have_gradients_and_vmap():
    keys = keys_of(KEY)

    def total(carry, scan):
        end, ys = scan(scored, carry, keys, jnp.zeros(STEPS))
        return end.sum() + ys["score"].sum()

    def deferred(*args):
        return rng.scan(*args, defer=True)

    starts = jnp.linspace(0.1, 1.0, 6).reshape(2, 3)
    several = [jax.vmap(jax.grad(total), (0, None))(starts, f) for f in (plain, deferred)]
    assert_close(*several)
