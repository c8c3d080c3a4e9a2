"""Ways to six goals: does a clone choose one of them, or their mean?

python benchmarks/multi_goal.py
python benchmarks/multi_goal.py --names gaussian flow --horizons 8 --num-seeds 2

The data of ``maze/Goals-v0`` are walks from the middle of a room to six goals. The goal is not
observed, so that at the start six directions are right and their mean is not. Clones play 512
episodes in which every goal counts, of 20 steps; the longest walk of the data has 16. ``horizon``
is the number of actions that are predicted and played at once: with one, noise and the next
observation soon decide for a goal, with eight the policy has to. ``reached`` is the share of
episodes that end at a goal, ``steps`` the mean length of these, ``distance`` the total variation
distance between their shares of the goals and the data's, and ``goals`` these shares.
``deterministic`` minimises squared errors. The figure shows episodes of the first seed.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from modes import DEEP, DIFFUSION, FLOW, trained

import jaxrl
from jaxrl.agents.chunks import Chunks
from jaxrl.analysis.statistics import final_return
from jaxrl.cli import launch
from jaxrl.data import Dataset, Windows
from jaxrl.data.formats import load
from jaxrl.data.shipped import shipped_path
from jaxrl.envs.maze import RADIUS, PointMaze
from jaxrl.nn.policies import Deterministic, Gaussian
from jaxrl.record.folder import write_json
from jaxrl.record.provenance import provenance
from jaxrl.record.recorder import record
from jaxrl.types import Array, Key, Step

EPISODES, LIMIT, DRAWN = 512, 20, 60
DATA = "maze/Goals-v0/goals"
FAMILIES = {
    "deterministic": Deterministic(**DEEP),
    "gaussian": Gaussian(**DEEP, std="exp"),
    "diffusion": DIFFUSION,
    "flow": FLOW,
}


@dataclasses.dataclass(frozen=True)
class AnyGoal(PointMaze):
    """The room of ``maze/Goals-v0``, observed as a position; an episode ends at any goal."""

    task: str = "Goals-v0"

    def step(self, key: Key, state: Array, action: Array) -> tuple[Array, Step]:
        """Advance one step; the reward is 1 at a goal."""
        goals = jnp.array(self.centres("G"), jnp.float32)
        goal = goals[jnp.argmin(jnp.linalg.norm(goals - state, axis=-1))]
        state, reward, reached = self.moved(state, action, goal)
        return state, Step(self.observe(state), reward, reached, jnp.zeros_like(reached), {})


ENV = AnyGoal()


def in_cells(position: np.ndarray) -> np.ndarray:
    """Return observed positions ``[..., 2]`` in cells."""
    rows, columns = ENV.cells.shape
    found: np.ndarray = (position + 1.0) / 2.0 * np.array([columns, rows])
    return found


def ends(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the goal that each episode ended nearest to, and whether it reached it: ``[E]`` each.

    By its last observation; there may be no record of the one behind it.
    """
    last = data.terminated | data.truncated
    away = in_cells(data.obs[last])[:, None] - ENV.centres("G")
    return np.linalg.norm(away, axis=-1).argmin(-1), data.terminated[last]


def shares(data: Dataset) -> np.ndarray:
    """Return the shares of the goals among the episodes that ended at one: ``[6]``."""
    goal, reached = ends(data)
    count = np.bincount(goal[reached], minlength=len(ENV.centres("G")))
    return count / max(count.sum(), 1)


def measure(played: list[Dataset], data: Dataset) -> dict[str, Any]:
    """Return what the episodes of several seeds say about the goals."""
    reached = [ends(each)[1] for each in played]
    found = np.stack([shares(each) for each in played])
    lengths = [each.lengths()[at].mean() for each, at in zip(played, reached, strict=True)]
    return {
        "reached": final_return([at.mean() for at in reached]),
        "steps": final_return(lengths),
        "distance": final_return(0.5 * np.abs(found - shares(data)).sum(-1)),
        "goals": found.mean(0).round(4).tolist(),
    }


