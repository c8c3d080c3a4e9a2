"""Adapter of Brax: its own tasks on its four physics backends.

Every task takes the options of its Brax class (``reset_noise_scale``, ``healthy_z_range``,
``n_frames``, ...) and: ``backend`` (``spring`` by default, ``positional``, ``generalized``,
``mjx``); ``max_steps``, the time limit; and with the backend ``mjx`` also ``randomize``, a
``jaxrl.envs.randomize.Randomize`` or a dictionary of its fields.

Raw ``Env.reset`` and ``Env.step`` are used, never Brax's wrappers, so ``done`` is termination only.
Actions are in [-1, 1]; tasks with other actuator ranges rescale internally. These tasks are Brax's
own: their scores are not comparable with Gymnasium environments of similar names. Brax's swimmer is
excluded: Brax 0.14 calls a function that JAX 0.10 no longer has.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl._startup import large_pool
from jaxrl.envs.checks import check_action, check_like, check_options, check_positive, refuse
from jaxrl.envs.randomize import (
    Parameters,
    Randomize,
    as_option,
    draw_beside,
    randomize_option,
    with_parameters,
)
from jaxrl.errors import UsageError, nearest
from jaxrl.types import Array, Box, Environment, Key, PyTree, Spec, Step

TASKS = (
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "walker2d",
)
BACKENDS = ("spring", "positional", "generalized", "mjx")

# Fields of MJX's data from which a step computes all others, plus Brax's own fields for rewards and
# rendering. Together they are less than a tenth of the data.
_MJX_FIELDS = frozenset(
    ("time", "qpos", "qvel", "act", "ctrl", "qacc_warmstart", "eq_active", "mocap_pos")
    + ("mocap_quat", "q", "qd", "x", "xd")
)


@dataclasses.dataclass(eq=False)
class BraxEnv:
    """One Brax environment. ``env`` is Brax's own.

    A state is a dictionary of the pipeline-state fields that a step reads, and ``parameters``, the
    episode's model parameters. Vector environments copy states at resets, so fields that a step
    recomputes are not carried.

    Attributes:
        options: the options that define it, together with its name.
    """

    name: str
    env: Any
    max_steps: int
    randomize: Randomize | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    cheap: bool = False

    def __post_init__(self) -> None:
        start = jax.eval_shape(self.env.reset, jax.random.key_data(jax.random.key(0)))
        self._template, self._obs = start.pipeline_state, start.obs
        self._carried = tuple(
            field.name
            for field in dataclasses.fields(self._template)
            if _is_read(self.env.backend, field.name)
            # Checkpoints do not need empty arrays.
            and any(leaf.size for leaf in jax.tree.leaves(getattr(self._template, field.name)))
        )
        self.spec = Spec(
            Box(-np.inf, np.inf, start.obs.shape),
            Box(-1.0, 1.0, (self.env.action_size,)),
            self.max_steps,
        )

    def reset(self, key: Key) -> tuple[PyTree, Array]:
        """Draw a first state. Returns ``state, obs[O]``."""
        parameters = draw_beside(self.randomize, key, self.env.sys)
        env = self._env_with(parameters)
        start = env.reset(jax.random.key_data(key))  # Brax expects legacy keys.
        return self._pack(start.pipeline_state, parameters), start.obs

    def step(self, key: Key, state: PyTree, action: Array) -> tuple[PyTree, Step]:
        """Advance one step with ``action[A]`` in [-1, 1]. Raises as ``check_action`` does."""
        action, legal = check_action(self.spec.action, action)
        zero = jnp.zeros(())
        obs = jnp.zeros(self._obs.shape)
        before = _state_class()(self.pipeline_state(state), obs, zero, zero, {}, {})
        after = self._env_with(state["parameters"]).step(before, action)
        terminated = jnp.asarray(after.done) > 0
        truncated = jnp.zeros_like(terminated)
        step = Step(after.obs, refuse(legal, after.reward), terminated, truncated, {})
        return self._pack(after.pipeline_state, state["parameters"]), step

    def pipeline_state(self, state: PyTree) -> Any:
        """Brax's pipeline state, for its renderers; fields that are not carried are zero."""
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._template)
        return zeros.replace(**{name: state[name] for name in self._carried})

    def _env_with(self, parameters: Parameters) -> Any:
        """Brax's environment with these model parameters."""
        if not parameters:
            return self.env
        env = copy.copy(self.env)
        env.sys = _renewed(with_parameters(env.sys, parameters))
        return env

    def _pack(self, pipeline_state: Any, parameters: Parameters) -> PyTree:
        carried = {name: getattr(pipeline_state, name) for name in self._carried}
        return carried | {"parameters": parameters}


def make(
    task: str,
    /,
    backend: str = "spring",
    max_steps: int = 1000,
    randomize: Randomize | Mapping[str, Any] | None = None,
    **options: Any,
) -> Environment:
    """The environment ``brax/<task>``, with Brax's class options by keyword.

    Raises:
        UsageError: unknown backend or a backend that cannot randomise (raised before Brax is
            imported), unknown option, or a value that Brax refuses.
    """
    name = f"brax/{task}"
    if backend not in BACKENDS:
        raise UsageError(f"{name}: backend is {backend!r}; {nearest(str(backend), BACKENDS)}")
    if backend in ("generalized", "mjx"):
        large_pool()
    check_positive(name, "max_steps", max_steps)
    randomize = randomize_option(name, randomize)
    if randomize is not None and backend != "mjx":
        raise UsageError(f"{name}: randomize works on backend 'mjx', and not on {backend!r}")

    with quiet():
        from brax import envs

        own = inspect.signature(envs._envs[task]).parameters
        valid = {"backend", "max_steps", "randomize", "n_frames", *own} - {"kwargs"}
        check_options(name, options, valid)
        for option, value in options.items():
            if option == "n_frames":
                check_positive(name, option, value)
            else:
                check_like(name, option, value, own[option].default)
        try:
            env = envs.get_environment(task, backend=backend, **options)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UsageError(f"{name}: {options} is refused by Brax: {error}") from error
    given = options | {"backend": backend, "max_steps": max_steps}
    if randomize is not None:
        given["randomize"] = as_option(randomize)
    return BraxEnv(name, env, max_steps, randomize, given)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence two harmless notices: about Brax's maintenance and about MJX without Warp."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message="Brax System", category=UserWarning)
        yield


def _is_read(backend: str, field: str) -> bool:
    """Whether a step reads this field of the pipeline state before recomputing it."""
    if backend == "mjx":
        return field in _MJX_FIELDS
    return not (backend == "spring" and field == "i_inv")


def _renewed(sys: Any) -> Any:
    """``sys`` with Brax's copies of masses and gains, observed by its humanoids, set to MJX's."""
    import mujoco

    model = sys.mj_model
    joints = model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT  # Brax supports no others
    affine = model.actuator_biastype[joints] != mujoco.mjtBias.mjBIAS_NONE
    inertia = sys.link.inertia.replace(
        mass=sys.body_mass[1:], i=jax.vmap(jnp.diag)(sys.body_inertia[1:])
    )
    actuator = sys.actuator.replace(
        gain=sys.actuator_gainprm[joints, 0],
        bias_q=sys.actuator_biasprm[joints, 1] * affine,
        bias_qd=sys.actuator_biasprm[joints, 2] * affine,
    )
    return sys.replace(link=sys.link.replace(inertia=inertia), actuator=actuator)


@functools.cache
def _state_class() -> Any:
    from brax.envs.base import State

    return State
