"""Whether a run learns as well with its environments over several devices as on one.

python benchmarks/sharding.py --env gymnax/CartPole-v1 --total-steps 60000
python benchmarks/sharding.py --env brax/ant

PPO of ``experiments/ppo.py``, eight seeds, on simulated devices of a CPU: the same settings on one
device, and with the environments of every seed over ``--shards`` devices. The final returns' IQMs
are compared by the bootstrap interval of their difference. Each placement is kept in ``--runs`` and
not trained again; tasks are added to ``--out``.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxrl import _startup
from jaxrl.analysis.statistics import difference_ci, final_return
from jaxrl.cli import launch
from jaxrl.cli.composing import Script
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance
from jaxrl.run.devices import Programs
from jaxrl.run.placement import Placement
from jaxrl.training.evaluate import EVALUATION_SEED

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    env: str = "gymnax/CartPole-v1"
    """The environment."""
    total_steps: int | None = None
    """Environment steps of each seed; default those of the task's preset."""
    words: str = ""
    """Further options of experiments/ppo.py."""
    num_seeds: int = 8
    """Seeds of each placement."""
    shards: int = 8
    """Devices that share the environments of a seed."""
    evaluations: int = 10
    """Evaluations of each seed, the last one after the last step."""
    episodes: int = 32
    """Episodes of an evaluation."""
    runs: Path = Path("runs/sharding")
    """The folder of what is already trained."""
    out: Path = Path("results/sharded_learning.json")
    """The results."""


def train(config: Config, shards: int) -> dict[str, Any]:
    """Train all seeds in one program, each over ``shards`` devices: returns and seconds."""
    words = ["--env", config.env, *shlex.split(config.words)]
    if config.total_steps is not None:
        words += ["--total-steps", str(config.total_steps)]
    arguments = Script("ppo", EXPERIMENTS).compose(words)
    trainer, steps = arguments["trainer"], arguments["total_steps"]
    trainer.check(shards)
    programs = Programs(trainer, Placement(1, shards))
    seeds = jax.vmap(jax.random.key)(jnp.arange(config.num_seeds))
    episodes = jax.random.split(jax.random.key(EVALUATION_SEED), config.episodes)

    began = time.monotonic()
    ts = jax.block_until_ready(jax.jit(programs.init)({}, seeds))
    compiled = programs.compiled({}, ts, (), episodes)
    assert compiled.evaluate is not None
    compiling = time.monotonic() - began

    total = trainer.iterations(steps)
    ends = [round(total * (i + 1) / config.evaluations) for i in range(config.evaluations)]
    returns, done, training = [], 0, 0.0
    for end in ends:
        began = time.monotonic()
        ts, _ = jax.block_until_ready(
            compiled.chunk({}, ts, (), jnp.int32(end - done), jnp.int32(done))
        )
        training, done = training + time.monotonic() - began, end
        played = compiled.evaluate({}, ts, episodes).returns
        returns.append(np.asarray(played).mean(axis=1).tolist())
    every = trainer.steps_per_iteration
    return {
        "shards": shards,
        "env_steps": total * every,
        "curve": {str(end * every): row for end, row in zip(ends, returns, strict=True)},
        "final_return": final_return(returns[-1]),
        "compile_seconds": round(compiling, 1),
        "train_seconds": round(training, 1),
    }


def main() -> None:
    """Train both placements, and add the task to the results."""
    config = tyro.cli(Config, description=__doc__)
    _startup.prepare(config.shards)
    found = {}
    for shards in (1, config.shards):
        path = config.runs / f"{config.env.replace('/', '-')}_{shards}.json"
        options = json.loads(json.dumps(dataclasses.asdict(config), default=str))
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get("options") != options:
            known = {"options": options, **train(config, shards), **provenance()}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
        found[shards] = known
        iqm, interval = known["final_return"]["iqm"], known["final_return"]["ci95"]
        print(f"{config.env} over {shards} devices: final return {iqm:.1f} {interval}")
    one, sharded = (found[n]["final_return"] for n in (1, config.shards))
    low, high = difference_ci(sharded["per_seed"], one["per_seed"])
    result = {
        "one_device": found[1],
        "sharded": found[config.shards],
        "difference_of_iqm": sharded["iqm"] - one["iqm"],
        "ci95_of_difference": [low, high],
        "equal_within_interval": bool(low <= 0.0 <= high),
    }
    before = json.loads(config.out.read_text()) if config.out.exists() else {}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.out, before | {config.env: result})
    print(f"difference of the IQMs {result['difference_of_iqm']:.1f}, 95% {low:.1f} to {high:.1f}")


if __name__ == "__main__":
    launch(main)
