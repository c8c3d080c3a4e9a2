"""Datasets of a task: random, medium, medium-replay, medium-expert and expert, as D4RL makes them.

python experiments/make_dataset.py --env gymnax/Pendulum-v1 --out runs/data
python experiments/make_dataset.py --env mjx/Hopper-v5 --total-steps 1000000 --rows 1000000
python experiments/make_dataset.py --env maze/Stitch-v0
python experiments/make_dataset.py --env maze/Goals-v0 --rows 6000

SAC is trained, and its policies are recorded with sampled actions. The expert is the last policy;
the medium one is the first whose return has come a third of the way from the random policy's to the
expert's, and medium-replay is the replay buffer at that moment. Mazes have a scripted dataset
instead: paths to the bend and from it, or paths from the start to each of several goals.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy.sparse.csgraph import shortest_path

from jaxrl import SAC, NormalizeObs, OffPolicy, ScaleReward, UsageError, VectorEnv, cli, make
from jaxrl.cli.presets import sac
from jaxrl.data import concatenate
from jaxrl.data.dataset import Dataset
from jaxrl.data.describe import describe, lines
from jaxrl.data.replay import Replay
from jaxrl.data.scores import Reference
from jaxrl.envs.maze import GoalMaze, PointMaze
from jaxrl.record.recorder import from_replay, record
from jaxrl.record.writers import write_d4rl
from jaxrl.types import Array, Key, Mode, PyTree, Spec, TrainState


@dataclasses.dataclass(frozen=True)
class Config(cli.OffPolicyOptions):
    """Train SAC and record datasets of its policies. Defaults are those of SAC on the task."""

    env: str = "gymnax/Pendulum-v1"
    out: str = "runs/data"
    """The folder of the datasets: OUT/<env>/<quality>.hdf5. No file is replaced."""
    rows: int = 20_000
    """Transitions of each dataset, in whole episodes; medium-replay has at most the newest."""
    medium: float = 1 / 3
    """The part of the way from the random return to the expert's at which a policy is medium."""
    agent: SAC = SAC()


def main() -> None:
    """Train, record, and write the files."""
    config = cli.parse(Config, sac.PRESETS)
    if config.distributed is not None:
        raise UsageError("distributed is for training; a dataset is made by one process")
    cli.prepare(1)
    env = make(config.env, **config.env_settings)
    if isinstance(env, PointMaze):
        reference = Reference(0.0, 1.0, "the rate of success")
        if isinstance(env, GoalMaze):
            spec = dataclasses.replace(env.spec, observation=env.spec.observation["state"])
            write(config, spec, {"goals": ways(env, config)}, reference)
        else:
            write(config, env.spec, {"stitch": stitching(env, config)}, reference)
        return

    venv = VectorEnv(env, config.num_envs, config.reset_mode, max_steps=config.max_steps)
    agent: Any = config.agent
    if config.reward_scale != 1.0:
        agent = ScaleReward(agent, config.reward_scale)
    if config.normalize_obs:
        agent = NormalizeObs(agent)
    sizes = ("batch_size", "learning_starts", "num_steps", "num_updates")
    options = {name: getattr(config, name) for name in sizes}
    # Nothing is overwritten, so the first rows of the last buffer are those of any time before.
    trainer = OffPolicy(agent, venv, buffer_size=config.total_steps, **options)

    moments, last = train(trainer, config)
    returns = [moment.episode_return for moment in moments]
    keys = iter(jax.random.split(jax.random.key(config.seed), 4))

    def played(policy: Any, rows: int) -> Dataset:
        return record(policy, env, next(keys), steps=rows, mode="sample")

    random = played("uniform", config.rows)
    expert = played((trainer.agent, moments[-1].agent), config.rows)
    worst, best = float(random.returns().mean()), float(expert.returns().mean())
    wanted = worst + config.medium * (best - worst)
    medium_at = next((i for i, each in enumerate(returns[1:], 1) if each >= wanted), None)
    if medium_at is None:
        raise UsageError(f"no policy reached {wanted:.1f}; give more --total-steps")
    moment = moments[medium_at]
    medium = played((trainer.agent, moment.agent), config.rows)
    replay = Replay(trainer.buffer, last.store, moment.written)
    found = {
        "random": random,
        "medium": medium,
        "medium-replay": newest(from_replay(replay, venv.spec), config.rows),
        "medium-expert": concatenate([half(medium), half(expert)]),
        "expert": expert,
    }
    write(config, env.spec, found, Reference(worst, best, "mean returns of random and expert"))


class Moment(NamedTuple):
    """The agent's state while it trained, the steps in the replay buffer, and the mean return."""

    agent: PyTree
    written: int
    episode_return: float


