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
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from scipy.sparse.csgraph import shortest_path

from jaxrl import SAC, NormalizeObs, OffPolicy, ScaleReward, UsageError, VectorEnv, cli, hyper, make
from jaxrl.cli.assignments import assignments
from jaxrl.cli.parsing import parse_words
from jaxrl.cli.presets import lookup, sac
from jaxrl.cli.resuming import value_of
from jaxrl.data import concatenate
from jaxrl.data.dataset import Dataset
from jaxrl.data.describe import describe, lines
from jaxrl.data.replay import Replay
from jaxrl.data.scores import Reference
from jaxrl.envs.maze import GoalMaze, PointMaze
from jaxrl.envs.vector import ResetMode
from jaxrl.hyper import flag, number, same_as, size, words
from jaxrl.record.recorder import NUM_ENVS, from_replay, record
from jaxrl.record.writers import write_d4rl
from jaxrl.types import Array, Environment, Key, Mode, PyTree, Spec, TrainState

QUALITIES = ("random", "medium", "medium-replay", "medium-expert", "expert")
SCRIPTED = ("env", "env_options", "out", "rows", "seed", "quiet")  # the options for mazes


def option(default: Any, help: str) -> Any:
    """Declare an option whose values have no limits of their own."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Recording:
    """Options of the datasets, their environment and the training."""

    env: str = option(
        "gymnax/Pendulum-v1",
        'The environment, "<suite>/<task>"; for an unknown name, the closest ones are listed.',
    )
    env_options: tuple[str, ...] = words((), help="options of the environment, as in: backend=mjx")
    out: str = option(
        "runs/data", "The folder of the datasets: OUT/<env>/<quality>.hdf5. No file is replaced."
    )
    rows: int = size(
        20_000,
        help="transitions per dataset, in whole episodes; medium-replay keeps the newest of the "
        "buffer, at most this many",
    )
    seed: int = size(0, 0, help="the seed of training and recording")
    quiet: bool = flag(False, help="print nothing")
    medium: float = number(
        1 / 3, 0, 1,
        help="a policy is medium once its return has come this fraction of the way from the random "
        "policy's to the expert's",
    )  # fmt: skip
    total_steps: int = size(
        1_000_000, help="environment steps of the training, rounded up to whole iterations"
    )
    num_envs: int = size(1, help="environments of the training")
    reset_mode: ResetMode | None = option(
        None, 'How episodes restart; default "fresh" where resets are cheap, else "pool".'
    )
    max_steps: int | None = size(
        None, help="time limit of episodes, in training and datasets; default the environment's"
    )
    normalize_obs: bool = flag(False, help="learn from observations of zero mean and unit variance")
    reward_scale: float = same_as(ScaleReward, "reward_scale")


@dataclasses.dataclass(frozen=True)
class Config(cli.ReplayOptions, Recording):
    """Train SAC and record datasets of its policies. Defaults are those of SAC on the task."""

    agent: SAC = SAC()

    @property
    def env_settings(self) -> dict[str, Any]:
        """The environment's options, by name. Raises UsageError for words without "="."""
        return assignments(self.env_options, "env-options")

    def path(self, quality: str) -> Path:
        """Return the file of a dataset."""
        return Path(self.out) / self.env / f"{quality}.hdf5"


def main() -> None:
    """Train, record, and write the files."""
    config = parsed(sys.argv[1:])
    cli.prepare(1)
    env = make(config.env, **config.env_settings)
    if isinstance(env, PointMaze):
        refuse_training(sys.argv[1:])
        scripted(env, config)
    else:
        trained(env, config)


def parsed(given: Sequence[str]) -> Config:
    """Return the options; defaults are SAC's presets for the environment.

    Raises:
        UsageError: for anything that cannot be parsed, and for options that have no use here.
    """
    settings = lookup(sac.PRESETS, value_of(given, "env", Config.env))
    del settings["buffer_size"]  # it holds the whole training
    settings["agent"] = hyper.override(SAC(), settings["agent"])
    return parse_words(Config, Config(**settings), given)


def refuse_training(given: Sequence[str]) -> None:
    """Raise UsageError for an option of training."""
    for word in given:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name.removeprefix("no_") not in SCRIPTED:
            raise UsageError(f"{name} is for training, and a maze's dataset is scripted; omit it")


def check_files(config: Config, qualities: Iterable[str]) -> None:
    """Make the folder of the datasets. Raises UsageError if that fails, or if one exists."""
    for quality in qualities:
        if config.path(quality).exists():
            raise UsageError(
                f"out is {config.out}, and {config.path(quality)} exists; give another folder, "
                f"such as {config.out}_2"
            )
    try:
        config.path("").parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"out is {config.out}, which cannot hold the datasets: {error.strerror}; give another "
            "folder, such as runs/data"
        ) from None


def scripted(env: Any, config: Config) -> None:
    """Write the dataset of a maze."""
    goals, spec = isinstance(env, GoalMaze), env.spec
    quality = "goals" if goals else "stitch"
    check_files(config, [quality])
    if goals:
        spec = dataclasses.replace(spec, observation=spec.observation["state"])
    data = ways(env, config) if goals else stitching(env, config)
    write(config, spec, {quality: data}, Reference(0.0, 1.0, "the rate of success"))


