"""Speed of offline training: gradient steps per second of the whole loop, compile time apart.

python benchmarks/offline.py
python benchmarks/offline.py --agents IQL --seeds 1 8 --out results/speed_offline.json

A dataset of a million transitions, observations of 17, actions of 6, batches of 256, networks of
256x256: ``loop`` draws batches and learns from them, 64 gradient steps in an iteration. Beside it
``products``, the bare matrix products of a gradient step of the same shapes and in the same order.
The two take turns, repeat by repeat; quote ratios.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from off_policy import (
    ACTION,
    BATCH,
    HIDDEN,
    OBS,
    STEPS,
    Free,
    Timed,
    arranged,
    backward,
    bare,
    forward,
    kernels,
)
from off_policy import products as td3_products

import jaxrl
from jaxrl import hyper
from jaxrl._startup import cores
from jaxrl.cli import launch
from jaxrl.data import Dataset
from jaxrl.record.provenance import provenance
from jaxrl.run.devices import Programs
from jaxrl.run.placement import choose
from jaxrl.types import Array, Batch

SIZES = {"hidden_dims": HIDDEN}
AGENTS = {
    "IQL": hyper.override(jaxrl.IQL(), {"policy": SIZES, "critic": SIZES, "value": SIZES}),
    "TD3BC": hyper.override(jaxrl.TD3BC(), {"policy": SIZES, "critic": SIZES}),
}
CHUNK = 4  # iterations of a call


def dataset(rows: int) -> Dataset:
    """Return random transitions, in episodes of a thousand steps."""
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, rows, OBS)).astype(np.float32)
    action = rng.uniform(-1, 1, (rows, ACTION)).astype(np.float32)
    reward = rng.normal(size=rows).astype(np.float32)
    ends = np.arange(rows) % 1000 == 999
    return Dataset.of(obs, action, reward, next_obs, ends & False, ends)


def iql_products(agent: Any, state: Any, batch: Batch, update_actor: bool) -> Any:
    """All products of a gradient step of IQL on ``batch[B]``; results feed what follows."""
    value, policy = kernels(state.value.params), kernels(state.actor.params)
    critic, target = kernels(state.critic.params), kernels(state.target_critic)

    def values(weights: list[Array], obs: Array) -> list[Array]:
        x = jnp.concatenate([obs, batch.action], axis=-1)
        return forward(jnp.broadcast_to(x, (weights[0].shape[0], *x.shape)), weights)

    q = values(target, batch.obs)[-1].min(0)
    layers = forward(batch.obs, value)
    layers[-1] = layers[-1] - q
    _, by_value = backward(layers, value, True)
    # The advantage and the next value are of other parameters: the value function's new ones.
    moved = [w - 1e-3 * g for w, g in zip(value, by_value[::-1], strict=True)]
    layers = forward(batch.obs, policy)
    layers[-1] = layers[-1] * (q - forward(batch.obs, moved)[-1])
    _, by_policy = backward(layers, policy, True)
    layers = values(critic, batch.obs)
    layers[-1] = layers[-1] - forward(batch.next_obs, moved)[-1]
    _, by_critic = backward(layers, critic, True)
    return by_value, by_policy, by_critic


def td3_bc_products(agent: Any, state: Any, batch: Batch, update_actor: bool) -> Any:
    """Those of TD3, whose actor maximises the first critic."""
    return td3_products(jaxrl.TD3(), state, batch, update_actor)


PRODUCTS: dict[str, Callable] = {"IQL": iql_products, "TD3BC": td3_bc_products}


def programs(
    agent: Any,
    one: Callable,
    seeds: int,
    data: Dataset,
    steps: int = STEPS,
    chunk: int = CHUNK,
    devices: int | None = None,
) -> dict[str, Timed]:
    """The bare products and the whole loop of an agent, compiled; ``devices`` are the loop's.

    ``one(agent, state, batch, update_actor)`` are the products of a gradient step. An iteration has
    ``steps`` of these, and a call of the loop ``chunk`` iterations.
    """
    trainer = jaxrl.Offline(agent, jaxrl.VectorEnv(Free(), 1), num_updates=steps)
    whole = Programs(trainer, choose([trainer], seeds, devices))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    data = whole.put_data(data)
    ts = jax.jit(whole.init)({}, keys, data)
    held = [ts]
    count, first = jnp.int32(chunk), jnp.int32(0)
    compiled, seconds = timed_compile(
        jax.jit(whole.chunk, donate_argnums=1).lower({}, ts, data, count, first)
    )

    def loop() -> Any:
        held[0], metrics = compiled({}, held[0], data, count, first)
        return metrics

    batch = Batch(data.obs, data.action, data.reward, data.reward, data.next_obs, {})
    batches = jax.tree.map(lambda x: x[: steps * BATCH].reshape(steps, BATCH, *x.shape[1:]), batch)
    state = jax.tree.map(jnp.copy, jax.jit(jax.vmap(trainer.agent.init))(keys))
    alone = Programs(trainer, choose([trainer], seeds))
    many = arranged(
        alone,
        lambda state: (state, bare(trainer.agent, state, batches, one)),
        whole.takes_turns(held[0]),
    )
    products, products_seconds = timed_compile(jax.jit(many).lower(state))
    return {
        "products": Timed(lambda: products(state), steps * seeds, products_seconds),
        "loop": Timed(loop, chunk * steps * seeds, seconds),
    }


def timed_compile(lowered: Any) -> tuple[Any, float]:
    """Return a compiled program, and the seconds that took."""
    began = time.perf_counter()
    return lowered.compile(), time.perf_counter() - began


def measure(
    agents: tuple[str, ...] = tuple(AGENTS),
    seeds: tuple[int, ...] = (1, 8),
    repeats: int = 5,
    rows: int = 1_000_000,
    devices: int | None = None,
    out: str | None = None,
) -> None:
    """Measure, print a table, and write it as JSON if asked.

    ``devices``: XLA devices of the loop; with more than seeds, they share each batch. The bare
    products are not shared.
    """
    data, found = dataset(rows), []
    print(f"{'agent':8}{'seeds':>6}  {'':10}{'updates/s':>10}{'of bound':>10}{'compile':>9}")
    for name in agents:
        for count in seeds:
            timed = programs(AGENTS[name], PRODUCTS[name], count, data, devices=devices)
            for _ in range(repeats + 1):
                for program in timed.values():
                    program.run()
            speeds = {
                what: program.updates / statistics.median(program.seconds[1:])
                for what, program in timed.items()
            }
            for what, speed in speeds.items():
                share = speed / speeds["products"]
                seconds = timed[what].compile_seconds
                found.append(
                    {
                        "agent": name,
                        "seeds": count,
                        "what": what,
                        "updates_per_second": round(speed, 1),
                        "of_bound": round(share, 3),
                        "compile_seconds": round(seconds, 1),
                    }
                )
                print(f"{name:8}{count:6}  {what:10}{speed:10.0f}{share:10.0%}{seconds:8.1f}s",
                      flush=True)  # fmt: skip
            del timed
    if out:
        record = {
            "cores": cores(),
            "devices": devices,
            "rows": rows,
            **provenance(),
            "results": found,
        }
        Path(out).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    launch(lambda: tyro.cli(measure, description=__doc__))
