"""Speed of environments: steps per second of a batch in one compiled loop, compile time apart.

python benchmarks/envs.py
python benchmarks/envs.py --envs mjx/HalfCheetah-v5 brax/ant --batches 64 512
python benchmarks/envs.py --envs mjx/Ant-v5 --engines engine=c mujoco.rollout
python benchmarks/envs.py --batches 1024 4096 16384 --out results/speed_envs_gpu.json

Every environment is measured on each of its engines that this machine can run, with uniform random
actions. Ours is the whole step of a ``VectorEnv``: physics, observation, reward, resets, counting.
Beside the MuJoCo tasks stand, on all cores too, ``mujoco.rollout`` called step by step (physics
alone) and Gymnasium's vector environments, in one process and in many. Every line is from a process
of its own. Quote ratios: absolute figures do not carry to other machines. A results' file that
exists is kept, but for the lines that are measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ENVS = (
    *("gymnax/CartPole-v1", "gymnax/Breakout-MinAtar", "brax/ant", "playground/CheetahRun"),
    *("mjx/HalfCheetah-v5", "mjx/Hopper-v5", "mjx/Ant-v5", "mjx/Humanoid-v5"),
)
ENGINES: dict[str, list[dict[str, Any]]] = {
    "gymnax": [{}],
    "brax": [{"backend": name} for name in ("spring", "positional", "generalized", "mjx")],
    "playground": [{"impl": "jax"}, {"impl": "warp"}],
    "mjx": [
        *({"engine": "c"}, {"engine": "c", "exact": False}),
        *({"engine": "mjx"}, {"engine": "warp"}),
    ],
}
BESIDE = ("mujoco.rollout", "gymnasium sync", "gymnasium async")
PROCESSES = 64  # the most environments in processes of their own
STEPS = 32  # in one compiled loop


def ours(name: str, options: dict[str, Any], batch: int) -> tuple[Callable[[], None], float]:
    """A function that steps ``STEPS`` times, and the seconds until it could run."""
    import jax

    import jaxrl
    from jaxrl import rng

    venv = jaxrl.VectorEnv(jaxrl.make(name, **options), batch)
    space = venv.spec.action

    def advance(state: Any, key: jax.Array) -> Any:
        pool_key, step_key, action_key = jax.random.split(key, 3)
        pool = venv.reset_pool(pool_key)
        if isinstance(space, jaxrl.types.Discrete):
            actions = jax.random.randint(action_key, (STEPS, batch), 0, space.n)
        else:
            shape = (STEPS, batch, *space.shape)  # in units of [-1, 1], as agents act
            actions = jax.random.uniform(action_key, shape, minval=-1.0)

        def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any]:
            state, out = venv.step(key, state, action, pool)
            return state, out.reward

        state, rewards = rng.scan(step, state, jax.random.split(step_key, STEPS), actions)
        return state, rewards.sum()

    began = time.perf_counter()
    state = jax.jit(venv.reset)(jax.random.key(0))
    compiled = jax.jit(advance, donate_argnums=0).lower(state, jax.random.key(0)).compile()
    seconds = time.perf_counter() - began
    keys = iter(jax.random.split(jax.random.key(1), 1_000_000))
    held = [state]

    def run() -> None:
        held[0], _ = jax.block_until_ready(compiled(held[0], next(keys)))

    return run, seconds


def rollout(name: str, batch: int) -> Callable[[], None]:
    """``mujoco.rollout``, one environment step a call, on all cores: physics alone."""
    import mujoco
    import numpy as np
    from mujoco import rollout

    import jaxrl
    from jaxrl._startup import cores

    task = jaxrl.make(name, engine="c").task
    model, frames = task.model, task.frame_skip
    threads = cores()
    datas = [mujoco.MjData(model) for _ in range(threads)]
    pool = rollout.Rollout(nthread=threads)
    rng = np.random.default_rng(0)
    states = np.zeros((batch, mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)))
    states[:, 1 : 1 + model.nq] = model.qpos0
    low, high = model.actuator_ctrlrange.T
    models = [model] * batch
    held = [states]

    def run() -> None:
        actions = rng.uniform(low, high, (STEPS, batch, model.nu))
        for action in actions:
            controls = np.repeat(action[:, None], frames, axis=1)
            out, _ = pool.rollout(models, datas, held[0], controls, nstep=frames)
            held[0] = out[:, -1].copy()

    return run


def gymnasium(name: str, batch: int, mode: str) -> Callable[[], None]:
    """Gymnasium's vector environment, with actions drawn in bulk."""
    import gymnasium

    venv = gymnasium.make_vec(name.removeprefix("mjx/"), batch, vectorization_mode=mode)
    venv.reset(seed=0)
    space = gymnasium.vector.utils.batch_space(venv.action_space, STEPS)
    space.seed(0)

    def run() -> None:
        for action in space.sample():
            venv.step(action)

    return run


