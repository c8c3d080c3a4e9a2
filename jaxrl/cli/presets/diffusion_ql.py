"""Presets of Diffusion-QL: the authors' settings, by dataset.

On pen, the authors also standardise rewards to mean 0 and variance 1, which is possible with
``--reward-scale`` and ``--reward-shift``.
"""

from jaxrl.cli.presets.offline import LOCOMOTION, PAPER, SHIPPED, SMALL
from jaxrl.cli.presets.preset import Preset, Settings

CLIPS: dict[str, dict[str, float]] = {
    "halfcheetah": {"medium": 9.0, "medium_replay": 2.0, "medium_expert": 7.0},
    "hopper": {"medium": 9.0, "medium_replay": 4.0, "medium_expert": 5.0},
    "walker2d": {"medium": 1.0, "medium_replay": 4.0, "medium_expert": 5.0},
}
MAZES: dict[str, tuple[float, float]] = {  # eta, and the gradient clipping
    "umaze": (0.5, 2.0),
    "umaze-diverse": (2.0, 3.0),
    "medium-play": (2.0, 2.0),
    "medium-diverse": (3.0, 1.0),
    "large-play": (4.5, 10.0),
    "large-diverse": (3.5, 7.0),
}
SLOW = dict(actor_learning_rate=3e-5)


def weights(max_grad_norm: float, **agent: float) -> Settings:
    """Return agent settings with this gradient clipping."""
    return dict(agent=dict(agent, optimizer=dict(max_grad_norm=max_grad_norm)))


PRESETS = [
    Preset("*", PAPER),
    *[Preset(pattern, total_steps=2_000_000) for pattern in LOCOMOTION],
    *[
        Preset(f"{task}[_-]{quality.replace('_', '[_-]')}-v*", weights(clip))
        for task, found in CLIPS.items()
        for quality, clip in found.items()
    ],
    Preset("antmaze*", reward_scale=4.0, reward_shift=-2.0, agent=dict(num_next_actions=10)),
    *[Preset(f"antmaze-{maze}-v*", weights(clip, eta=eta)) for maze, (eta, clip) in MAZES.items()],
    Preset("antmaze-umaze-v*", agent=dict(num_next_actions=1)),
    Preset("antmaze-medium-play-v*", agent=dict(actor_learning_rate=1e-3)),
    Preset("pen[_-]human-v*", weights(7.0, eta=0.15, **SLOW)),
    Preset("pen[_-]cloned-v*", weights(8.0, eta=0.1, **SLOW)),
    Preset("kitchen*", weights(10.0, eta=0.005)),
    *[Preset(pattern, SMALL) for pattern in SHIPPED],
]