def play(name: str, horizon: int, data: Dataset, num_seeds: int, steps: int) -> list[Dataset]:
    """Return the episodes that each seed's clone plays after ``steps`` gradient steps."""
    agent = Chunks(jaxrl.BC(FAMILIES[name], learning_rate=1e-3, ema_decay=0.995), horizon)
    bound, states = trained(agent, ENV.spec, data, num_seeds, steps, Windows(horizon, 1))
    env = jaxrl.VectorEnv(ENV, EPISODES, max_steps=LIMIT)

    def episodes(seed: int) -> Dataset:
        state = jax.tree.map(lambda x: x[seed], states)
        return record((bound, state), env, jax.random.key(1), episodes=EPISODES)

    return [episodes(seed) for seed in range(num_seeds)]


def draw(found: dict[tuple[str, int], Dataset], data: Dataset, path: Path) -> None:
    """Draw the first episodes of every agent in the room: a row for each horizon."""
    from matplotlib.figure import Figure

    names, horizons = (list(dict.fromkeys(each)) for each in zip(*found, strict=True))
    figure = Figure(figsize=(3.1 * (len(names) + 1), 2.7 * len(horizons)), layout="constrained")
    axes = figure.subplots(len(horizons), len(names) + 1, squeeze=False)
    for row, horizon in zip(axes, horizons, strict=True):
        draw_one(row[0], data, "data")
        for ax, name in zip(row[1:], names, strict=True):
            title = f"{name}, {horizon} action{'s' * (horizon > 1)} at once"
            draw_one(ax, found[name, horizon], title)
    figure.savefig(path, dpi=140)


def draw_one(ax: Any, data: Dataset, title: str) -> None:
    """Draw the first episodes of a dataset in the room."""
    from matplotlib.patches import Circle

    rows, columns = ENV.cells.shape
    ax.imshow(ENV.cells == "#", cmap="Greys", vmax=2, extent=(0, columns, rows, 0))
    for goal in ENV.centres("G"):
        ax.add_patch(Circle(goal, RADIUS, color="#009E73", alpha=0.4))
    last = np.flatnonzero(data.terminated | data.truncated)
    for first, end in zip(data.first_rows()[:DRAWN], last, strict=False):
        way = in_cells(data.obs[first : end + 1])
        ax.plot(*way.T, color="#0072B2", linewidth=0.7, alpha=0.6)
    ax.set(title=title, xticks=[], yticks=[])


def main(
    names: tuple[str, ...] = tuple(FAMILIES),
    horizons: tuple[int, ...] = (1, 8),
    num_seeds: int = 4,
    steps: int = 3_000,
    out: Path = Path("results/generative_goals.json"),
) -> None:
    """Train, play, print a table, and write the results and the figure."""
    data, drawn, rows = load(shipped_path(DATA), quiet=True), {}, []
    print(f"{'agent':16}{'horizon':>8}{'reached':>9}{'steps':>8}{'distance':>10}")
    for name, horizon in itertools.product(names, horizons):
        played = play(name, horizon, data, num_seeds, steps)
        drawn[name, horizon] = played[0]
        row = {"agent": name, "horizon": horizon, **measure(played, data)}
        rows.append(row)
        reached, length, distance = (row[key]["iqm"] for key in ("reached", "steps", "distance"))
        print(f"{name:16}{horizon:8}{reached:9.1%}{length:8.1f}{distance:10.3f}", flush=True)
    sizes = {"steps": steps, "seeds": num_seeds, "episodes": EPISODES, "limit": LIMIT}
    of_data = {"goals": shares(data).round(4).tolist(), "steps": float(data.lengths().mean())}
    write_json(out, {**sizes, **provenance(), "dataset": DATA, "data": of_data, "results": rows})
    draw(drawn, data, out.with_suffix(".png"))


if __name__ == "__main__":
    launch(lambda: tyro.cli(main, description=__doc__))
