"""Speed of diffusion and flow policies: gradient steps, and the latency of an action.

python benchmarks/generative.py --out results/generative_speed.json
python benchmarks/generative.py --what latency --out results/generative_speed.json

``updates``: gradient steps per second of FQL and Diffusion-QL at their published sizes, on batches
of 256 of a dataset with observations of 17 and actions of 6. ``loop`` draws batches and learns from
them; ``products`` are the bare matrix products of a gradient step, of the same shapes and in the
same order. The two take turns, repeat by repeat; quote ratios.

``latency``: the time to act, compiled, at batches of 1 and of 256, for several numbers of steps K;
beside it the return of the same policy with that K. The policies are clones of Pendulum's
medium-expert data, with networks of 256x256x256, trained once.

With ``--what``, the other part of the file stays as it is.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from off_policy import ACTION, backward, forward, kernels
from offline import dataset, programs

import jaxrl
from jaxrl._startup import cores
from jaxrl.cli import launch
from jaxrl.data.formats import load
from jaxrl.data.shipped import shipped_path
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.flow import Flow
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance
from jaxrl.types import Array, Batch

STEPS = 16  # gradient steps of an iteration
WIDE: dict[str, Any] = {"hidden_dims": (256, 256, 256)}
KS = (1, 5, 10, 50)


# The products of a gradient step


def joined(*inputs: Array) -> Array:
    """Return a network's inputs ``[B, I]``; those that need a gradient come last."""
    return jnp.concatenate(inputs, axis=-1)


def values(weights: list[Array], obs: Array, action: Array) -> list[Array]:
    """The layers of all critics."""
    x = joined(obs, action)
    return forward(jnp.broadcast_to(x, (weights[0].shape[0], *x.shape)), weights)


def fql_products(agent: Any, state: Any, batch: Batch, update_actor: bool) -> Any:
    """All products of a gradient step of FQL on ``batch[B]``; results feed what follows."""
    params = state.networks.params
    flow = kernels(params["policy"]["network"]["body"])
    one_step, critic = kernels(params["one_step"]), kernels(params["critic"])
    noise, time = batch.next_obs[:, :ACTION], batch.obs[:, :1]

    next_action = forward(joined(batch.next_obs, noise), one_step)[-1]
    target = values(kernels(state.target_critic), batch.next_obs, next_action)[-1]
    layers = values(critic, batch.obs, batch.action)
    layers[-1] = layers[-1] - target
    _, by_critic = backward(layers, critic, True)

    layers = forward(joined(batch.obs, time, batch.action), flow)
    layers[-1] = layers[-1] - batch.action
    _, by_flow = backward(layers, flow, True)

    x = noise
    for _ in range(agent.policy.sample_steps):
        x = x + forward(joined(batch.obs, time, x), flow)[-1]
    layers = forward(joined(batch.obs, noise), one_step)
    by_action, _ = backward(values(critic, batch.obs, layers[-1]), critic, False)
    layers[-1] = layers[-1] - x + by_action.sum(0)
    _, by_one_step = backward(layers, one_step, True)
    return by_critic, by_flow, by_one_step


def diffusion_ql_products(agent: Any, state: Any, batch: Batch, update_actor: bool) -> Any:
    """All products of a gradient step of Diffusion-QL on ``batch[B]``, but those of time alone."""
    policy, averaged = (
        kernels(x["network"]["body"]) for x in (state.actor.params, state.target_actor)
    )
    critic, target_critic = kernels(state.critic.params), kernels(state.target_critic)
    noise, time = batch.next_obs[:, :ACTION], batch.obs[:, : agent.policy.time_features]

    def chain(weights: list[Array], obs: Array) -> tuple[Array, list[list[Array]]]:
        x, steps = noise, []
        for _ in range(agent.policy.num_steps):
            steps.append(forward(joined(obs, time, x), weights))
            x = x + steps[-1][-1]
        return x, steps

    next_action, _ = chain(averaged, batch.next_obs)
    layers = values(critic, batch.obs, batch.action)
    layers[-1] = layers[-1] - values(target_critic, batch.next_obs, next_action)[-1]
    _, by_critic = backward(layers, critic, True)

    layers = forward(joined(batch.obs, time, batch.action), policy)
    layers[-1] = layers[-1] - noise
    _, by_policy = backward(layers, policy, True)
    action, steps = chain(policy, batch.obs)
    q = values(critic, batch.obs, action)
    maximised = [layer[:1] for layer in q]  # the other critic's value is a scale alone
    maximised[-1] = maximised[-1] / q[-1][1:]
    gradient = backward(maximised, [x[:1] for x in critic], False)[0][0]
    for layers in reversed(steps):
        layers[-1] = gradient
        before, more = backward(layers, policy, True)
        by_policy = [a + b for a, b in zip(by_policy, more, strict=True)]
        gradient = gradient + before @ policy[0][-ACTION:].T
    return by_critic, by_policy, gradient


