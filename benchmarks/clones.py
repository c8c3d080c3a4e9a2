"""Clones of datasets that fine-tuning starts from: ``benchmarks/fine_tuning.py`` trains them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxrl
from jaxrl import hyper
from jaxrl.data.formats import load, metadata
from jaxrl.data.shipped import shipped, shipped_path
from jaxrl.envs.maze import GoalMaze
from jaxrl.errors import UsageError
from jaxrl.nn.diffusion import Diffusion
from jaxrl.nn.encoders import Flatten
from jaxrl.nn.flow import Flow
from jaxrl.nn.policies import Gaussian

SIZES: dict[str, Any] = {"hidden_dims": (128, 128)}
CLONES = {  # as diffusion_bc.py, flow_bc.py and bc.py make them
    "diffusion": Diffusion(**SIZES, schedule="cosine"),
    "flow": Flow(**SIZES, time_embedding="sinusoidal", sample_steps=5),
    "gaussian": Gaussian(**SIZES, initializer="orthogonal"),
}


def located(dataset: str) -> tuple[Path, tuple[str, str]]:
    """Return a dataset's file, and the names that presets go by: its environment's and its own.

    Raises:
        UsageError: for a file that cannot be read, or does not say of which environment it is.
    """
    if dataset in shipped():
        return shipped_path(dataset), (dataset.rpartition("/")[0], dataset)
    path = Path(dataset)
    env_name = metadata(path).get("env")
    if env_name is None:
        raise UsageError(
            f"dataset is {dataset}, which does not say of which environment it is; give a file of "
            f"experiments/make_dataset.py, or one of {', '.join(shipped())}"
        )
    return path, (env_name, f"{env_name}/{path.stem}")


def read(path: Path, env: Any) -> Any:
    """Return the dataset; in a maze of several goals each row gets one of them, drawn at random.

    Raises:
        UsageError: for a dataset that does not fit the environment.
    """
    data = load(path, quiet=True)
    if isinstance(env, GoalMaze):
        goals = np.asarray(env.observe(jnp.array(env.centres("G"), jnp.float32)))
        drawn = goals[np.random.default_rng(0).integers(len(goals), size=len(data.reward))]
        obs, next_obs = ({"state": x, "goal": drawn} for x in (data.obs, data.next_obs))
        data = data._replace(obs=obs, next_obs=next_obs)
    data.check_spec(env.spec)
    return data


def sizes(env_name: str) -> dict[str, Any]:
    """Return the settings of all networks, which see every entry of observations."""
    observed = jaxrl.make(env_name).spec.observation
    entries = tuple(observed) if isinstance(observed, dict) else ()
    return SIZES | {"encoder": Flatten(obs_keys=entries)}


def clone(name: str, names: tuple[str, str], data: Any, seeds: list[int], steps: int) -> Path:
    """Return the folder of a run that clones the data, trained unless it is there."""
    folder = Path("runs/fine_tuning") / names[1].replace("/", "-")
    folder /= f"{name}_{steps}_steps_seeds_{seeds[0]}_to_{seeds[-1]}"
    if not (folder / "summary.json").exists():
        policy = hyper.override(CLONES[name], sizes(names[0]))
        agent = jaxrl.NormalizeObs(jaxrl.BC(policy, learning_rate=1e-3), frozen=True)
        env = jaxrl.VectorEnv(jaxrl.make(names[0]), 1)
        trainer = jaxrl.Offline(agent, env, num_updates=100)
        options: dict[str, Any] = {"run_dir": folder, "resume": folder.exists(), "quiet": True}
        jaxrl.run(trainer, steps, seeds=seeds, data=data, eval_every=steps, **options)
    return folder
