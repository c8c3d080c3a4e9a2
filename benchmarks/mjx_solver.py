"""Gymnasium's humanoids with Newton's method in place of PGS, measured in Gymnasium itself.

python benchmarks/mjx_solver.py --out results/mjx_solver.json

MJX has no PGS. Both solvers step once from the same states of random episodes (of PGS), warm starts
included: the largest difference of a position, and the difference in reward. Then each plays whole
episodes with a uniform random policy, from the same starts and with the same actions.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
from mjx_returns import interval

from jaxrl.envs.mjx.task import old_xml_unsaid
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance

EPISODES = {"Humanoid-v5": 200, "HumanoidStandup-v5": 30}
STATES = 300
SPARSE = 5  # every this many of an episode's states is one of them
PGS, NEWTON = mujoco.mjtSolver.mjSOL_PGS, mujoco.mjtSolver.mjSOL_NEWTON
INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION


def stepped(env: Any, state: np.ndarray, action: np.ndarray, solver: int) -> tuple[Any, float]:
    """Positions and reward after one step from a full state of the integration."""
    env.model.opt.solver = solver
    mujoco.mj_setState(env.model, env.data, state, INTEGRATION)
    mujoco.mj_forward(env.model, env.data)  # the reward compares with where the body was
    mujoco.mj_setState(env.model, env.data, state, INTEGRATION)
    reward = env.step(action)[1]
    return env.data.qpos.copy(), reward


def steps_apart(env: Any) -> dict[str, Any]:
    """Median and largest difference of a step."""
    rng, positions, rewards = np.random.default_rng(0), list[float](), list[float]()
    state = np.empty(mujoco.mj_stateSize(env.model, INTEGRATION))
    ended, t = True, 0
    while len(positions) < STATES:
        if ended or t % 1000 == 0:
            env.reset(seed=len(positions))
        action = rng.uniform(env.action_space.low, env.action_space.high)
        mujoco.mj_getState(env.model, env.data, state, INTEGRATION)
        t += 1
        if t % SPARSE == 0:
            ours, theirs = (stepped(env, state, action, solver) for solver in (NEWTON, PGS))
            positions.append(np.abs(ours[0] - theirs[0]).max())
            rewards.append(abs(ours[1] - theirs[1]))
            mujoco.mj_setState(env.model, env.data, state, INTEGRATION)
            mujoco.mj_forward(env.model, env.data)
            mujoco.mj_setState(env.model, env.data, state, INTEGRATION)
        env.model.opt.solver = PGS
        ended = env.step(action)[2]
    both = {"position": positions, "reward": rewards}
    return {k: {"median": float(np.median(x)), "largest": float(max(x))} for k, x in both.items()}


def returns(env: Any, solver: int, episodes: int) -> np.ndarray:
    """Returns ``[episodes]`` of the random policy."""
    env.model.opt.solver = solver
    totals = np.zeros(episodes)
    for seed in range(episodes):
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        for _ in range(1000):
            action = rng.uniform(env.action_space.low, env.action_space.high)
            _, reward, ended, *_ = env.step(action)
            totals[seed] += reward
            if ended:
                break
    return totals


def main() -> None:
    """Measure both tasks, print them, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", help="write the results here, as JSON")
    options = parser.parse_args()
    rows = []
    for task, episodes in EPISODES.items():
        with old_xml_unsaid():
            env: Any = gymnasium.make(task).unwrapped
        row: dict[str, Any] = {"task": task, "states": STATES, "step": steps_apart(env)}
        newton, pgs = (returns(env, solver, episodes) for solver in (NEWTON, PGS))
        row |= {"episodes": episodes, "newton": interval(newton), "pgs": interval(pgs)}
        row["difference"] = interval(newton - pgs)
        print(row, flush=True)
        rows.append(row | provenance())
        if options.out:
            write_json(Path(options.out), {"rows": rows})


if __name__ == "__main__":
    main()