AGENTS: dict[str, tuple[Any, Callable]] = {
    "FQL": (jaxrl.FQL(), fql_products),
    "DiffusionQL": (jaxrl.DiffusionQL(), diffusion_ql_products),
}


# Measuring


def updates(repeats: int, rows: int) -> list[dict[str, Any]]:
    """Time the gradient steps of both agents."""
    found, data = [], dataset(rows)
    for name, (agent, products) in AGENTS.items():
        timed = programs(agent, products, 1, data, STEPS, 1)
        for _ in range(repeats + 1):
            for program in timed.values():
                program.run()
        row: dict[str, Any] = {"agent": name}
        for what, program in timed.items():
            row[what] = round(program.updates / statistics.median(program.seconds[1:]), 2)
        row["of_products"] = round(row["loop"] / row["products"], 3)
        row["compile_seconds"] = round(timed["loop"].compile_seconds, 1)
        print(f"{name:12} {row['loop']:7.1f} gradient steps/s, {row['of_products']:.0%} of the "
              f"products, compiled in {row['compile_seconds']} s", flush=True)  # fmt: skip
        found.append(row)
    return found


def latency(steps: int, episodes: int) -> list[dict[str, Any]]:
    """Time the actions of two clones for several K, and play them."""
    name, found = "gymnax/Pendulum-v1", []
    env = jaxrl.VectorEnv(jaxrl.make(name), 1)
    data = load(shipped_path(f"{name}/medium-expert"), quiet=True)
    clones = {
        "diffusion": Diffusion(**WIDE, num_steps=50, schedule="cosine", eta=0.0, activation="mish"),
        "flow": Flow(**WIDE, activation="gelu"),
    }
    for kind, policy in clones.items():
        trainer = jaxrl.Offline(jaxrl.BC(policy), env, num_updates=1_000)
        trained = jax.jit(lambda key, data, trainer=trainer: trainer.train(key, steps, data)[0])
        ts = trained(jax.random.key(0), jax.tree.map(jnp.asarray, data))
        for k in KS:
            few = dataclasses.replace(trainer.agent.policy, sample_steps=k)
            acting = dataclasses.replace(
                trainer, agent=dataclasses.replace(trainer.agent, policy=few)
            )
            played = jax.jit(
                lambda ts, acting=acting: acting.evaluate(ts, jax.random.key(1), episodes).returns
            )(ts)
            row = {"policy": kind, "steps": k, "return": float(np.mean(played))}
            for batch in (1, 256):
                row[f"microseconds_at_{batch}"] = action_time(acting.agent, ts.agent, batch)
            print(f"{kind:10} K {k:3}  return {row['return']:8.1f}  "
                  f"batch 1: {row['microseconds_at_1']:8.0f} us  "
                  f"batch 256: {row['microseconds_at_256']:8.0f} us", flush=True)  # fmt: skip
            found.append(row)
    return found


def action_time(agent: Any, state: Any, batch: int, repeats: int = 50) -> float:
    """Return the microseconds of an action of ``batch`` observations: the median."""
    obs = jnp.zeros((batch, 3))
    act = jax.jit(lambda state, obs, key: agent.act(state, (), obs, key, "greedy")[0])
    key, seconds = jax.random.key(0), []
    jax.block_until_ready(act(state, obs, key))
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(act(state, obs, key))
        seconds.append(time.perf_counter() - began)
    return round(1e6 * statistics.median(seconds), 1)


def main(
    what: Literal["all", "updates", "latency"] = "all",
    repeats: int = 5,
    rows: int = 100_000,
    steps: int = 10_000,
    episodes: int = 64,
    out: Path | None = None,
) -> None:
    """Measure, print, and write JSON if asked."""
    record: dict[str, Any] = json.loads(out.read_text()) if out and out.exists() else {}
    if what != "latency":
        found = updates(repeats, rows)
        record["updates"] = {"cores": cores(), **provenance(), "rows": rows, "results": found}
    if what != "updates":
        found = latency(steps, episodes)
        record["latency"] = {"cores": cores(), **provenance(), "steps": steps, "results": found}
    if out:
        write_json(out, record)


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
