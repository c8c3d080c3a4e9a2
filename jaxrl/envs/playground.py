"""Adapter of MuJoCo Playground: DM Control tasks, and robots that walk, balance and grasp.

Options of every task: ``impl``, ``"jax"`` (default) or ``"warp"`` (MuJoCo Warp: NVIDIA GPUs);
``max_steps``, the time limit; ``randomize``, a ``jaxrl.envs.randomize.Randomize`` or a dictionary
of its fields; and the numbers of the task's default configuration by their dotted names
(``ctrl_dt``, ``action_repeat``, ``noise_config.level``, ...). Warp's contact buffers, ``naconmax``
and ``naccdmax``, are shared by all environments, and overflowing contacts are dropped: raise them
with ``num_envs``.

Raw ``reset`` and ``step`` are used, never Playground's wrappers, so ``done`` is termination only
(including physics that turned NaN). ``action_repeat``, normally done by its wrappers, is done here;
unlike theirs, it stops at the end of an episode. Actions are in [-1, 1]. Most robots observe a
dictionary: ``state`` for the policy, and ``privileged_state`` for the value function.

The robots need the models of the MuJoCo Menagerie. Playground would clone it silently; here these
tasks are refused until it is installed.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl._startup import large_pool
from jaxrl.envs.brax import quiet
from jaxrl.envs.checks import (
    check_action,
    check_nvidia,
    check_options,
    check_positive,
    refuse,
)
from jaxrl.envs.mjx.task import MOVING, diverged, old_xml_unsaid
from jaxrl.envs.playground_options import check_times, checked, numbers
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

Impl = Literal["jax", "warp"]

DM_CONTROL = (
    *("AcrobotSwingup", "AcrobotSwingupSparse", "BallInCup", "CartpoleBalance"),
    *("CartpoleBalanceSparse", "CartpoleSwingup", "CartpoleSwingupSparse", "CheetahRun"),
    *("FingerSpin", "FingerTurnEasy", "FingerTurnHard", "FishSwim", "HopperHop", "HopperStand"),
    *("HumanoidRun", "HumanoidStand", "HumanoidWalk", "PendulumSwingup", "PointMass"),
    *("ReacherEasy", "ReacherHard", "SwimmerSwimmer6", "WalkerRun", "WalkerStand", "WalkerWalk"),
)
LOCOMOTION = (
    *("ApolloJoystickFlatTerrain", "BarkourJoystick", "BerkeleyHumanoidJoystickFlatTerrain"),
    *("BerkeleyHumanoidJoystickRoughTerrain", "G1JoystickFlatTerrain", "G1JoystickRoughTerrain"),
    *("Go1Footstand", "Go1Getup", "Go1Handstand", "Go1JoystickFlatTerrain"),
    *("Go1JoystickRoughTerrain", "H1InplaceGaitTracking", "H1JoystickGaitTracking", "Op3Joystick"),
    *("SpotFlatTerrainJoystick", "SpotGetup", "SpotJoystickGaitTracking", "T1JoystickFlatTerrain"),
    *("T1JoystickRoughTerrain",),
)
MANIPULATION = (
    *("AeroCubeRotateZAxis", "AlohaHandOver", "AlohaSinglePegInsertion", "LeapCubeReorient"),
    *("LeapCubeRotateZAxis", "PandaOpenCabinet", "PandaPickCube", "PandaPickCubeCartesian"),
    *("PandaPickCubeOrientation", "PandaRobotiqPushCube"),
)
TASKS = DM_CONTROL + LOCOMOTION + MANIPULATION

# MuJoCo's integration state: the fields of MJX's data from which a step computes all others.
_FIELDS = (
    *("time", "qpos", "qvel", "act", "history", "qacc_warmstart", "plugin_state", "ctrl"),
    *("qfrc_applied", "xfrc_applied", "eq_active", "mocap_pos", "mocap_quat", "userdata"),
)


@dataclasses.dataclass(eq=False)
class PlaygroundEnv:
    """One Playground environment. ``env`` is Playground's own.

    A state is a dictionary: ``data``, the fields of MJX's data that a step reads; ``info`` from
    Playground; ``obs``, which some tasks keep as history; and ``parameters``, the episode's model
    parameters. Vector environments copy states at resets, so fields that a step recomputes are not
    carried.

    Attributes:
        repeat: the number of Playground steps per step.
        buffers: sizes of the data's buffers, for ``make_data``.
    """

    name: str
    env: Any
    max_steps: int
    repeat: int = 1
    buffers: dict[str, int] = dataclasses.field(default_factory=dict)
    randomize: Randomize | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    cheap: bool = False

    def __post_init__(self) -> None:
        start = jax.eval_shape(self.env.reset, jax.random.key_data(jax.random.key(0)))
        self._metrics = start.metrics
        sizes = {name: getattr(start.data, name) for name in _FIELDS}
        self._like = {
            "data": {name: leaf for name, leaf in sizes.items() if leaf.size},
            "info": dict(start.info),
            "obs": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), start.obs),
        }
        boxes = jax.tree.map(lambda x: Box(-np.inf, np.inf, x.shape), start.obs)
        action = Box(-1.0, 1.0, (self.env.action_size,))
        self.spec = Spec(boxes, action, self.max_steps)

    @property
    def mj_model(self) -> Any:
        """The ``mujoco.MjModel``."""
        return self.env.mj_model

    @property
    def dt(self) -> float:
        """Seconds per step."""
        return float(self.env.dt) * self.repeat

    def pose(self, state: PyTree) -> dict[str, np.ndarray]:
        """Return the poses that a renderer needs for states ``[...]``, on the host.

        ``qpos[..., nq]``, and for models with mocap bodies ``mocap_pos[..., nmocap, 3]`` and
        ``mocap_quat[..., nmocap, 4]``.
        """
        names = ("qpos", "mocap_pos", "mocap_quat")
        return {name: np.asarray(state["data"][name]) for name in names if name in state["data"]}

    def reset(self, key: Key) -> tuple[PyTree, PyTree]:
        """Draw a first state. Returns ``state, obs``: ``[O]``, or a dictionary of arrays."""
        parameters = draw_beside(self.randomize, key, self.env.mjx_model)
        state, obs = self._reset(self._env_with(parameters), key)
        return state | {"parameters": parameters}, obs

    def step(self, key: Key, state: PyTree, action: Array) -> tuple[PyTree, Step]:
        """Advance one step with ``action[A]`` in [-1, 1]. Raises as ``check_action`` does."""
        own = {name: state[name] for name in self._like}
        after, step = self._step(self._env_with(state["parameters"]), own, action)
        return after | {"parameters": state["parameters"]}, step

    def _env_with(self, parameters: Parameters) -> Any:
        """Playground's environment with these model parameters."""
        if not parameters:
            return self.env
        env = copy.copy(self.env)
        env._mjx_model = with_parameters(env.mjx_model, parameters)
        return env

    # ``env`` is an argument below, as it may be such a copy.

    def _reset(self, env: Any, key: Key) -> tuple[PyTree, PyTree]:
        state = self._pack(env.reset(jax.random.key_data(key)))  # expects legacy keys
        return state, state["obs"]

    def _step(self, env: Any, state: PyTree, action: Array) -> tuple[PyTree, Step]:
        action, legal = check_action(self.spec.action, action)

        def once(before: tuple, _: None) -> tuple[tuple, None]:
            after = self._raw_step(env, before[0], action)
            ended = before[2]
            kept = jax.tree.map(lambda old, new: jnp.where(ended, old, new), before, after)
            return (kept[0], before[1] + jnp.where(ended, 0.0, after[1]), kept[2]), None

        if self.repeat == 1:
            state, reward, terminated = self._raw_step(env, state, action)
        else:
            first = (state, jnp.zeros(()), jnp.zeros((), bool))
            (state, reward, terminated), _ = jax.lax.scan(once, first, length=self.repeat)
        truncated = jnp.zeros_like(terminated)
        moving = [x for name, x in state["data"].items() if name in MOVING]
        # The vector environment ends and counts NaN episodes.
        bad = diverged(*moving) if moving else jnp.zeros((), bool)
        obs = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), state["obs"])
        return state, Step(obs, refuse(legal, reward), terminated, truncated, {})

    def _raw_step(self, env: Any, state: PyTree, action: Array) -> tuple[PyTree, Array, Array]:
        """One of Playground's own steps: the next state, its reward, and whether it terminates."""
        from mujoco_playground import State
        from mujoco_playground._src.mjx_env import make_data

        zero = jnp.zeros(())
        data = make_data(env.mj_model, impl=env.mjx_model.impl.value, **self.buffers)
        # Playground's steps write into these dictionaries.
        metrics = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._metrics)
        info = jax.tree.map(lambda x: x, state["info"])
        before = State(data.replace(**state["data"]), state["obs"], zero, zero, metrics, info)
        after = env.step(before, action)
        return self._pack(after), jnp.asarray(after.reward, jnp.float32), after.done > 0

    def _pack(self, state: Any) -> PyTree:
        parts = {
            "data": {name: getattr(state.data, name) for name in self._like["data"]},
            "info": {name: state.info[name] for name in self._like["info"]},
            "obs": state.obs,
        }
        # Some of Playground's numbers change type between reset and step, which a scan forbids.
        return jax.tree.map(lambda like, x: jnp.asarray(x, like.dtype), self._like, parts)


