"""Options shared by scripts.

Options for trainer sizes take their defaults and help from the trainer's declarations.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrl import processes
from jaxrl.agents import NormalizeObs, ScaleReward
from jaxrl.cli.assignments import assignments, swept
from jaxrl.data.dataset import Dataset
from jaxrl.data.replay import Precision
from jaxrl.data.samplers import UniformDataset, WeightedDataset
from jaxrl.envs.vector import ResetMode
from jaxrl.errors import UsageError
from jaxrl.hyper import choice, number, same_as, size
from jaxrl.run.population import check_count
from jaxrl.training import Offline, OffPolicy, OnPolicy, Trainer
from jaxrl.training.off_policy import Warmup
from jaxrl.training.sampling import train_part
from jaxrl.types import Mode

Sampling = Literal["uniform", "return", "advantage"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every script."""

    env: str = "brax/ant"
    """The environment, "<suite>/<task>"; for an unknown name, the closest ones are listed."""
    env_options: tuple[str, ...] = ()
    """Options of the environment, as in: backend=mjx"""
    total_steps: int = 500_000
    """Environment steps of each seed, rounded up to whole iterations."""
    seed: int = 0
    """The first seed."""
    num_seeds: int = 1
    """Number of seeds (seed, seed + 1, ...), trained together in one program."""
    run_dir: str | None = None
    """The run's folder; default runs/ALGORITHM_ENV_TIME."""
    resume: bool = False
    """Continue the run in --run-dir from its newest intact checkpoint; with more --num-seeds, the
    additional seeds first train to the point the others have reached, and then join them."""
    eval_every: int | None = None
    """Steps between evaluations; default a tenth of the run."""
    eval_episodes: int = 32
    """Episodes per evaluation and seed."""
    eval_mode: Mode = "greedy"
    """How evaluation episodes are played; sample and explore are stochastic."""
    log_every: int | None = None
    """Steps between rows of metrics.jsonl; default a fifth of --eval-every."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; default --eval-every."""
    keep_best: bool = True
    """Checkpoints also keep each seed's policy from its best evaluation."""
    devices: int | None = None
    """Devices of each process; default all that the sizes divide over (on a CPU: one per core)."""
    distributed: tuple[str, ...] | None = None
    """Train over several processes, which all run this command. They are detected under SLURM, Open
    MPI and Kubernetes; elsewhere give the address of process 0, the number of processes and the
    index of this one, as in: 10.0.0.1:1234 2 0"""
    sweep: tuple[str, ...] = ()
    """Hyper-parameters to sweep in one program, as in: gamma=0.97,0.99"""
    max_skipped: int = 100
    """Stop once every member has skipped this many non-finite gradient steps in a row."""
    max_nonfinite: float = 0.5
    """Stop if more than this fraction of a chunk's environment steps was not finite."""
    log: tuple[str, ...] = ()
    """Further places to log to: tensorboard, wandb."""
    render: bool = False
    """After training, draw an episode of the first seed (see python -m jaxrl.analysis render)."""
    quiet: bool = False
    """No progress bar, no notes."""

    @property
    def env_settings(self) -> dict[str, Any]:
        """The environment's options, by name. Raises UsageError for words without "="."""
        return assignments(self.env_options, "env-options")

    def run_options(self, trainer: Trainer) -> dict[str, Any]:
        """Return the options of ``run``; without ``run_dir``, the folder name contains the time.

        Raises:
            UsageError: for incompatible options.
        """
        check_count(self.num_seeds)
        same = "resume eval_every eval_episodes eval_mode log_every checkpoint_every devices"
        same += " keep_best max_skipped max_nonfinite log quiet"
        return {
            "seeds": range(self.seed, self.seed + self.num_seeds),
            "sweep": swept(self.sweep),
            "run_dir": self._folder(trainer),
            **{name: getattr(self, name) for name in same.split()},
        }

    def _folder(self, trainer: Trainer) -> str:
        if self.run_dir is not None:
            return self.run_dir
        if self.resume:
            raise UsageError("resume needs the folder of the run to continue: --run-dir DIR")
        config = trainer.config()
        task = config["env"].replace("/", "-")
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")  # runs may start in the same second
        name = f"{config['algorithm'].lower()}_{task}_{stamp}"
        return processes.from_first(lambda: str(Path("runs") / name))


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Options):
    """Options of every script that trains in an environment."""

    num_envs: int = 8
    """Environments of each seed."""
    reset_mode: ResetMode | None = None
    """How environments restart after an episode; default "fresh" where resets are cheap, else
    "pool"."""
    max_steps: int | None = None
    """Time limit of an episode; default the environment's own."""
    normalize_obs: bool = False
    """Learn from observations of zero mean and unit variance."""
    reward_scale: float = same_as(ScaleReward, "reward_scale")


