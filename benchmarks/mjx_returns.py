"""Returns of the ``mjx/*`` tasks beside Gymnasium's own.

python benchmarks/mjx_returns.py parity --runs runs/*-v5
python benchmarks/mjx_returns.py parity --tasks Hopper-v5 --pairs 8 --out /tmp/returns.json
python benchmarks/mjx_returns.py transfer runs/*-v5

``parity`` plays pairs of whole episodes: engine "mjx" in float32 with its default solver budget,
and ``gymnasium.make(task)`` put into the same first state. A uniform random policy also takes the
same actions in both; a trained policy acts on what it observes. Trajectories are chaotic and
diverge, so one pair says little; the claim is that the 95% interval of the mean difference contains
0. About 1 in 20 such intervals excludes 0 by chance: quote them all. If trajectories do not
diverge, a difference can be significant but too small to matter: ``relative`` says how large it is.

``transfer`` plays a run's greedy policy in ``gymnasium.make(task)`` from Gymnasium's own resets,
beside a fresh evaluation by jaxrl and the run's own. These are two samples: even if both are from
one distribution, the mean of one lies in the other's 95% interval in only 84 of 100 cases, but the
interval of the difference contains 0 in 95.

The results' file is kept up to date row by row; what it holds already is not measured again.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats  # type: ignore[import-untyped]

import jaxrl
from jaxrl.analysis.load import load, load_config, load_summary
from jaxrl.cli import launch, prepare
from jaxrl.envs import make_recorded
from jaxrl.envs.mjx import TASKS
from jaxrl.envs.mjx.task import old_xml_unsaid
from jaxrl.errors import UsageError
from jaxrl.record import checkpoint
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance
from jaxrl.training.evaluate import evaluate

Array = np.ndarray
Act = Callable[[Array, int], Array]  # observations [n, O] and the step to actions [n, A]
Episodes = tuple[Array, Array, Array]  # returns, lengths, and whether all was finite: each [n]


class Gymnasium:
    """``n`` environments of Gymnasium with all their wrappers, such as the time limit."""

    def __init__(self, task: str, n: int, seed: int, starts: Any = None) -> None:
        with old_xml_unsaid():
            self.envs: list[Any] = [gymnasium.make(task) for _ in range(n)]
        self.obs = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(self.envs)])
        for i, qpos, qvel in zip(range(n), *starts, strict=True) if starts else ():
            env = self.envs[i].unwrapped
            mujoco.mj_resetData(env.model, env.data)  # no warm start of the state before
            env.set_state(qpos.astype(np.float64), qvel.astype(np.float64))
            self.obs[i] = env._get_obs()

    def step(self, actions: Array, alive: Array) -> tuple[Array, Array, Array]:
        """Observations ``[n, O]``, rewards and ends ``[n]``; only those alive are stepped."""
        reward, ended = np.zeros(len(alive)), ~alive
        for i in np.flatnonzero(alive):
            out = self.envs[i].step(actions[i].astype(np.float64))
            self.obs[i], reward[i], ended[i] = out[0], out[1], out[2] or out[3]
        return self.obs.copy(), reward, ended


class Mjx:
    """A batch of ours, over as many devices as divide it; one program serves every policy."""

    def __init__(self, env: Any, starts: Any) -> None:
        self.start, self.obs = jax.device_get(jax.jit(jax.vmap(env.reset_to))(*starts))
        devices = jax.devices()[: math.gcd(len(self.obs), jax.device_count())]
        mesh, spec = Mesh(devices, ("n",)), PartitionSpec("n")
        self.rows = NamedSharding(mesh, spec)

        def step(state: Any, action: Any) -> Any:
            return jax.vmap(env.step, (None, 0, 0))(jax.random.key(0), state, action)

        sharded = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        self._step = jax.jit(sharded)

    def restart(self) -> None:
        """Go back to the first states."""
        self.state = jax.device_put(self.start, self.rows)

    def step(self, actions: Array, alive: Array) -> tuple[Array, Array, Array]:
        """Like ``Gymnasium.step``, but finished episodes are stepped too, and not counted."""
        self.state, out = self._step(self.state, jax.device_put(actions, self.rows))
        return np.asarray(out.obs), np.asarray(out.reward), np.asarray(out.terminated)


def play(side: Gymnasium | Mjx, act: Act, horizon: int, label: str) -> Episodes:
    """One episode per row, to its end or the horizon. Non-finite steps end it, without reward."""
    obs, n = side.obs.copy(), len(side.obs)
    returns, lengths = np.zeros(n), np.zeros(n, int)  # sums in float64 on either side
    alive, finite = np.ones(n, bool), np.ones(n, bool)
    for t in range(horizon):
        if t % 100 == 0:
            print(f"{label}: step {t} of {horizon}, {alive.sum()} going", file=sys.stderr)
        obs, reward, ended = side.step(act(obs, t), alive)
        fine = np.isfinite(obs).all(axis=1) & np.isfinite(reward)
        lengths += alive
        returns += np.where(alive & fine, reward, 0.0)
        finite &= fine | ~alive
        alive &= fine & ~ended
        if not alive.any():
            break
    return returns, lengths, finite


def uniform(env: Any, n: int, horizon: int, seed: int) -> Act:
    """Random actions, drawn beforehand for every step and row: the same whoever plays."""
    space, shape = env.spec.action, (horizon, n, *env.spec.action.shape)
    actions = jax.random.uniform(jax.random.key(seed), shape, minval=space.low, maxval=space.high)
    table = np.asarray(actions)  # [T, n, A]
    return lambda obs, t: table[t]


def load_run(path: str) -> tuple[dict[str, Any], Any, Act]:
    """Which policy it is (the first seed's, of the newest checkpoint), the policy, and its actions.

    Raises:
        UsageError: for what was not trained on a task as Gymnasium makes it.
    """
    config = load_config(path)
    name, options = config["env"], config["env_options"]
    task = name.removeprefix("mjx/")
    envs = [vars(make_recorded(name, given)) for given in (options, {}) if task in TASKS]
    if not envs or envs[0]["options"] != envs[1]["options"]:
        raise UsageError(f"{path} is of {name} with {options}; give one of mjx/<Task> as it is")
    iteration = max(checkpoint.available(Path(path) / "checkpoints"), default=None)
    policy = jaxrl.load_policy(path, iteration=iteration)
    which = {"task": task, "policy": "trained", "run": path, "policy_seed": config["seeds"][0]}
    which |= {"policy_iteration": iteration}
    return which, policy, lambda obs, t: np.asarray(policy(obs.astype(np.float32)))


def own_evaluation(which: dict[str, Any]) -> dict[str, Any] | None:
    """The finished run's last evaluation of that seed, and its summary's mean over all seeds.

    None for unfinished runs, whose newest checkpoint may be older than their last evaluation.
    """
    rows, summary = load(which["run"], "eval"), load_summary(which["run"])
    if summary is None:
        return None
    returns = rows[rows["seed"] == which["policy_seed"]]["returns"].iloc[-1]
    mean = summary["final_return"]["mean"]
    return interval(returns) | {"episodes": len(returns), "summary_mean": mean}


def interval(x: Any) -> dict[str, Any]:
    """The mean of ``x[n]`` and its 95% interval by Student's t."""
    mean, half = np.mean(x), stats.t.ppf(0.975, len(x) - 1) * stats.sem(x)
    return {"mean": float(mean), "ci95": [float(mean - half), float(mean + half)]}


def compared(ours: Episodes, theirs: Episodes) -> dict[str, Any]:
    """Both sides, whether pairs or independent, and the difference: ours minus theirs."""
    row: dict[str, Any] = {}
    for name, (returns, lengths, finite) in (("jaxrl", ours), ("gymnasium", theirs)):
        own = {"length": float(lengths.mean()), "nonfinite": int((~finite).sum())}
        row[name] = interval(returns.astype(np.float64)) | own
    apart = interval(ours[0].astype(np.float64) - theirs[0])
    apart["relative"] = apart["mean"] / (abs(row["gymnasium"]["mean"]) or 1.0)
    low, high = apart["ci95"]
    return row | {"difference": apart, "zero_in_interval": low <= 0.0 <= high}


class Results:
    """Rows in a JSON file, which is written whole after each of them."""

    def __init__(self, path: str, episodes: int) -> None:
        if episodes < 2:
            raise UsageError(f"{episodes} episodes have no interval; give at least 2, such as 64")
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.rows = json.loads(self.path.read_text())["rows"] if self.path.exists() else []
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"out is {path}, which holds no such rows; give another") from None

    def has(self, settings: dict[str, Any]) -> bool:
        """Whether there is a row of just these settings."""
        return any(row | settings == row for row in self.rows)

    def add(self, row: dict[str, Any], began: float) -> None:
        """Write a row, in place of one of the same task, policy and run, and print it."""
        row = row | {"seconds": round(time.monotonic() - began, 1)} | provenance()
        row["versions"]["gymnasium"] = metadata.version("gymnasium")
        names = ("task", "policy", "run")
        others = [old for old in self.rows if any(old[name] != row[name] for name in names)]
        self.rows = [*others, row]
        write_json(self.path, {"rows": self.rows})
        ours, theirs, apart = (row[of] for of in ("jaxrl", "gymnasium", "difference"))
        means = f"jaxrl {ours['mean']:.4f}, gymnasium {theirs['mean']:.4f}"
        low, high = apart["ci95"]
        print(f"{row['task']} {row['policy']}: {means}, apart {low:.3g} to {high:.3g}", flush=True)


