"""Presets of ReBRAC: the weights ``(actor_bc, critic_bc)`` of the authors' configurations."""

from jaxrl.cli.presets.offline import LOCOMOTION, PAPER, SHIPPED, SMALL
from jaxrl.cli.presets.preset import Preset

WEIGHTS: dict[str, dict[str, tuple[float, float]]] = {
    "halfcheetah": {
        "random": (0.001, 0.1),
        "medium": (0.001, 0.01),
        "expert": (0.01, 0.01),
        "medium_expert": (0.01, 0.1),
        "medium_replay": (0.01, 0.001),
        "full_replay": (0.001, 0.1),
    },
    "hopper": {
        "random": (0.001, 0.01),
        "medium": (0.01, 0.01),
        "expert": (0.1, 0.1),
        "medium_expert": (0.1, 0.01),
        "medium_replay": (0.05, 0.5),
        "full_replay": (0.01, 0.01),
    },
    "walker2d": {
        "random": (0.01, 0),
        "medium": (0.05, 0.1),
        "expert": (0.01, 0.5),
        "medium_expert": (0.01, 0.01),
        "medium_replay": (0.05, 0.01),
        "full_replay": (0.01, 0.01),
    },
    "pen": {"human": (0.1, 0.5), "cloned": (0.05, 0.5), "expert": (0.01, 0.01)},
    "door": {"human": (0.1, 0.1), "cloned": (0.01, 0.1), "expert": (0.05, 0.01)},
    "hammer": {"human": (0.01, 0.5), "cloned": (0.1, 0.5), "expert": (0.01, 0.01)},
    "relocate": {"human": (0.1, 0.01), "cloned": (0.1, 0.01), "expert": (0.05, 0.01)},
}
MAZES: dict[str, tuple[float, float]] = {
    "umaze": (0.003, 0.002),
    "umaze-diverse": (0.003, 0.001),
    "medium-play": (0.001, 0.0005),
    "medium-diverse": (0.001, 0),
    "large-play": (0.002, 0.001),
    "large-diverse": (0.002, 0.002),
}
SLOW = dict(actor_learning_rate=3e-4, critic_learning_rate=3e-4)


def weights(actor_bc: float, critic_bc: float) -> dict[str, dict[str, float]]:
    """Return the settings of two weights."""
    return dict(agent=dict(actor_bc=actor_bc, critic_bc=critic_bc))


PRESETS = [
    Preset("*", PAPER, agent=SLOW),
    *[
        Preset(
            pattern,
            batch_size=1024,
            agent=dict(actor_learning_rate=1e-3, critic_learning_rate=1e-3),
        )
        for pattern in LOCOMOTION
    ],
    *[
        Preset(f"{task}[_-]{quality.replace('_', '[_-]')}-v*", weights(*pair))
        for task, found in WEIGHTS.items()
        for quality, pair in found.items()
    ],
    Preset("antmaze*", reward_scale=100.0, agent=dict(gamma=0.999, critic_learning_rate=5e-5)),
    *[Preset(f"antmaze-{maze}-v*", weights(*pair)) for maze, pair in MAZES.items()],
    *[Preset(pattern, SMALL, batch_size=256, agent=SLOW) for pattern in SHIPPED],
    Preset("mjx/Hopper-*/medium-replay", weights(*WEIGHTS["hopper"]["medium_replay"])),
    Preset("mjx/Hopper-*/medium-expert", weights(*WEIGHTS["hopper"]["medium_expert"])),
]
