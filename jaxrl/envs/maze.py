"""Point mazes: each trajectory in a dataset shows only a part of the task.

``maze/Stitch-v0`` is a U-shaped corridor. Its data (``experiments/make_dataset.py``) has paths from
the start to the bend and from the bend to the goal, but none from start to goal. An agent has to
stitch them together, which imitation cannot do.

``maze/Goals-v0`` is a room with six goals around the start. Each episode draws one goal, which is
observed. The data has paths to all goals, with plain positions as observations. Without observing
the goal, a policy has to represent six answers at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.checks import check_action, check_options, refuse
from jaxrl.errors import UsageError
from jaxrl.types import Array, Box, Key, Spec, Step

STEP = 0.25  # cells per step with a full action
RADIUS = 0.5  # cells around the goal's centre that count as the goal
MAPS = {
    "Stitch-v0": """\
#########
#S  #  G#
#   #   #
#   #   #
#       #
#########
""",
    "Goals-v0": """\
#########
#G  G  G#
#       #
#   S   #
#       #
#G  G  G#
#########
""",
}
TASKS = tuple(MAPS)
_PIXELS = 32  # per cell edge in pictures


@dataclasses.dataclass(frozen=True)
class PointMaze:
    """A point among walls that moves up to a quarter of a cell per step.

    The observation is its position ``[x, y]``, scaled so that the map spans [-1, 1]. The reward is
    1 at the goal, where the episode terminates, else 0, so mean returns are success rates. A wall
    blocks the component of a move that would enter it.

    Attributes:
        task: the map.
        anywhere: begin at a uniformly random free position instead of near the start; used for
            data.
    """

    task: str = "Stitch-v0"
    anywhere: bool = False

    cheap: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """``maze/<task>``."""
        return f"maze/{self.task}"

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``make`` that differ from their defaults."""
        return {"anywhere": True} if self.anywhere else {}

    @property
    def cells(self) -> np.ndarray:
        """The map: ``str[rows, columns]`` of one character each."""
        return np.array([list(row) for row in MAPS[self.task].splitlines()])

    @property
    def spec(self) -> Spec:
        """Observations ``[2]`` and actions ``[2]``, both in [-1, 1]; 150 steps."""
        return Spec(Box(-1.0, 1.0, (2,)), Box(-1.0, 1.0, (2,)), 150)

    def reset(self, key: Key) -> tuple[Array, Array]:
        """Draw a position ``[2]`` in cells. Returns it, and the observation ``[2]``."""
        cell_key, inside_key = jax.random.split(key)
        free = jnp.array(np.argwhere(self.cells != "#")[:, ::-1], jnp.float32)
        start = jnp.array(self.centre("S") - 0.5, jnp.float32)
        cell = jax.random.choice(cell_key, free) if self.anywhere else start
        state = cell + jax.random.uniform(inside_key, (2,), minval=0.1, maxval=0.9)
        return state, self.observe(state)

    def step(self, key: Key, state: Array, action: Array) -> tuple[Array, Step]:
        """Advance one step. Raises as ``check_action`` does."""
        goal = jnp.array(self.centre("G"), jnp.float32)
        state, reward, reached = self.moved(state, action, goal)
        return state, Step(self.observe(state), reward, reached, jnp.zeros_like(reached), {})

    def moved(self, position: Array, action: Array, goal: Array) -> tuple[Array, Array, Array]:
        """Return the position ``[2]`` after a step, the reward, and whether the goal is reached.

        Positions are in cells. Raises as ``check_action`` does.
        """
        action, legal = check_action(self.spec.action, action)
        move = STEP * jnp.clip(action, -1.0, 1.0)
        for axis in (0, 1):
            further = position.at[axis].add(move[axis])
            position = jnp.where(self._is_wall(further), position, further)
        reached = jnp.linalg.norm(position - goal) <= RADIUS
        return position, refuse(legal, reached.astype(jnp.float32)), reached

    def observe(self, state: Array) -> Array:
        """Return the position ``[2]``, in cells, scaled to [-1, 1]."""
        rows, columns = self.cells.shape
        return 2.0 * state / jnp.array([columns, rows], jnp.float32) - 1.0

    def picture(self, state: Any) -> np.ndarray:
        """Return a picture of the maze ``uint8[H, W, 3]``, with the point and the goal."""
        return self.drawn(np.asarray(state), self.centre("G"))

    def drawn(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Return a picture ``uint8[H, W, 3]`` of the maze, a point and a goal, both in cells."""
        walls = np.kron(self.cells == "#", np.ones((_PIXELS, _PIXELS), bool))
        image = np.where(walls[..., None], 70, 255) * np.ones(3)
        y, x = (np.indices(walls.shape) + 0.5) / _PIXELS
        for centre, radius, colour in (
            (goal, RADIUS, (0, 158, 115)),
            (position, 0.2, (0, 114, 178)),
        ):
            image[np.hypot(x - centre[0], y - centre[1]) <= radius] = colour
        return image.astype(np.uint8)

    def centre(self, mark: str) -> np.ndarray:
        """Return the centre ``[x, y]`` of the first cell with a mark, ``"S"`` or ``"G"``."""
        return self.centres(mark)[0]

    def centres(self, mark: str) -> np.ndarray:
        """Return the centres ``[cells, 2]`` of all cells with a mark."""
        return np.argwhere(self.cells == mark)[:, ::-1] + 0.5

    def _is_wall(self, position: Array) -> Array:
        column, row = jnp.floor(position).astype(jnp.int32)
        return jnp.array(self.cells == "#")[row, column]


class GoalState(NamedTuple):
    """A position and the goal of the episode, both ``[2]`` in cells."""

    position: Array
    goal: Array


@dataclasses.dataclass(frozen=True)
class GoalMaze(PointMaze):
    """A point maze with several goals; each episode draws one.

    Observations are dictionaries: ``state`` is the position and ``goal`` the centre of the goal,
    both scaled as in ``PointMaze``. The reward is 1 at the drawn goal, where the episode
    terminates, else 0, even at the other goals.
    """

    task: str = "Goals-v0"

    @property
    def spec(self) -> Spec:
        """Entries ``state`` and ``goal`` and actions ``[2]``, all in [-1, 1]; 50 steps."""
        box = Box(-1.0, 1.0, (2,))
        return Spec({"state": box, "goal": box}, box, 50)

    def reset(self, key: Key) -> tuple[GoalState, dict[str, Array]]:  # type: ignore[override]
        """Draw a position and a goal. Returns the state, and the observation."""
        start_key, goal_key = jax.random.split(key)
        position, _ = super().reset(start_key)
        goal = jax.random.choice(goal_key, jnp.array(self.centres("G"), jnp.float32))
        state = GoalState(position, goal)
        return state, self.seen(state)

    def step(  # type: ignore[override]
        self, key: Key, state: GoalState, action: Array
    ) -> tuple[GoalState, Step]:
        """Advance one step. Raises as ``check_action`` does."""
        position, reward, reached = self.moved(state.position, action, state.goal)
        state = GoalState(position, state.goal)
        return state, Step(self.seen(state), reward, reached, jnp.zeros_like(reached), {})

    def seen(self, state: GoalState) -> dict[str, Array]:
        """Return the observation of a state."""
        return {"state": self.observe(state.position), "goal": self.observe(state.goal)}

    def picture(self, state: Any) -> np.ndarray:
        """Return a picture of the maze ``uint8[H, W, 3]``, with the point and the drawn goal."""
        return self.drawn(np.asarray(state.position), np.asarray(state.goal))


def make(task: str, /, **options: Any) -> PointMaze:
    """The environment ``maze/<task>``; ``anywhere=True`` begins at a random free position.

    Raises:
        UsageError: unknown option or invalid value.
    """
    check_options(f"maze/{task}", options, ["anywhere"])
    if not isinstance(options.get("anywhere", False), bool):
        raise UsageError(
            f"maze/{task}: anywhere is {options['anywhere']!r}; it must be True or False"
        )
    kind = GoalMaze if MAPS[task].count("G") > 1 else PointMaze
    return kind(task, **options)