def train(trainer: OffPolicy, config: Config) -> tuple[list[Moment], TrainState]:
    """Train, and return 41 moments and the last state."""
    total, schedule = trainer.iterations(config.total_steps), trainer.schedule
    chunk, every = jax.jit(trainer.chunk, donate_argnums=0), max(total // 40, 1)
    evaluate = jax.jit(lambda ts: trainer.evaluate(ts, jax.random.key(1), 10, "sample").returns)
    ts, moments = jax.jit(trainer.init)(jax.random.key(config.seed)), []
    for done in range(0, total + 1, every):
        mean = float(np.mean(evaluate(ts)))
        written = schedule.warmup_steps + done * schedule.steps
        moments.append(Moment(jax.device_get(ts.agent), written, mean))
        print(f"iteration {done} of {total}: return {mean:.1f}", flush=True)
        if done + every <= total:
            ts, _ = chunk(ts, (), every)
    return moments, ts


def newest(data: Dataset, rows: int) -> Dataset:
    """Return the last episodes that have ``rows`` transitions together."""
    remaining = np.cumsum(data.lengths()[::-1])[::-1]
    return data.filter(remaining <= max(rows, remaining[-1]))


def half(data: Dataset) -> Dataset:
    """Return the first half of the episodes."""
    return data.filter(np.arange(data.num_episodes) < max(data.num_episodes // 2, 1))


def write(config: Config, spec: Spec, found: dict[str, Dataset], reference: Reference) -> None:
    """Write the datasets, and print what they hold."""
    for quality, data in found.items():
        path = Path(config.out) / config.env / f"{quality}.hdf5"
        metadata = {"env": config.env, "env_options": config.env_settings, "seed": config.seed}
        write_d4rl(data, path, spec, metadata, reference=reference, next_observations=False)
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
        for line in lines(describe(data, references=reference)):
            print(f"  {line}")


# The scripted policy of mazes


@struct.dataclass
class Wanderer:
    """Walks the shortest way to a cell, with noise: to the goal if it began in the right part.

    If it began in the left part, it goes from one random cell of that part to the next; the two
    parts share the cell behind the bend. Its memory is the number of the cell that it walks to, or
    -1 before the first step.
    """

    env: PointMaze = struct.field(pytree_node=False)
    noise: float = 0.3

    def bind(self, spec: Any) -> Wanderer:
        """Return the same."""
        return self

    def init_carry(self, key: Key, n: int) -> Array:
        """Return the memory of ``n`` walks that have not begun."""
        return jnp.full(n, -1)

    def act(
        self, state: PyTree, carry: Array, obs: Array, key: Key, mode: Mode
    ) -> tuple[Array, Array, dict]:
        """Return actions ``[N, 2]`` towards the next cell on the way."""
        cell_key, noise_key = jax.random.split(key)
        table, cells = directions(self.env)
        rows, columns = self.env.cells.shape
        position = (obs + 1.0) * jnp.array([columns, rows]) / 2
        here = jnp.argmin(jnp.linalg.norm(position[:, None] - cells, axis=-1), axis=-1)
        goal = int(np.argmin(np.linalg.norm(cells - self.env.centre("G"), axis=-1)))
        behind, bottom = columns / 2 + 1, cells[:, 1].max()
        left = np.flatnonzero(
            (cells[:, 0] < columns / 2) | ((cells[:, 0] <= behind) & (cells[:, 1] == bottom))
        )
        drawn = jnp.array(left)[jax.random.randint(cell_key, here.shape, 0, len(left))]
        begun = jnp.where(position[:, 0] > columns / 2 + 0.5, goal, drawn)
        carry = jnp.where(carry < 0, begun, jnp.where(carry == here, drawn, carry))
        towards = jnp.array(cells)[jnp.array(table)[here, carry]] - position
        noise = self.noise * jax.random.normal(noise_key, towards.shape)
        return jnp.clip(towards / 0.25 + noise, -1.0, 1.0), carry, {}


def directions(env: PointMaze) -> tuple[np.ndarray, np.ndarray]:
    """Return the next cell on the way ``[from, to]``, and the centres of cells ``[C, 2]``."""
    cells = np.argwhere(env.cells != "#")[:, ::-1] + 0.5
    near = np.abs(cells[:, None] - cells).sum(-1) == 1
    distance = shortest_path(near, unweighted=True)
    through = np.where(near[:, :, None], 1.0 + distance, np.inf)  # [from, next, to]
    table = through.argmin(axis=1)
    np.fill_diagonal(table, np.arange(len(cells)))
    return table, cells


def stitching(env: PointMaze, config: Config) -> Dataset:
    """Return walks of at most 60 steps from anywhere; none goes from the start to the goal."""
    everywhere = VectorEnv(dataclasses.replace(env, anywhere=True), 64, max_steps=60)
    agent = Wanderer(env)
    return record((agent, ()), everywhere, jax.random.key(config.seed), steps=config.rows)


@struct.dataclass
class Walker:
    """Walks straight to the goal that it observes, with noise."""

    env: GoalMaze = struct.field(pytree_node=False)
    noise: float = 0.3

    def bind(self, spec: Any) -> Walker:
        """Return the same."""
        return self

    def act(
        self, state: PyTree, carry: PyTree, obs: dict[str, Array], key: Key, mode: Mode
    ) -> tuple[Array, PyTree, dict]:
        """Return actions ``[N, 2]``."""
        rows, columns = self.env.cells.shape
        towards = (obs["goal"] - obs["state"]) * jnp.array([columns, rows])
        ahead = towards / jnp.abs(towards).max(axis=-1, keepdims=True)
        return ahead + self.noise * jax.random.normal(key, ahead.shape), carry, {}


def ways(env: GoalMaze, config: Config) -> Dataset:
    """Return ways from the start to the goals, without the goals: their positions alone."""
    data = record((Walker(env), ()), env, jax.random.key(config.seed), steps=config.rows)
    return data._replace(obs=data.obs["state"], next_obs=data.next_obs["state"])


if __name__ == "__main__":
    cli.launch(main)
