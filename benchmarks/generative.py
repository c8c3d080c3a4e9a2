"""Speed of diffusion and flow policies: gradient steps, and the latency of an action.

python benchmarks/generative.py
python benchmarks/generative.py --what latency --out results/generative_speed.json

``updates``: gradient steps per second of FQL and Diffusion-QL at their published sizes, on batches
of 256 of a dataset with observations of 17 and actions of 6: the whole loop with the drawing of
batches.

``latency``: the time to act, compiled, at batches of 1 and of 256, for several numbers of steps K;
beside it the return of the same policy with that K. The policies are clones of Pendulum's
medium-expert data, with networks of 256x256x256, trained once.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from offline import Timed, dataset, timed_compile

import jaxrl
from jaxrl.cli import launch
from jaxrl.data.formats import load
from jaxrl.data.shipped import shipped_path
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.flow import Flow
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance
from jaxrl.run.devices import Programs
from jaxrl.run.placement import choose
from jaxrl.types import Box, Spec

STEPS, BATCH = 16, 256  # gradient steps of an iteration
AGENTS = {"FQL": jaxrl.FQL(), "DiffusionQL": jaxrl.DiffusionQL()}
SPEC = Spec(Box(-np.inf, np.inf, (17,)), Box(-1.0, 1.0, (6,)), 1000)
WIDE: dict[str, Any] = {"hidden_dims": (256, 256, 256)}
KS = (1, 5, 10, 50)


def updates(repeats: int, rows: int) -> list[dict[str, Any]]:
    """Time the gradient steps of both agents."""
    found, data = [], dataset(rows)
    for name, agent in AGENTS.items():
        trainer = jaxrl.Offline(agent, SPEC, num_updates=STEPS, batch_size=BATCH)
        whole = Programs(trainer, choose([trainer], 1))
        held = whole.put_data(data)
        ts = [jax.jit(whole.init)({}, jax.vmap(jax.random.key)(jnp.arange(1)), held)]
        count, first = jnp.int32(1), jnp.int32(0)
        compiled, seconds = timed_compile(
            jax.jit(whole.chunk, donate_argnums=1).lower({}, ts[0], held, count, first)
        )

        def loop(ts: list = ts, compiled: Any = compiled, held: Any = held) -> Any:  # of this agent
            ts[0], metrics = compiled({}, ts[0], held, jnp.int32(1), jnp.int32(0))
            return metrics

        timed = Timed(loop, STEPS, seconds)
        for _ in range(repeats + 1):
            timed.run()
        speed = timed.updates / statistics.median(timed.seconds[1:])
        print(f"{name:12} {speed:7.1f} gradient steps/s, compiled in {seconds:.1f} s", flush=True)
        found.append({"agent": name, "updates_per_second": speed, "compile_seconds": seconds})
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
    record: dict[str, Any] = {**provenance()}
    if what != "latency":
        record["updates"] = updates(repeats, rows)
    if what != "updates":
        record["latency"] = latency(steps, episodes)
    if out:
        write_json(out, record)


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