def parity(
    tasks: tuple[str, ...] = TASKS,
    pairs: int = 64,
    runs: tuple[str, ...] = (),
    seed: int = 0,
    out: str = "results/mjx_returns.json",
) -> None:
    """Play pairs of episodes: a random policy, and a trained one where there is a run."""
    results = Results(out, pairs)
    # First of all: MJX sets XLA's threads, which is too late once JAX has computed.
    envs: dict[str, Any] = {task: jaxrl.make(f"mjx/{task}", engine="mjx") for task in tasks}
    trained = {run[0]["task"]: run for run in map(load_run, runs)}
    for task, env in envs.items():
        horizon = env.spec.max_steps
        common = {"task": task, "pairs": pairs, "horizon": horizon, "seed": seed}
        common |= {"env_options": env.options, "dtype": str(jnp.result_type(float))}
        random = common | {"policy": "random", "run": None}
        todo = [(random, uniform(env, pairs, horizon, seed + 1))]
        if task in trained:
            which, _, act = trained[task]
            todo.append((common | which, act))
        todo = [(settings, act) for settings, act in todo if not results.has(settings)]
        if not todo:
            continue
        keys = jax.random.split(jax.random.key(seed), pairs)
        starts = jax.device_get(jax.jit(jax.vmap(env.task.start))(keys))
        ours = Mjx(env, starts)
        for settings, act in todo:
            began, label = time.monotonic(), f"{task} {settings['policy']}"
            ours.restart()
            theirs = Gymnasium(task, pairs, seed, starts)
            first = {"first_observation_error": float(np.abs(ours.obs - theirs.obs).max())}
            sides = ((ours, f"{label}, mjx"), (theirs, f"{label}, gymnasium"))
            played = [play(side, act, horizon, of) for side, of in sides]
            results.add(settings | first | compared(*played), began)