def trained(env: Environment, config: Config) -> None:
    """Train, and write the datasets of the policies.

    Raises:
        UsageError: before training, for what cannot be trained or written. After it, if no policy
            is medium; the datasets of the random policy and of the expert are written then too.
    """
    if isinstance(env.spec.observation, dict):
        raise UsageError(
            f"env is {config.env}, whose observations have entries, and D4RL's layout has one "
            "array; give another, such as gymnax/Pendulum-v1"
        )
    trainer = trainer_of(env, config)
    check_files(config, QUALITIES)
    moments, last = train(trainer, config)

    players = VectorEnv(env, NUM_ENVS, max_steps=config.max_steps)
    keys = iter(jax.random.split(jax.random.key(config.seed), 4))

    def played(policy: Any) -> Dataset:
        return record(policy, players, next(keys), steps=config.rows, mode="sample")

    random, expert = played("uniform"), played((trainer.agent, moments[-1].agent))
    worst, best = float(random.returns().mean()), float(expert.returns().mean())
    wanted = worst + config.medium * (best - worst)
    reached = [moment for moment in moments[1:] if moment.episode_return >= wanted]
    known = Reference(worst, best, "mean returns of random and expert") if best > worst else None
    if known is None or not reached:
        write(config, players.spec, {"random": random, "expert": expert}, known)
        why = f"no policy reached {wanted:.1f}"
        if known is None:
            why = f"the expert's return is {best:.1f}, and a random policy's {worst:.1f}"
        raise UsageError(f"{why}; give more --total-steps, and another --out")
    moment = reached[0]
    medium = played((trainer.agent, moment.agent))
    replay = from_replay(Replay(trainer.buffer, last.store, moment.written), players.spec)
    found = (
        random,
        medium,
        newest(replay, config.rows, moment.written),
        concatenate([half(medium), half(expert)]),
        expert,
    )
    write(config, players.spec, dict(zip(QUALITIES, found, strict=True)), known)


def trainer_of(env: Environment, config: Config) -> OffPolicy:
    """Return the trainer. Its buffer has a slot for every step, so nothing is overwritten.

    Only then are the first rows of the last buffer those of any moment before.

    Raises:
        UsageError: for what cannot be trained.
    """
    venv = VectorEnv(env, config.num_envs, config.reset_mode, max_steps=config.max_steps)
    agent: Any = config.agent
    if config.reward_scale != 1.0:
        agent = ScaleReward(agent, config.reward_scale)
    if config.normalize_obs:
        agent = NormalizeObs(agent)
    names = [field.name for field in dataclasses.fields(cli.ReplayOptions)]
    trainer = OffPolicy(agent, venv, **{name: getattr(config, name) for name in names})
    trainer.schedule.check()
    steps = written_after(trainer, trainer.iterations(config.total_steps))
    trainer = dataclasses.replace(trainer, buffer_size=steps * venv.num_envs)
    assert trainer.buffer.slots == steps
    trainer.check()
    return trainer


def written_after(trainer: OffPolicy, iterations: int) -> int:
    """Return the steps of each environment that are in the buffer after these iterations."""
    return trainer.schedule.warmup_steps + iterations * trainer.schedule.steps


class Moment(NamedTuple):
    """The agent's state while it trained, the steps in the replay buffer, and the mean return."""

    agent: PyTree
    written: int
    episode_return: float


def train(trainer: OffPolicy, config: Config) -> tuple[list[Moment], TrainState]:
    """Train, and return about 40 moments and the last state."""
    total = trainer.iterations(config.total_steps)
    chunk, every = jax.jit(trainer.chunk, donate_argnums=0), max(total // 40, 1)
    evaluate = jax.jit(lambda ts: trainer.evaluate(ts, jax.random.key(1), 10, "sample").returns)
    ts, moments = jax.jit(trainer.init)(jax.random.key(config.seed)), []
    for done in range(0, total + 1, every):
        mean = float(np.mean(evaluate(ts)))
        moments.append(Moment(jax.device_get(ts.agent), written_after(trainer, done), mean))
        if not config.quiet:
            print(f"iteration {done} of {total}: return {mean:.1f}", flush=True)
        if done + every <= total:
            ts, _ = chunk(ts, (), every)
    return moments, ts


def newest(data: Dataset, rows: int, written: int) -> Dataset:
    """Return the episodes that ended last and have ``rows`` transitions together, at least one.

    ``data`` has ``written`` rows of each environment, one environment after another.
    """
    lengths = data.lengths()
    ended = (data.first_rows() + lengths - 1) % written
    order = np.argsort(-ended, kind="stable")
    total = np.cumsum(lengths[order])
    kept = np.zeros(len(lengths), bool)
    kept[order] = total <= max(rows, total[0])
    return data.filter(kept)


def half(data: Dataset) -> Dataset:
    """Return the first half of the episodes."""
    return data.filter(np.arange(data.num_episodes) < max(data.num_episodes // 2, 1))


def write(
    config: Config, spec: Spec, found: dict[str, Dataset], reference: Reference | None
) -> None:
    """Write the datasets, and print what they hold."""
    for quality, data in found.items():
        path = config.path(quality)
        metadata = {"env": config.env, "env_options": config.env_settings, "seed": config.seed}
        write_d4rl(data, path, spec, metadata, reference=reference, next_observations=False)
        if config.quiet:
            continue
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


def stitching(env: Any, config: Config) -> Dataset:
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


def ways(env: Any, config: Config) -> Dataset:
    """Return ways from the start to the goals, without the goals: their positions alone."""
    data = record((Walker(env), ()), env, jax.random.key(config.seed), steps=config.rows)
    return data._replace(obs=data.obs["state"], next_obs=data.next_obs["state"])


if __name__ == "__main__":
    cli.launch(main)
