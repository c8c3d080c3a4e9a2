"""A trained policy out of a run folder."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl.agents
from jaxrl import envs, hyper
from jaxrl.envs.vector import rescale
from jaxrl.errors import UsageError
from jaxrl.types import Agent, Array, Key, Mode, PyTree, Spec

AGENTS = {name: getattr(jaxrl.agents, name) for name in jaxrl.agents.__all__}


class Policy:
    """``policy(obs, key) -> action`` in the environment's own units, its statistics inside.

    Attributes:
        agent, state: the agent and its state, for ``agent.act`` and for losses of your own.
        spec: of the environment it was trained on.
    """

    def __init__(self, agent: Agent, state: PyTree, spec: Spec, mode: Mode) -> None:
        hyper.require_choice("mode", mode, Mode)
        self.agent, self.state, self.spec, self.mode = agent, state, spec, mode
        self._act = jax.jit(lambda state, obs, key: agent.act(state, obs, key, mode)[0])

    def __call__(self, obs: Any, key: Key | None = None) -> Array:
        """The action for ``obs[..., *O]``: ``[..., *A]``. A greedy policy needs no key.

        Raises:
            UsageError: if a sampling policy gets no key.
        """
        if key is None:
            if self.mode != "greedy":
                raise UsageError(f"a policy of mode {self.mode!r} needs a key: policy(obs, key)")
            key = jax.random.key(0)
        return rescale(self.spec.action, self._act(self.state, obs, key))


def load_policy(
    run_dir: str | Path,
    seed: int | None = None,
    mode: Mode = "greedy",
    step: int | None = None,
    config: int = 0,
) -> Policy:
    """The policy of a run, from its newest intact checkpoint or the one of ``step``.

    Args:
        run_dir: the run's folder.
        seed: which of its seeds; default the first.
        mode: "greedy", or "sample" to act as in training.
        config: of a swept run, which configuration.

    Raises:
        UsageError: if the folder holds no run, or the run has no such seed or configuration.
        CheckpointError: if no checkpoint is intact.
    """
    from jaxrl.run import checkpoint

    folder = Path(run_dir)
    try:
        stored = json.loads((folder / "config.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{folder} is not a run folder: it has no config.json") from None
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise UsageError(f"{folder / 'config.json'} is not a JSON object; it describes no policy")
    for name in ("agent", "env", "env_options", "max_steps", "seeds", "sweep"):
        if name not in stored:
            raise UsageError(f"{folder / 'config.json'} lacks {name!r}; it describes no policy")
    seeds = stored["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise UsageError(f"seed {seed} is not in {folder}; it has {', '.join(map(str, seeds))}")
    configurations = stored["sweep"] or [{}]
    if not 0 <= config < len(configurations):
        raise UsageError(f"config is {config}; {folder} has 0 to {len(configurations) - 1}")

    agent = hyper.from_config(stored["agent"], AGENTS)
    agent = hyper.replace(agent, configurations[config])
    spec = envs.make_recorded(stored["env"], stored["env_options"]).spec
    spec = dataclasses.replace(spec, max_steps=stored["max_steps"])
    members = len(seeds) * len(configurations)
    one = jax.eval_shape(lambda key: agent.init(key, spec), jax.random.key(0))
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), one)
    restored = checkpoint.restore(
        folder / "checkpoints", template, step, prefix="agent", report=warnings.warn
    )
    member = config * len(seeds) + seeds.index(seed)
    state = jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x)[member]), restored.state)
    return Policy(agent, state, spec, mode)