def transfer(
    runs: tyro.conf.Positional[tuple[str, ...]],
    episodes: int = 100,
    engine: str | None = None,
    seed: int = 1,
    out: str = "results/mjx_transfer.json",
) -> None:
    """Play every run's policy in Gymnasium from its own resets, beside jaxrl's evaluation."""
    results = Results(out, episodes)
    for path in runs:
        began, (which, policy, act) = time.monotonic(), load_run(path)
        env: Any = jaxrl.make(f"mjx/{which['task']}", engine=engine)
        settings = which | {"episodes": episodes, "seed": seed, "env_options": env.options}
        if results.has(settings):
            continue
        program = jax.jit(evaluate, static_argnums=2)
        keys = jax.random.split(jax.random.key(seed), episodes)
        ours = jax.device_get(program(policy.agent, policy.state, env, keys))
        side = Gymnasium(which["task"], episodes, seed)
        theirs = play(side, act, env.spec.max_steps, f"{path}, gymnasium")
        row = settings | {"run_evaluation": own_evaluation(which)} | compared(ours, theirs)
        low, high = row["jaxrl"]["ci95"]
        row["gymnasium_in_jaxrl_interval"] = low <= row["gymnasium"]["mean"] <= high
        results.add(row, began)


def main() -> None:
    """The command line."""
    prepare(None)
    commands: dict[str, Callable[..., None]] = {"parity": parity, "transfer": transfer}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)


if __name__ == "__main__":
    launch(main)
