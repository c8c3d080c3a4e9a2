"""The options that scripts share, and the trainers that they describe."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxrl.agents import NormalizeObs, ScaleReward
from jaxrl.cli.assignments import assignments
from jaxrl.data.replay import Precision
from jaxrl.envs import VectorEnv, make
from jaxrl.envs.vector import Resets
from jaxrl.training import OffPolicy, OnPolicy
from jaxrl.training.rounds import Prefill


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every script."""

    env: str = "brax/ant"
    """The environment, "<suite>/<task>"; a wrong name is answered with the nearest right ones."""
    env_options: tuple[str, ...] = ()
    """Options of the environment, as in: backend=mjx"""
    total_steps: int = 500_000
    """Environment steps of each seed, rounded up to whole iterations."""
    seed: int = 0
    """The first seed."""
    num_seeds: int = 1
    """Number of seeds (seed, seed + 1, ...), trained together in one program."""
    num_envs: int = 8
    """Environments of each seed."""
    run_dir: str | None = None
    """The run's folder; default runs/ALGORITHM_ENV_TIME."""
    resume: bool = False
    """Continue the run in --run-dir from its newest intact checkpoint."""
    eval_every: int | None = None
    """Steps between evaluations; default a tenth of the run."""
    eval_episodes: int = 32
    """Greedy episodes per evaluation and seed."""
    log_every: int | None = None
    """Steps between rows of metrics.jsonl; default a fifth of --eval-every."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; default --eval-every."""
    devices: int | None = None
    """Local devices to use; default all that the sizes divide over (on a CPU: one per core)."""
    sweep: tuple[str, ...] = ()
    """Hyper-parameters to sweep in one program, as in: learning_rate=1e-4,3e-4 gamma=0.97,0.99"""
    max_skipped: int = 100
    """Stop after this many gradient steps in a row were not finite, for every member."""
    max_nonfinite: float = 0.5
    """Stop if more than this fraction of a chunk's environment steps was not finite."""
    log: tuple[str, ...] = ()
    """Further places to log to: tensorboard, wandb."""
    render: bool = False
    """At the end draw an episode of the first seed, as python -m jaxrl.analysis render does."""
    quiet: bool = False
    """No progress bar, no notes."""


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Options):
    """Options of every script that trains in an environment."""

    resets: Resets | None = None
    """How ended episodes start again; default "fresh" for toy dynamics, "bank" for physics."""
    max_steps: int | None = None
    """Time limit of an episode; default the environment's own."""
    normalize_obs: bool = False
    """Learn from observations of zero mean and unit variance."""
    reward_scale: float = 1.0
    """Learn from rewards times this."""

    def environments(self) -> VectorEnv:
        """Return the vector environment."""
        env = make(self.env, **assignments(self.env_options, "env-options"))
        return VectorEnv(env, self.num_envs, self.resets, max_steps=self.max_steps)

    def wrapped(self, agent: Any) -> Any:
        """Return ``agent`` in the wrappers that the options ask for."""
        if self.reward_scale != 1.0:
            agent = ScaleReward(agent, self.reward_scale)
        if self.normalize_obs:
            agent = NormalizeObs(agent)
        return agent


@dataclasses.dataclass(frozen=True)
class OnPolicyOptions(TrainingOptions):
    """Options of every script that trains on rollouts."""

    unroll: int = 128
    """Steps of every environment between two updates."""
    anneal: bool = True
    """Let the learning rate fall linearly to zero over the run, or over --agent.anneal-over.

    A resumed run may be longer only with the --agent.anneal-over that it had."""

    @property
    def iterations(self) -> int:
        """The rollouts, and so updates, of the whole run."""
        return -(-self.total_steps // max(self.unroll * self.num_envs, 1))

    def trainer(self, agent: Any, env: VectorEnv) -> OnPolicy:
        """Return the trainer of ``agent``, annealed and in its wrappers."""
        if self.anneal and not agent.anneal_over:
            agent = agent.replace(anneal_over=float(self.iterations))
        return OnPolicy(self.wrapped(agent), env, unroll=self.unroll)


@dataclasses.dataclass(frozen=True)
class OffPolicyOptions(TrainingOptions):
    """Options of every script that trains from a replay buffer."""

    num_envs: int = 1
    """Environments of each seed."""
    unroll: int = 1
    """Steps of every environment in a round."""
    updates: int = 1
    """Gradient steps in a round."""
    batch_size: int = 256
    """Transitions of a gradient step."""
    capacity: int = 1_000_000
    """Transitions in the buffer, whose memory is taken at once, however short the run."""
    prefill: int = 5_000
    """Transitions before the first gradient step; rounded up to whole rounds."""
    prefill_policy: Prefill = "uniform"
    """The policy of the prefill: uniform actions, or the untrained agent."""
    n_step: int = 1
    """Sum the rewards of this many steps."""
    precision: Precision = "full"
    """Half keeps the observations in the buffer in 16 bits."""
    rounds: int | None = None
    """Rounds of an iteration; default chosen by the sizes."""

    @property
    def gradient_steps(self) -> int:
        """The gradient steps of the whole run."""
        steps = max(self.total_steps - self.prefill, 0)
        return self.updates * -(-steps // max(self.unroll * self.num_envs, 1))

    def trainer(self, agent: Any, env: VectorEnv) -> OffPolicy:
        """Return the trainer of ``agent`` in its wrappers."""
        return OffPolicy(
            self.wrapped(agent),
            env,
            capacity=self.capacity,
            batch_size=self.batch_size,
            prefill=self.prefill,
            prefill_policy=self.prefill_policy,
            unroll=self.unroll,
            updates=self.updates,
            rounds=self.rounds,
            n_step=self.n_step,
            precision=self.precision,
        )
