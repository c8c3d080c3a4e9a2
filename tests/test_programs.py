"""What the traced programs hold: no draws and no branches in loops, and no product too many."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations, names, products

from jaxrl import (
    BC,
    CQL,
    DPPO,
    DQN,
    DSAC,
    DSACT,
    EDAC,
    FQE,
    FQL,
    IDQL,
    IQL,
    PPO,
    PQN,
    SAC,
    TD3,
    TD3BC,
    CalQL,
    Chunks,
    DiffusionQL,
    DiscreteCQL,
    NormalizeObs,
    Offline,
    OffPolicy,
    OnPolicy,
    ReBRAC,
    ReinFlow,
    ScaleReward,
    VectorEnv,
    hyper,
    make,
    rng,
)
from jaxrl.data import Dataset, Mixed, UniformDataset, Windows
from jaxrl.nn.critics import Critic, QNetwork
from jaxrl.nn.flow import Flow
from jaxrl.nn.policies import AutoPolicy, Deterministic
from jaxrl.types import Batch, Box, Discrete, Spec, Transition

PARTS = ("policy", "critic", "value", "q_network")
DRAWS = {"random_bits", "random_fold_in", "random_split", "random_seed", "random_gamma"}
MINIBATCHES = {"update_epochs": 2, "num_minibatches": 2}
REDQ = {"critic": Critic(num_critics=3), "num_min_critics": 2, "policy_delay": 2}
CHUNKED = make("gymnax/Pendulum-v1", execute=3, obs_horizon=2)
NORMALISED = NormalizeObs(ScaleReward(SAC(), 0.1))


def environments(name="Pendulum", reset_mode="fresh"):
    return VectorEnv(make(f"gymnax/{name}-v1"), 2, reset_mode, pool_size=3, max_steps=7)


def on_policy(agent, name="CartPole", reset_mode="fresh"):
    return OnPolicy(agent, environments(name, reset_mode), num_steps=8)


def off_policy(agent, name="Pendulum", reset_mode="fresh", **options):
    sizes = {"buffer_size": 120, "batch_size": 8, "learning_starts": 20, "cycles": 6}
    return OffPolicy(agent, environments(name, reset_mode), **sizes | options)


def offline(agent, **options):
    return Offline(agent, environments(), batch_size=8, num_updates=4, **options)


def dataset(rows=10):
    no = jnp.zeros(rows, bool)
    obs, reward = jnp.zeros((rows, 3)), jnp.zeros(rows)
    return Dataset.of(obs, jnp.zeros((rows, 1)), reward, obs, no, no).with_next_action()


@dataclasses.dataclass(frozen=True)
class WithReturns(UniformDataset):
    """Adds a return-to-go of zero to batches of the dataset."""

    def sample(self, store, data, key, shape, gamma):
        batch = UniformDataset().sample(store, data, key, shape, gamma)
        return batch._replace(extras={"return_to_go": jnp.zeros(shape)})


def evaluation():
    """FQE of a policy that samples."""
    sac = SAC().bind(make("gymnax/Pendulum-v1").spec)
    return FQE(sac, sac.init(jax.random.key(0)), acts="sample", num_actions=3)


TRAINERS = {
    "PPO": on_policy(PPO(**MINIBATCHES)),
    "PPO of squashed actions": on_policy(
        PPO(policy=AutoPolicy(squash=True, std="softplus"), **MINIBATCHES), "Pendulum", "pool"
    ),
    "PPO with a target KL": on_policy(NormalizeObs(PPO(target_kl=0.02, **MINIBATCHES))),
    "DPPO": on_policy(DPPO(fine_tuned_steps=2, **MINIBATCHES), "Pendulum"),
    "ReinFlow": on_policy(ReinFlow(**MINIBATCHES), "Pendulum"),
    "PQN": on_policy(PQN(**MINIBATCHES)),
    "DQN": off_policy(DQN(), "CartPole"),
    "TD3": off_policy(TD3()),
    "TD3 with noise of each episode": off_policy(TD3(exploration_noise_max=0.4), num_updates=4),
    "SAC": off_policy(SAC()),
    "SAC, delayed": off_policy(SAC(policy_delay=2)),
    "REDQ": off_policy(SAC(**REDQ), num_updates=4),
    "SAC with a pool": off_policy(SAC(), reset_mode="pool", n_step=3),
    "SAC with a dataset": off_policy(SAC(), sampler=Mixed()),
    "DSAC": off_policy(DSAC()),
    "DSACT": off_policy(DSACT(), num_updates=4, precision="half"),
    "wrappers": off_policy(NORMALISED, n_step=3),
    "BC": offline(BC()),
    "BC of actions": offline(BC(policy=Deterministic())),
    "BC of chunks": offline(Chunks(BC(Flow(), ema_decay=0.9), 3), sampler=Windows(3, 1)),
    "PPO in chunks": OnPolicy(PPO(**MINIBATCHES), VectorEnv(CHUNKED, 2), num_steps=8),
    "SAC offline": offline(SAC(**REDQ)),
    "IQL": offline(IQL()),
    "IQL of indices, online": off_policy(IQL(policy_delay=2), "CartPole", num_updates=4),
    "CQL": offline(CQL()),
    "CQL online": off_policy(CQL(importance_sampling=False, max_target_backup=True)),
    "CalQL": offline(CalQL(lagrange_gap=0.8), sampler=WithReturns()),
    "DiscreteCQL": off_policy(DiscreteCQL(), "CartPole"),
    "FQE": offline(evaluation()),
    "TD3BC": offline(TD3BC()),
    "ReBRAC": offline(ReBRAC()),
    "ReBRAC online": off_policy(ReBRAC(), num_updates=4),
    "EDAC": offline(EDAC()),
    "FQL": offline(FQL()),
    "DiffusionQL online": off_policy(DiffusionQL(num_next_actions=3)),
    "IDQL with dropout": offline(IDQL()),
}


def trace(trainer):
    sampler = getattr(trainer, "sampling", None)
    data = dataset() if getattr(sampler, "needs_data", False) else ()
    ts = jax.eval_shape(trainer.init, jax.random.key(0), data)
    return jax.jit(lambda ts, data: trainer.iteration(ts, data)).trace(ts, data)


def program(trainer):
    return trace(trainer).jaxpr.jaxpr


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_loops_hold_no_draw_and_programs_no_branch_and_lower_for_accelerators(trainer):
    """A draw in a loop is slow on a CPU; under vmap both sides of a ``cond`` are computed."""
    traced = trace(trainer)
    jaxpr = traced.jaxpr.jaxpr
    assert "scan" in names(jaxpr) and "random_bits" in names(jaxpr, looped=False)
    assert not names(jaxpr, looped=True) & DRAWS
    assert not {name for name in names(jaxpr) if name == "cond" or "callback" in name}
    text = traced.lower(lowering_platforms=("cuda", "tpu")).as_text()
    assert "callback" not in text


@pytest.mark.parametrize(
    ("name", "options", "on_host"),
    [
        ("mjx/InvertedPendulum-v5", {"engine": "mjx"}, False),
        ("brax/inverted_pendulum", {}, False),
        ("mjx/InvertedPendulum-v5", {"engine": "c"}, True),
    ],
)
def test_physics_lowers_for_accelerators_and_only_the_engine_in_c_calls_the_host(
    name, options, on_host
):
    traced = trace(OnPolicy(PPO(**MINIBATCHES), VectorEnv(make(name, **options), 2), num_steps=8))
    platforms = ("cpu",) if on_host else ("cuda", "tpu")
    assert ("callback" in traced.lower(lowering_platforms=platforms).as_text()) == on_host


def test_without_rng_scan_the_same_programs_draw_in_their_loops(monkeypatch):
    monkeypatch.setattr(rng, "ENABLED", False)
    for name in ("PPO", "TD3", "wrappers"):
        assert {"random_bits", "random_split"} <= names(program(TRAINERS[name]), looped=True)


IN_BFLOAT16 = ("PPO", "PQN", "DQN", "TD3", "SAC", "DSAC", "DSACT", "BC", "IQL", "CQL", "CalQL")
IN_BFLOAT16 += ("DiscreteCQL", "TD3BC", "ReBRAC", "EDAC")


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_agents_compute_in_bfloat16_and_keep_float32(name):
    trainer = TRAINERS[name]
    networks = [part for part in PARTS if hasattr(trainer.agent, part)]
    options = {part: {"compute_dtype": "bfloat16"} for part in networks}
    traced = trace(dataclasses.replace(trainer, agent=hyper.override(trainer.agent, options)))
    operands = [
        eqn.invars
        for eqn, _ in equations(traced.jaxpr.jaxpr)
        if eqn.primitive.name == "dot_general"
    ]
    layers = [x.aval.dtype for pair in operands if max(x.aval.ndim for x in pair) > 1 for x in pair]
    assert layers and set(layers) == {jnp.dtype(jnp.bfloat16)}
    assert jnp.bfloat16 not in {x.dtype for x in jax.tree.leaves(traced.out_info)}


# --- products -----------------------------------------------------------------------------------

OBS, ACTION, CHOICES, BATCH = 5, 2, 3, 16
SEEN = Box(-np.inf, np.inf, (OBS,))
CONTINUOUS, DISCRETE = Spec(SEEN, Box(-1, 1, (ACTION,))), Spec(SEEN, Discrete(CHOICES))


def small(agent):
    """The agent with networks of two layers of eight units."""
    parts = [name for name in PARTS if hasattr(agent, name)]
    made = {name: dataclasses.replace(getattr(agent, name), hidden_dims=(8, 8)) for name in parts}
    return dataclasses.replace(agent, **made)


def rows(spec, *shape):
    """Observations, actions, rewards and ends."""
    action = jnp.zeros((*shape, ACTION)) if spec is CONTINUOUS else jnp.zeros(shape, jnp.int32)
    return jnp.zeros((*shape, OBS)), action, jnp.zeros(shape), jnp.zeros(shape, bool)


# Matrix products of one gradient step, with and without the actor's, and their multiplications, as
# of commit 7bc1ef3, whose losses were not yet functions under ``jax.grad``.
STEPS = {
    "SAC": (SAC(), (31, 31_295), (15, 17_058)),
    "REDQ": (
        SAC(critic=Critic(num_critics=4), num_min_critics=2),
        (31, 54_369),
        (15, 31_940),
    ),
    "TD3": (TD3(), (30, 26_156), (15, 16_802)),
    "DSAC": (DSAC(), (31, 20_535), (15, 10_138)),
    "DSACT": (DSACT(), (34, 37_201), (18, 22_452)),
    "IQL": (IQL(), (36, 28_591), (24, 21_539)),  # as of its first version
    "CQL": (CQL(num_actions=3), (31, 127_935), (15, 113_698)),  # as many products as SAC
    "TD3BC": (TD3BC(), (30, 26_156), (15, 16_802)),  # TD3's
    # Of its critics' 8 more than SAC's, none evaluates them at the data's actions once more.
    "EDAC": (EDAC(critic=Critic(num_critics=4)), (39, 78_433), (23, 56_004)),
}


@pytest.mark.parametrize(("agent", "whole", "critics"), STEPS.values(), ids=STEPS)
def test_a_gradient_step_has_no_product_too_many(agent, whole, critics):
    agent = small(agent).bind(CONTINUOUS)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    obs, action, reward, _ = rows(CONTINUOUS, BATCH)
    batch = Batch(obs, action, reward, reward, obs, {})
    for update_actor, most in ((True, whole), (False, critics)):
        update = jax.make_jaxpr(lambda *args, a=update_actor: agent.update(*args, a))
        found = products(update(state, batch, jax.random.key(0)).jaxpr)
        assert found[0] <= most[0] and found[1] <= most[1]


# Of a DQN step, as above.
DQNS = {
    "double": (DQN(), (15, 9_747)),
    "single": (DQN(double=False), (12, 7_699)),
    "dueling": (DQN(q_network=QNetwork(dueling=True)), (25, 15_588)),
}


@pytest.mark.parametrize(("agent", "most"), DQNS.values(), ids=DQNS)
def test_a_step_of_dqn_has_no_product_too_many(agent, most):
    agent = small(agent).bind(DISCRETE)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    obs, action, reward, _ = rows(DISCRETE, BATCH)
    batch = Batch(obs, action, reward, reward, obs, {})
    found = products(jax.make_jaxpr(agent.update)(state, batch, jax.random.key(0)).jaxpr)
    assert found[0] <= most[0] and found[1] <= most[1]


# Of an update with one epoch of two minibatches, whose steps count once, as above.
ONCE = {"update_epochs": 1, "num_minibatches": 2}
SQUASHED = AutoPolicy(squash=True, std="softplus")
UPDATES = {
    "PPO": (PPO(**ONCE), DISCRETE, (23, 17_684)),
    "PPO of actions": (PPO(**ONCE), CONTINUOUS, (23, 17_293)),
    "PPO of squashed actions": (PPO(policy=SQUASHED, **ONCE), CONTINUOUS, (23, 18_077)),
    "PQN": (PQN(**ONCE), DISCRETE, (12, 9_779)),
}


@pytest.mark.parametrize(("agent", "spec", "most"), UPDATES.values(), ids=UPDATES)
def test_an_update_on_a_rollout_has_no_product_too_many(agent, spec, most):
    agent = small(agent).bind(spec)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    obs, action, reward, no = rows(spec, 8, 4)
    act = jax.eval_shape(lambda s: agent.act(s, (), obs, jax.random.key(0), "explore"), state)
    extras = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), act[2])
    rollout = Transition(obs, action, reward, obs, no, no, extras)
    found = products(jax.make_jaxpr(agent.update)(state, rollout, jax.random.key(0)).jaxpr)
    assert found[0] <= most[0] and found[1] <= most[1]
