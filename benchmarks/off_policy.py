"""Speed of off-policy training: gradient steps per second, compile time apart.

python benchmarks/off_policy.py
python benchmarks/off_policy.py --agents SAC DSACT --seeds 1 8 --out results/speed_off_policy.json
python benchmarks/off_policy.py --compute-dtype bfloat16

Of every agent, for one seed and for several in one program (all seeds together):

- ``products``: the matrix products alone that its gradient step cannot avoid, forwards and
  backwards, of the same shapes and in the same order: the bound of the machine. Each pass has the
  rows and the weights that it has in the algorithm, so the compiler cannot make two of them one;
- ``learner``: ``agent.update`` on 64 batches that are given;
- ``loop``: whole training, with a step of the environment for each gradient step, the replay buffer
  of a million transitions and the sampling from it.

Batches of 256, observations of 17, actions of 6 (as HalfCheetah's), networks of 256x256 for all.
The environment of ``loop`` costs nothing. The three take turns, repeat by repeat; quote ratios.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxrl
from jaxrl import hyper
from jaxrl._startup import cores
from jaxrl.cli import launch
from jaxrl.nn.products import ComputeDtype
from jaxrl.record.provenance import provenance
from jaxrl.run.devices import Programs, in_turn, over_members
from jaxrl.run.placement import choose
from jaxrl.training.gradient_steps import gradient_steps
from jaxrl.types import Array, Batch, Box, Key, Spec, Step

OBS, ACTION, BATCH, STEPS, HIDDEN = 17, 6, 256, 64, (256, 256)
NETWORKS = {"policy": {"hidden_dims": HIDDEN}, "critic": {"hidden_dims": HIDDEN}}
AGENTS = {
    "SAC": hyper.override(jaxrl.SAC(), NETWORKS),
    "TD3": hyper.override(jaxrl.TD3(), NETWORKS),
    "DSACT": hyper.override(jaxrl.DSACT(), NETWORKS),
}


@dataclasses.dataclass(frozen=True)
class Free:
    """An environment of HalfCheetah's shapes that costs next to nothing."""

    name: ClassVar[str] = "free"
    cheap: ClassVar[bool] = True
    spec: ClassVar[Spec] = Spec(Box(-np.inf, np.inf, (OBS,)), Box(-1.0, 1.0, (ACTION,)), 1000)

    def reset(self, key: Key) -> tuple[Array, Array]:
        """Zeros."""
        return jnp.zeros(OBS), jnp.zeros(OBS)

    def step(self, key: Key, state: Array, action: Array) -> tuple[Array, Step]:
        """A decaying sum of actions."""
        state = 0.9 * state + jnp.resize(action, (OBS,))
        never = jnp.bool_(False)
        return state, Step(state, action.sum(), never, never, {})


# The products of a gradient step


def forward(x: Array, weights: list[Array]) -> list[Array]:
    """Return the inputs of each layer ``[..., B, I]``, and the output of the last."""
    layers = [x]
    for weight in weights:
        layers.append(layers[-1] @ weight)
    return layers


def backward(layers: list[Array], weights: list[Array], learn: bool) -> tuple[Array, list[Array]]:
    """The gradients of a sum over outputs: by the weights if ``learn``, else by the action.

    The action is the last of the input; of the first weights only its rows are needed.
    """
    gradient, by_weights = layers[-1], []
    for i in reversed(range(len(weights))):
        if learn:
            by_weights.append(jnp.swapaxes(layers[i], -1, -2) @ gradient)
        if i or not learn:
            used = weights[i] if i else weights[i][..., -ACTION:, :]
            gradient = gradient @ jnp.swapaxes(used, -1, -2)
    return gradient, by_weights


def products(agent: Any, state: Any, batch: Batch, update_actor: bool) -> Any:
    """All products of one gradient step on ``batch[B]``.

    Results feed what follows, so that none can be left out.
    """
    policy, critic = kernels(state.actor.params), kernels(state.critic.params)
    target_policy = kernels(getattr(state, "target_actor", state.actor.params))
    target_critic = kernels(state.target_critic)

    def values(weights: list[Array], obs: Array, action: Array) -> list[Array]:
        x = jnp.concatenate([obs, action[..., :ACTION]], axis=-1)
        return forward(jnp.broadcast_to(x, (weights[0].shape[0], *x.shape)), weights)

    next_action = forward(batch.next_obs, target_policy)[-1]
    target = values(target_critic, batch.next_obs, next_action)[-1]
    layers = values(critic, batch.obs, batch.action)
    layers[-1] = layers[-1] - target  # the error
    _, by_critic = backward(layers, critic, True)
    if not update_actor:
        return by_critic
    first = getattr(agent, "actor_q", None) == "first"
    maximised = [x[:1] for x in critic] if first else critic
    layers = forward(batch.obs, policy)
    by_action, _ = backward(values(maximised, batch.obs, layers[-1]), maximised, False)
    layers[-1] = jnp.resize(by_action.sum(0), layers[-1].shape)
    _, by_policy = backward(layers, policy, True)
    return by_critic, by_policy


def kernels(params: Any) -> list[Array]:
    """The weights of a network in the order of its layers."""
    leaves = jax.tree.leaves_with_path(params)
    found = {jax.tree_util.keystr(path): x for path, x in leaves}
    names = sorted((name for name in found if "kernel" in name), key=lambda n: ("head" in n, n))
    return [found[name] for name in names]