def make(
    task: str,
    /,
    impl: Impl = "jax",
    max_steps: int | None = None,
    randomize: Randomize | Mapping[str, Any] | None = None,
    **options: Any,
) -> Environment:
    """The environment ``playground/<task>``, with numbers of its configuration as keywords.

    Raises:
        UsageError: unknown option or value, an implementation that cannot run here, or Playground
            or the task's model not installed.
    """
    name = f"playground/{task}"
    if impl not in get_args(Impl):
        raise UsageError(f"{name}: impl is {impl!r}; {nearest(str(impl), get_args(Impl))}")
    if max_steps is not None:
        check_positive(name, "max_steps", max_steps)
    randomize = randomize_option(name, randomize)
    if importlib.util.find_spec("mujoco_playground") is None:
        raise UsageError(
            f'{name}: MuJoCo Playground is not installed; pip install "jaxrl[playground]"'
        )
    large_pool()  # before JAX's first computation
    if impl == "warp":
        check_nvidia(name, "impl", impl, "jax")

    with quiet():
        from mujoco_playground import registry

        if task not in DM_CONTROL:
            _check_menagerie(name)
        config = registry.get_default_config(task)
        known = numbers(config)
        check_options(name, options, {*known, "impl", "max_steps", "randomize"})
        given = {option: checked(name, option, x, known[option]) for option, x in options.items()}
        config.update_from_flattened_dict(given)
        check_times(name, config)
        if max_steps is not None:
            config.episode_length = max_steps * config.action_repeat
        if "impl" in config:
            config.impl = impl
        elif impl != "jax":
            raise UsageError(f"{name}: impl is {impl!r}; this task has only 'jax'")
        try:
            with _as_playground_knows_mujoco():
                env = registry.load(task, config=config)
        except (OSError, ValueError, TypeError, NotImplementedError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"{name} is refused by Playground: {reason}") from error
    recorded: dict[str, Any] = {"impl": impl}
    if max_steps is not None:
        recorded["max_steps"] = max_steps
    if randomize is not None:
        recorded["randomize"] = as_option(randomize)
    return PlaygroundEnv(
        name=name,
        env=env,
        max_steps=-(-config.episode_length // config.action_repeat),
        repeat=config.action_repeat,
        buffers={k: config[k] for k in ("naconmax", "naccdmax", "njmax") if k in config},
        randomize=randomize,
        options=recorded | given,
    )


@contextlib.contextmanager
def _as_playground_knows_mujoco() -> Iterator[None]:
    """While a task loads, restore a renamed MjSpec method and silence warnings about old XML."""
    import mujoco

    lacks = not hasattr(mujoco.MjSpec, "find_body")
    if lacks:
        mujoco.MjSpec.find_body = mujoco.MjSpec.body
    try:
        with old_xml_unsaid():
            yield
    finally:
        if lacks:
            del mujoco.MjSpec.find_body


def _check_menagerie(name: str) -> None:
    from mujoco_playground._src import mjx_env

    if not mjx_env.MENAGERIE_PATH.exists():
        raise UsageError(
            f"{name}: there is no folder {mjx_env.MENAGERIE_PATH}; put there the robot models, "
            "https://github.com/google-deepmind/mujoco_menagerie at commit "
            f"{mjx_env.MENAGERIE_COMMIT_SHA[:7]} (tasks of DM Control need none)"
        )
