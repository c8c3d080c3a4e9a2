"""Tuned settings per environment family, as data.

A key is a pattern of environment names; what a later, more specific pattern says replaces what an
earlier one said. Names are those of the options of ``experiments/*.py``; those under ``agent`` are
hyper-parameters.
"""

from __future__ import annotations

import copy
import fnmatch
import math
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

DQN: dict[str, Settings] = {
    "*": {
        "total_steps": 500_000,
        "num_envs": 8,
        "unroll": 1,
        "updates": 1,
        "batch_size": 128,
        "capacity": 100_000,
        "prefill": 5_000,
        "n_step": 1,
        "normalize_obs": False,
        "reward_scale": 1.0,
        "epsilon_fraction": 0.2,
        "anneal": False,
        "agent": {"learning_rate": 3e-4, "tau": 0.01, "target_every": 1, "hidden": (128, 128)},
    },
    "gymnax/*": {
        "n_step": 3,
        "reward_scale": 0.1,
        "anneal": True,
        "agent": {"layer_norm": True},
    },
    "gymnax/*-MinAtar": {
        "total_steps": 1_000_000,
        "num_envs": 16,
        "updates": 2,
        "batch_size": 64,
        "n_step": 1,
        "reward_scale": 1.0,
        "epsilon_fraction": 0.1,
        "anneal": False,
        "agent": {"layer_norm": False},
    },
}

# One environment and a gradient step for each of its steps, as in the papers; on families whose
# environments come by the hundred, a few dozen gradient steps for each step of all of them. The
# latter are what Brax and Playground tuned for their SAC: those of brax/* for hopper and walker2d,
# and so untuned for its other tasks, as all of them are for other agents. The ring's capacity is
# in no relation to the length of a run, so that a run can be made longer.
_PAPER: Settings = {
    "total_steps": 1_000_000,
    "num_envs": 1,
    "unroll": 1,
    "updates": 1,
    "batch_size": 256,
    "capacity": 1_000_000,
    "prefill": 10_000,
    "prefill_policy": "uniform",
    "normalize_obs": False,
    "reward_scale": 1.0,
    "agent": {},
}
_PENDULUM: Settings = {
    "total_steps": 20_000,
    "capacity": 100_000,
    "prefill": 1_000,
    "batch_size": 128,
    "agent": {"learning_rate": 1e-3, "actor_learning_rate": 1e-3, "hidden": (64, 64)},
}
_PARALLEL: Settings = {
    "total_steps": 4_000_000,
    "num_envs": 128,
    "updates": 32,
    "capacity": 1_048_576,
    "prefill": 8_192,
    "normalize_obs": True,
    "agent": {"learning_rate": 6e-4, "actor_learning_rate": 6e-4},
}
_SUITE: Settings = {
    "total_steps": 5_000_000,
    "num_envs": 128,
    "updates": 8,
    "batch_size": 512,
    "capacity": 4_194_304,
    "prefill": 8_192,
    "normalize_obs": True,
    "agent": {"learning_rate": 1e-3, "actor_learning_rate": 1e-3, "layer_norm": True},
}

# Tasks of Playground that are given twice as many steps.
SLOW: dict[str, Settings] = {
    f"playground/{task}": {"total_steps": 10_000_000}
    for task in (
        *("Acrobot*", "Swimmer*", "Finger*", "Hopper*"),
        *("CheetahRun", "HumanoidWalk", "PendulumSwingup", "WalkerRun"),
    )
}
# What Brax's SAC holds; it is a departure from the paper.
_HALF_ENTROPY: Settings = {"target_entropy": -0.5}

SAC: dict[str, Settings] = {
    "*": _PAPER,
    "gymnax/Pendulum-v1": _PENDULUM,
    "brax/*": _PARALLEL | {"agent": _PARALLEL["agent"] | _HALF_ENTROPY},
    "brax/hopper": {
        "total_steps": 6_553_600,
        "updates": 64,
        "batch_size": 512,
        "reward_scale": 30.0,
        "agent": {"gamma": 0.997},
    },
    "brax/walker2d": {
        "total_steps": 7_864_320,
        "batch_size": 128,
        "reward_scale": 5.0,
        "agent": {"gamma": 0.997},
    },
    "playground/*": _SUITE | {"agent": _SUITE["agent"] | _HALF_ENTROPY},
    **SLOW,
}

TD3: dict[str, Settings] = {
    "*": _PAPER | {"prefill": 25_000},
    "gymnax/Pendulum-v1": _PENDULUM,
    "brax/*": _PARALLEL | {"agent": _PARALLEL["agent"] | {"exploration_max": 0.4}},
    "playground/*": _SUITE | {"agent": _SUITE["agent"] | {"exploration_max": 0.4}},
    **SLOW,
    "mjx/InvertedPendulum-v5": {"prefill": 1_000},
    "mjx/InvertedDoublePendulum-v5": {"prefill": 1_000},
    "mjx/Reacher-v5": {"prefill": 1_000},
}

# Twenty steps for each gradient step, as the authors' distributed actors make them. They hold an
# entropy of -1 per element in the units of the environment: where controls lie in [-c, c], it is
# -1 - log(c) in ours, in which they lie in [-1, 1].
DSACT: dict[str, Settings] = {
    "*": _PAPER | {"total_steps": 30_000_000, "num_envs": 20, "prefill_policy": "agent"},
    "gymnax/Pendulum-v1": _PENDULUM
    | {"num_envs": 1, "agent": _PENDULUM["agent"] | {"alpha_learning_rate": 1e-3}},
    "brax/*": _PARALLEL,
    "playground/*": _SUITE,
    **SLOW,
    "mjx/Hopper-v5": {"agent": {"gamma": 0.999}},
    "mjx/Humanoid-v5": {"agent": {"target_entropy": -1.0 - math.log(0.4)}},
    "mjx/HumanoidStandup-v5": {"agent": {"target_entropy": -1.0 - math.log(0.4)}},
    "mjx/InvertedPendulum-v5": {"agent": {"target_entropy": -1.0 - math.log(3.0)}},
    "mjx/Pusher-v5": {"agent": {"target_entropy": -1.0 - math.log(2.0)}},
}


def lookup(table: Mapping[str, Settings], env: str) -> Settings:
    """The settings for ``env``: every matching pattern's, the last said winning."""
    settings: Settings = {}
    for pattern, values in table.items():
        if fnmatch.fnmatchcase(env, pattern):
            agent = {**settings.get("agent", {}), **values.get("agent", {})}
            settings = {**settings, **values, "agent": agent}
    return copy.deepcopy(settings)