def bare(agent: Any, state: Any, batches: Batch, one: Callable = products) -> Any:
    """The products of gradient steps on ``batches[G, B]``; the actor's on schedule.

    ``one(agent, state, batch, update_actor)`` are those of a single step.
    """
    delay = getattr(agent, "policy_delay", 1)

    def step(_: Any, batches: Batch) -> tuple[Any, None]:
        rows = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(delay)]
        return [one(agent, state, x, i == delay - 1) for i, x in enumerate(rows)], None

    groups = jax.tree.map(lambda x: x.reshape(-1, delay, *x.shape[1:]), batches)
    like, _ = jax.eval_shape(step, None, jax.tree.map(lambda x: x[0], groups))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.scan(step, start, groups)[0]


# Measuring


@dataclasses.dataclass
class Timed:
    """A program that makes ``updates`` gradient steps per call, and how long its calls took."""

    call: Callable[[], Any]
    updates: int
    compile_seconds: float
    seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self) -> None:
        """Once more."""
        began = time.perf_counter()
        jax.block_until_ready(self.call())
        self.seconds.append(time.perf_counter() - began)


def arranged(whole: Programs, f: Callable, turns: bool = False) -> Callable:
    """Return ``f`` of one member as a function of all, arranged as in whole training.

    For members that take turns, ``f(state, ...) -> (state, results)``.
    """
    member = jax.sharding.PartitionSpec("member")
    return whole.place((in_turn if turns else over_members)(f), member, member)


def programs(agent: Any, seeds: int, buffer_size: int) -> dict[str, Timed]:
    """The three of an agent, compiled. The first call of each is still to warm up."""
    env = jaxrl.VectorEnv(Free(), 1)
    sizes = {"buffer_size": buffer_size, "batch_size": BATCH, "cycles": STEPS}
    trainer = jaxrl.OffPolicy(agent, env, **sizes)
    agent = trainer.agent  # bound to the environment's spec
    whole = Programs(trainer, choose([trainer], seeds))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    made: dict[str, Timed] = {}

    def add(name: str, f: Callable, state: Any, *args: Any, updates: int = STEPS) -> None:
        """``f(state, *args) -> state, metrics``; the state is donated and goes round."""
        began = time.perf_counter()
        compiled = jax.jit(f, donate_argnums=0).lower(state, *args).compile()
        held = [state]

        def call() -> Any:
            held[0], metrics = compiled(held[0], *args)
            return held[0], metrics

        made[name] = Timed(call, updates * seeds, time.perf_counter() - began)

    def given(key: Key) -> tuple[Any, Batch]:
        state_key, *keys = jax.random.split(key, 4)
        obs, next_obs = (jax.random.normal(k, (STEPS, BATCH, OBS)) for k in keys[:2])
        action = jax.random.uniform(keys[2], (STEPS, BATCH, ACTION), minval=-1.0)
        discount = jnp.full((STEPS, BATCH), agent.gamma)
        batches = Batch(obs, action, obs.sum(-1), discount, next_obs, {})
        return agent.init(state_key), batches

    def learn(state: Any, batches: Batch, key: Key) -> tuple[Any, Any]:
        return gradient_steps(agent, state, batches, key)

    ts = jax.jit(whole.init)({}, keys)
    turns = whole.takes_turns(ts)
    make = jax.jit(arranged(whole, given))
    bound = arranged(whole, lambda s, b: (s, bare(agent, s, b)), turns)
    add("products", bound, *make(keys))
    add("learner", arranged(whole, learn, turns), *make(keys), keys)
    chunk = 32  # iterations; real ones have more

    def loop(ts: Any, iterations: Array, first: Array) -> tuple[Any, Any]:
        return whole.chunk({}, ts, (), iterations, first)

    add("loop", loop, ts, jnp.int32(chunk), jnp.int32(0), updates=chunk * STEPS)
    return made


def measure(
    agents: tuple[str, ...] = tuple(AGENTS),
    seeds: tuple[int, ...] = (1, 8),
    repeats: int = 7,
    buffer_size: int = 1_000_000,
    compute_dtype: ComputeDtype = "float32",
    out: str | None = None,
) -> None:
    """Measure, print a table, and write it as JSON if asked.

    ``products`` are in float32, whatever ``compute_dtype`` the agents use.
    """
    dtypes = dict.fromkeys(("policy", "critic"), {"compute_dtype": compute_dtype})
    rows = []
    print(f"{'agent':8}{'seeds':>6}  {'':10}{'updates/s':>10}{'of bound':>10}{'compile':>9}")
    for name in agents:
        for count in seeds:
            timed = programs(hyper.override(AGENTS[name], dtypes), count, buffer_size)
            for _ in range(repeats + 1):
                for program in timed.values():
                    program.run()
            speeds = {
                what: program.updates / statistics.median(program.seconds[1:])
                for what, program in timed.items()
            }
            for what, speed in speeds.items():
                row = {
                    "agent": name,
                    "seeds": count,
                    "compute_dtype": compute_dtype,
                    "what": what,
                    "updates_per_second": round(speed, 1),
                    "of_bound": round(speed / speeds["products"], 3),
                    "compile_seconds": round(timed[what].compile_seconds, 1),
                }
                rows.append(row)
                print(
                    f"{name:8}{count:6}  {what:10}{speed:10.0f}{row['of_bound']:10.0%}"
                    f"{row['compile_seconds']:8.1f}s",
                    flush=True,
                )
            del timed
    if out:
        record = {"cores": cores(), **provenance(), "results": rows}
        Path(out).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    launch(lambda: tyro.cli(measure, description=__doc__))
