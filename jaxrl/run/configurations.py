"""Checks of all configurations before a run begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxrl import hyper
from jaxrl.agents import NormalizeObs, ScaleReward, protocol
from jaxrl.errors import UsageError
from jaxrl.training.trainer import Trainer

# The option of scripts that adds a wrapper; a reward scale of 1 adds none.
WRAPPERS: dict[Any, str] = {
    NormalizeObs: "--normalize-obs",
    ScaleReward: "a --reward-scale other than 1",
}


def check_configurations(trainer: Trainer, configurations: Sequence[Mapping[str, float]]) -> None:
    """Raise UsageError unless ``trainer`` can train every configuration."""
    _check_wrappers(trainer, configurations[0])
    for configuration in configurations:
        hyper.replace(trainer, configuration).check()
    _check_once(trainer, list(configurations[0]))
    if trainer.needs_data and "return_to_go" in protocol.batch_extras(trainer.agent):
        for configuration in configurations:
            _check_same_returns(trainer, configuration)


def _check_same_returns(trainer: Trainer, configuration: Mapping[str, float]) -> None:
    """Raise UsageError for another discount or other rewards: the dataset has one return-to-go."""

    def learnt(values: Mapping[str, float]) -> tuple[Any, ...]:
        agent = hyper.replace(trainer, values).agent
        rewards = protocol.learnt_reward(agent, jnp.array([-1e6, -1.0, 0.0, 1.0, 1e6]))
        return float(protocol.discount_factor(agent)), *rewards.tolist()

    unswept = learnt({})
    for name, value in configuration.items():
        if learnt({name: value}) != unswept:
            agent = type(protocol.innermost(trainer.agent)).__name__
            raise UsageError(
                f"{name} is swept, and {agent} reads returns-to-go, which the dataset has for one "
                f"value; make a run for each, or give sweep.py --static {name}={value:g},..."
            )


def _check_once(trainer: Trainer, sweep: Sequence[str]) -> None:
    """Raise UsageError for two names of one hyper-parameter, such as ``critic.a`` and ``a``."""
    known, seen = hyper.names(trainer), dict[str, str]()
    for name in sweep:
        for full in hyper.matches(name, known):
            if full in seen:
                raise UsageError(f"{seen[full]} and {name} are one hyper-parameter; sweep it once")
            seen[full] = name


def _check_wrappers(trainer: Trainer, sweep: Iterable[str]) -> None:
    """Raise UsageError for swept names of wrappers that ``trainer`` does not use."""
    known = hyper.numbers(trainer)
    for wrapper, option in WRAPPERS.items():
        fields = {field.name for field in dataclasses.fields(wrapper)}
        for name in sweep:
            if name in fields - known.keys():
                raise UsageError(
                    f"{name} is not in use, and so cannot be swept; "
                    f"wrap the agent in {wrapper.__name__}, or give {option}, first"
                )