def measure(name: str, what: dict[str, Any] | str, batch: int, repeats: int, least: float) -> None:
    """Time one line in this process, and print it as JSON."""
    seconds = 0.0
    if isinstance(what, dict):
        run, seconds = ours(name, what, batch)
    elif what == "mujoco.rollout":
        run = rollout(name, batch)
    else:
        run = gymnasium(name, batch, what.removeprefix("gymnasium "))
    run()
    began = time.perf_counter()
    run()
    calls = max(1, round(least / (time.perf_counter() - began)))
    speeds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            run()
        speeds.append(calls * STEPS * batch / (time.perf_counter() - began))
    row = {
        "steps_per_second": round(statistics.median(speeds)),
        "min": round(min(speeds)),
        "max": round(max(speeds)),
        "repeats": repeats,
        "compile_seconds": round(seconds, 1),
    }
    print(json.dumps(row))
    sys.stdout.flush()
    os._exit(0)  # Gymnasium's many processes take long to join


def refusal(name: str, what: dict[str, Any] | str, batch: int, platform: str) -> str | None:
    """Why a line is left out on this machine, or None."""
    if what == "gymnasium async" and batch > PROCESSES:
        return f"at most {PROCESSES} processes"
    if isinstance(what, str):
        return None if platform == "cpu" else "measured on a CPU"
    if "warp" in what.values() and platform == "cpu":
        return "needs an NVIDIA GPU"
    if what.get("engine") == "c" and platform != "cpu":
        return "runs on a CPU"
    if what.get("exact") is False and name.partition("-")[0] in ("mjx/Ant", "mjx/Humanoid"):
        return "reads more than mujoco.rollout returns"
    return None


def label_of(what: dict[str, Any] | str) -> str:
    """An engine as ``--engines`` and the table name it."""
    return what if isinstance(what, str) else ", ".join(f"{k}={v}" for k, v in what.items())


def keep(path: str, row: dict[str, Any]) -> None:
    """Write a row into the file of results, in place of one of the same name.

    Each has the provenance of its own measurement; that of the whole file, if any, is of rows
    that have none.
    """
    names = ("env", "engine", "batch")
    found: dict[str, Any] = {"results": []}
    if os.path.exists(path):
        with open(path) as file:
            found = json.load(file)
    others = [old for old in found["results"] if any(old[x] != row[x] for x in names)]
    with open(path, "w") as file:
        json.dump(found | {"results": [*others, row]}, file, indent=2)
        file.write("\n")


def main() -> None:
    """Measure, print a table, and write it as JSON if asked."""
    about, _, _ = __doc__.partition("\n")
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--envs", nargs="+", default=list(ENVS))
    parser.add_argument("--engines", nargs="+", help="as the table names them; default all")
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 512, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="minimum seconds per repeat")
    parser.add_argument("--out", help="write the results here, as JSON")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what = json.loads(options.measure)
        measure(options.envs[0], what, options.batches[0], options.repeats, options.seconds)
        return

    import jax

    from jaxrl._startup import cores
    from jaxrl.record.provenance import provenance

    device = jax.devices()[0]
    about_machine = {"cores": cores()} | provenance()
    print(
        f"{'environment':28}{'engine':28}{'batch':>6}{'steps/s':>12}{'min':>12}{'max':>12}  compile"
    )
    for name in options.envs:
        suite = name.partition("/")[0]
        for what in [*ENGINES[suite], *(BESIDE if suite == "mjx" else ())]:
            label = label_of(what)
            if options.engines and label not in options.engines:
                continue
            for batch in options.batches:
                if refusal(name, what, batch, device.platform) is not None:
                    continue
                command = [sys.executable, __file__, "--measure", json.dumps(what)]
                command += ["--envs", name, "--batches", str(batch)]
                command += ["--repeats", str(options.repeats), "--seconds", str(options.seconds)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = [x for x in done.stdout.splitlines() if x.startswith("{")]
                if not lines:
                    print(f"{name:28}{label:28}{batch:6}  {done.stderr.strip()[-300:]}")
                    continue
                row = json.loads(lines[0])
                print(
                    f"{name:28}{label:28}{batch:6}{row['steps_per_second']:12,}{row['min']:12,}"
                    f"{row['max']:12,}{row['compile_seconds']:8.1f}s",
                    flush=True,
                )
                if options.out:
                    named = {"env": name, "engine": label, "batch": batch}
                    keep(options.out, named | row | about_machine)


if __name__ == "__main__":
    main()
