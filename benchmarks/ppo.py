"""Speed of PPO's whole training loop: environment steps per second, compile time apart.

python benchmarks/ppo.py
python benchmarks/ppo.py --workloads cartpole --seeds 1 8 32 --out results/speed.json
python benchmarks/ppo.py --workloads ant --beside 'other=python other.py {workload} --seeds {seeds}'

Every figure is from a process of its own. A command given by ``--beside`` takes turns with ours,
round by round; it prints one JSON line per repeat with ``steps_per_second`` (of all seeds together,
compile time excluded) and ``compile_seconds``. Quote ratios: absolute figures do not carry to other
machines.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any

from jaxrl._startup import cores

WIDE = {"hidden_dims": (256, 256)}
WORKLOADS: dict[str, dict[str, Any]] = {
    "cartpole": {
        "env": "gymnax/CartPole-v1",
        "num_envs": 4,
        "num_steps": 128,
        "normalize": False,
        "times": "rollout, update and metrics; 4 epochs x 4 minibatches, two 64x64 networks",
        "iterations": 800,  # of one seed; several share them, so that all runs take as long
        "agent": {
            "learning_rate": 2.5e-4,
            "entropy_coef": 0.01,
            "update_epochs": 4,
            "num_minibatches": 4,
        },
    },
    "ant": {
        "env": "brax/ant",
        "num_envs": 2048,
        "num_steps": 10,
        "normalize": True,
        "times": "physics (spring), update, metrics; 4 epochs x 32 minibatches, 256x256 networks",
        "iterations": 10,
        "agent": {"update_epochs": 4, "num_minibatches": 32, "policy": WIDE, "critic": WIDE},
    },
    "half_cheetah": {
        "env": "mjx/HalfCheetah-v5",
        "num_envs": 64,
        "num_steps": 64,
        "normalize": True,
        "times": "physics (MuJoCo), update, metrics; 8 epochs x 16 minibatches, 64x64 networks",
        "iterations": 20,
        "agent": {"update_epochs": 8, "num_minibatches": 16},
    },
}
WORKLOADS["half_cheetah_rollout"] = WORKLOADS["half_cheetah"] | {"options": {"exact": False}}


def measure(workload: str, seeds: int, devices: int | None, repeats: int) -> None:
    """Time our own loop in this process: one JSON line per repeat."""
    import jax
    import jax.numpy as jnp

    import jaxrl
    from jaxrl import hyper
    from jaxrl.run.devices import Programs
    from jaxrl.run.placement import choose

    at = WORKLOADS[workload]
    agent = hyper.override(jaxrl.PPO(), at["agent"])
    env = jaxrl.VectorEnv(jaxrl.make(at["env"], **at.get("options", {})), at["num_envs"])
    trainer = jaxrl.OnPolicy(
        jaxrl.NormalizeObs(agent) if at["normalize"] else agent, env, num_steps=at["num_steps"]
    )
    placement = choose([trainer], seeds, devices)
    programs = Programs(trainer, placement)
    iterations = max(at["iterations"] // min(seeds, 8), 10)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))

    began = time.perf_counter()
    ts = jax.block_until_ready(jax.jit(programs.init)({}, keys))
    count = jnp.int32(0)
    chunk = jax.jit(programs.chunk, donate_argnums=1).lower({}, ts, (), count, count).compile()
    compile_seconds = time.perf_counter() - began
    steps = iterations * trainer.steps_per_iteration * seeds
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        done = jnp.int32(repeat * iterations)
        ts, metrics = jax.block_until_ready(chunk({}, ts, (), jnp.int32(iterations), done))
        seconds = time.perf_counter() - began
        if repeat:  # the first one warms up
            row = {
                "steps_per_second": round(steps / seconds, 1),
                "compile_seconds": round(compile_seconds, 2),
                "devices": placement.members * placement.shards,
                "platform": jax.devices()[0].device_kind,
            }
            print(json.dumps(row), flush=True)


def collect(command: list[str]) -> list[dict[str, Any]]:
    """The JSON lines that a command prints; its other output passes through on failure."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"benchmarks/ppo.py: {shlex.join(command)} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, minimum and maximum over all repeats."""
    speeds = [row["steps_per_second"] for row in rows]
    return {
        "steps_per_second": statistics.median(speeds),
        "min": min(speeds),
        "max": max(speeds),
        "repeats": len(speeds),
        "compile_seconds": statistics.median(row["compile_seconds"] for row in rows),
        **{key: rows[0][key] for key in ("devices", "platform") if key in rows[0]},
    }


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every workload and number of seeds, all commands taking turns; prints as it goes."""
    own = [sys.executable, __file__, "--measure", "--repeats", str(options.repeats)]
    if options.devices is not None:
        own += ["--devices", str(options.devices)]
    results = []
    heads = f"{'workload':10}{'seeds':>6}  {'command':12}"
    print(heads + "".join(f"{head:>12}" for head in ("steps/s", "min", "max")) + "  compile")
    for workload in options.workloads:
        what = WORKLOADS[workload]
        sizes = f"{what['env']}, {what['num_envs']} envs x {what['num_steps']} steps a seed"
        print(f"# {sizes}; timed: {what['times']}")
        for seeds in options.seeds:
            words = [part.partition("=") for part in options.beside]
            commands = {"jaxrl": [*own, "--workloads", workload, "--seeds", str(seeds)]} | {
                name: shlex.split(text.format(workload=workload, seeds=seeds))
                for name, _, text in words
            }
            rows: dict[str, list] = {name: [] for name in commands}
            for _ in range(options.rounds):
                for name, command in commands.items():
                    rows[name] += collect(command)
            for name, found in rows.items():
                row = {"workload": workload, "seeds": seeds, "command": name} | summary(found)
                row |= {"sizes": sizes, "times": what["times"]}
                results.append(row)
                print(
                    f"{workload:10}{seeds:6}  {name:12}{row['steps_per_second']:12,.0f}"
                    f"{row['min']:12,.0f}{row['max']:12,.0f}{row['compile_seconds']:8.1f}s",
                    flush=True,
                )
    return results


def main() -> None:
    """Measure, print a table, and write it as JSON if asked."""
    about, _, _ = __doc__.partition("\n")
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--devices", type=int, help="default: all that the sizes divide over")
    parser.add_argument("--repeats", type=int, default=5, help="timed chunks of each process")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each command")
    parser.add_argument("--beside", nargs="+", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--out", help="write the results here, as JSON")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.workloads[0], options.seeds[0], options.devices, options.repeats)
        return
    results = compare(options)
    if options.out:
        from jaxrl.record.provenance import provenance  # JAX takes the device: not while we measure

        record = {"cores": cores(), **provenance(), "results": results}
        with open(options.out, "w") as file:
            json.dump(record, file, indent=2)
            file.write("\n")


if __name__ == "__main__":
    main()
