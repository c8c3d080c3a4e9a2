"""Tuned settings per environment family, as data.

A key is a pattern of environment names; what a later, more specific pattern says replaces what an
earlier one said. Names are those of the options of ``experiments/*.py``; those under ``agent`` are
hyper-parameters.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]

PPO: dict[str, Settings] = {
    "*": {
        "total_steps": 500_000,
        "num_envs": 8,
        "unroll": 128,
        "normalize_obs": False,
        "reward_scale": 1.0,
        "anneal": True,
        "agent": {},
    },
    "gymnax/*": {
        "unroll": 64,
        "agent": {"learning_rate": 1e-3, "entropy": 0.01, "epochs": 4, "minibatches": 4},
    },
    "gymnax/*-MinAtar": {
        "total_steps": 4_000_000,
        "num_envs": 64,
        "unroll": 128,
        "agent": {
            "learning_rate": 2e-3,
            "entropy": 0.1,
            "minibatches": 8,
            "activation": "relu",
        },
    },
    "gymnax/Pendulum-v1": {
        "num_envs": 16,
        "unroll": 256,
        "normalize_obs": True,
        "reward_scale": 0.1,
        "agent": {
            "learning_rate": 1e-3,
            "entropy": 0.0,
            "gamma": 0.95,
            "epochs": 10,
            "minibatches": 32,
        },
    },
    "brax/*": {
        "total_steps": 4_000_000,
        "num_envs": 1024,
        "unroll": 10,
        "normalize_obs": True,
        "agent": {
            "learning_rate": 1e-3,
            "gamma": 0.97,
            "entropy": 0.005,
            "minibatches": 16,
            "hidden": (128, 128),
        },
    },
    "brax/reacher": {"total_steps": 20_000_000, "agent": {"entropy": 0.01}},
    "brax/inverted_pendulum": {
        "total_steps": 2_000_000,
        "num_envs": 256,
        "unroll": 20,
        "agent": {"learning_rate": 3e-4, "entropy": 0.0, "hidden": (64, 64)},
    },
    "playground/*": {
        "total_steps": 2_000_000,
        "num_envs": 64,
        "unroll": 64,
        "normalize_obs": True,
        "agent": {"learning_rate": 1e-3, "gamma": 0.99, "epochs": 4, "minibatches": 8},
    },
    "mjx/*": {
        "total_steps": 5_000_000,
        "num_envs": 64,
        "unroll": 64,
        "normalize_obs": True,
        "agent": {"learning_rate": 5e-4, "epochs": 8, "minibatches": 16, "hidden": (64, 64)},
    },
    "mjx/Hopper-v5": {"reward_scale": 0.1, "agent": {"gamma": 0.997}},
    "mjx/Swimmer-v5": {
        "total_steps": 1_000_000,
        "num_envs": 16,
        "unroll": 256,
        "reward_scale": 0.1,
        "agent": {"gamma": 0.9999, "gae_lambda": 0.98},
    },
}

PQN: dict[str, Settings] = {
    "*": {
        "total_steps": 500_000,
        "num_envs": 32,
        "unroll": 64,
        "normalize_obs": False,
        "reward_scale": 1.0,
        "anneal": True,
        "epsilon_fraction": 0.2,
        "agent": {},
    },
    "gymnax/*": {
        "reward_scale": 0.1,
        "agent": {
            "learning_rate": 1e-4,
            "q_lambda": 0.95,
            "epsilon_end": 0.2,
            "epochs": 4,
            "minibatches": 16,
        },
    },
    "gymnax/*-MinAtar": {
        "total_steps": 4_000_000,
        "num_envs": 128,
        "unroll": 32,
        "reward_scale": 1.0,
        "epsilon_fraction": 0.1,
        "agent": {
            "learning_rate": 5e-4,
            "q_lambda": 0.65,
            "epsilon_end": 0.05,
            "epochs": 2,
            "minibatches": 32,
        },
    },
}


def lookup(table: Mapping[str, Settings], env: str) -> Settings:
    """The settings for ``env``: every matching pattern's, the last said winning."""
    settings: Settings = {}
    for pattern, values in table.items():
        if fnmatch.fnmatchcase(env, pattern):
            agent = {**settings.get("agent", {}), **values.get("agent", {})}
            settings = {**settings, **values, "agent": agent}
    return copy.deepcopy(settings)