@dataclasses.dataclass(frozen=True)
class OfflineOptions(Options):
    """Options of every script that trains on a dataset."""

    total_steps: int = 100_000
    """Gradient steps of each seed, rounded up to whole iterations."""
    dataset: str | None = None
    """Path of a dataset (D4RL, Minari, OGBench), or the name of a shipped one; default --env's."""
    top: float = number(1.0, 0, 1, above=0, help="learn only from this best fraction of episodes")
    validation: float = number(0.0, 0, 1, help="fraction of episodes held out for validation")
    sampling: Sampling = choice(
        "uniform", Sampling, help="sample transitions uniformly, or weighted by their episode's "
        "return (RW) or advantage (AW)"
    )  # fmt: skip
    sampling_temperature: float = number(
        0.1, above=0, help="temperature of these weights; small values favour the best episodes"
    )
    n_step: int = size(1, help="n of n-step returns: rewards summed before the bootstrap")
    batch_size: int = same_as(Offline, "batch_size")
    num_updates: int = same_as(Offline, "num_updates")
    normalize_obs: bool = False
    """Normalise observations with the dataset's mean and variance."""
    reward_scale: float = same_as(ScaleReward, "reward_scale")
    reward_shift: float = same_as(ScaleReward, "reward_shift")
    reward_clip: float | None = same_as(ScaleReward, "reward_clip")
    return_range: float | None = number(
        None, above=0, help="scale rewards so that the dataset's returns span a range of this size"
    )

    @property
    def sampler(self) -> UniformDataset | WeightedDataset:
        """The sampler of the dataset."""
        kind = UniformDataset if self.sampling == "uniform" else WeightedDataset
        return kind(self.n_step)

    def wrapped(self, agent: Any, data: Dataset) -> Any:
        """Return the agent with the requested reward and observation transformations.

        Observation statistics stay those of the dataset.

        Raises:
            UsageError: for a ``return_range`` if all returns are equal, or if the policy's step
                size falls to 0 before the end of the run.
        """
        decay = getattr(agent, "lr_decay_steps", 0.0)
        if 0 < decay < self.total_steps:
            raise UsageError(
                f"total_steps is {self.total_steps}, and the policy stops learning after "
                f"lr_decay_steps {decay:g}; give --agent.lr-decay-steps {self.total_steps}"
            )
        scale = self.reward_scale
        if self.return_range is not None:
            span = float(np.ptp(train_part(data).returns()))
            if span == 0.0:
                raise UsageError("return_range needs returns that differ; leave it out")
            scale *= self.return_range / span
        if (scale, self.reward_shift, self.reward_clip) != (1.0, 0.0, None):
            agent = ScaleReward(agent, scale, self.reward_shift, self.reward_clip)
        return NormalizeObs(agent, frozen=True) if self.normalize_obs else agent


@dataclasses.dataclass(frozen=True)
class AnnealOptions(TrainingOptions):
    """Options of every script whose learning rate may fall."""

    anneal: bool = True
    """Let the learning rate fall linearly to zero over the run, or over --agent.lr-decay-steps.

    To extend a resumed run, give the --agent.lr-decay-steps that it had."""


@dataclasses.dataclass(frozen=True)
class EpsilonOptions(TrainingOptions):
    """Options of every script whose agent acts epsilon-greedily."""

    epsilon_fraction: float = number(
        0.2,
        0,
        1,
        help="fraction of the run over which epsilon falls, unless --agent.epsilon-decay-steps is "
        "given; to extend a resumed run, give the --agent.epsilon-decay-steps that it had",
    )


@dataclasses.dataclass(frozen=True)
class OnPolicyOptions(AnnealOptions):
    """Options of every script that trains on rollouts."""

    num_steps: int = same_as(OnPolicy, "num_steps")

    @property
    def iterations(self) -> int:
        """The number of rollouts, and so of updates, in the whole run."""
        return -(-self.total_steps // max(self.num_steps * self.num_envs, 1))


@dataclasses.dataclass(frozen=True)
class FineTuningOptions(OnPolicyOptions):
    """Options of every script that trains on rollouts, and may go on from an earlier policy."""

    policy_from: str | None = None
    """Start from the policy of the run in this folder; its family and sizes must be the same.

    With --normalize-obs, the observation statistics stay those of that run."""

    def run_options(self, trainer: Trainer) -> dict[str, Any]:
        """Return the options of ``run``, with ``policy_from``."""
        return {**super().run_options(trainer), "policy_from": self.policy_from}


@dataclasses.dataclass(frozen=True)
class ReplayOptions:
    """Options of ``OffPolicy``, except for the size of its buffer."""

    num_steps: int = same_as(OffPolicy, "num_steps")
    num_updates: int = same_as(OffPolicy, "num_updates")
    batch_size: int = same_as(OffPolicy, "batch_size")
    learning_starts: int = same_as(OffPolicy, "learning_starts")
    warmup_policy: Warmup = same_as(OffPolicy, "warmup_policy")
    n_step: int = same_as(OffPolicy, "n_step")
    precision: Precision = same_as(OffPolicy, "precision")
    cycles: int | None = same_as(OffPolicy, "cycles")


@dataclasses.dataclass(frozen=True)
class OffPolicyOptions(ReplayOptions, TrainingOptions):
    """Options of every script that trains from a replay buffer."""

    num_envs: int = 1
    buffer_size: int = same_as(OffPolicy, "buffer_size")

    @property
    def gradient_steps(self) -> int:
        """The number of gradient steps in the whole run."""
        steps = max(self.total_steps - self.learning_starts, 0)
        return self.num_updates * -(-steps // max(self.num_steps * self.num_envs, 1))
