"""Presets of CQL and Cal-QL: from CORL and the authors, by dataset family."""

from jaxrl.cli.presets.offline import LOCOMOTION, PAPER, SMALL
from jaxrl.cli.presets.preset import Preset

MAZE = dict(
    cql_alpha=5.0,
    lagrange_gap=0.8,
    max_target_backup=True,
    actor_learning_rate=1e-4,
    alpha_learning_rate=1e-4,
)
FAST = dict(actor_learning_rate=3e-4, alpha_learning_rate=3e-4)
# Returns of mazes are small: with a weight of 10, only the conservative term matters.
SPARSE = FAST | dict(cql_alpha=1.0)
# Without LayerNorm, values of actions outside a small dataset grow: on Pendulum's medium-replay,
# scores rise to 36 and end at -35; with it they end near 100. Hopper learns faster with it too.
SMALL_DATA = FAST | dict(cql_alpha=2.0, critic=dict(layer_norm=True))

PRESETS = [
    Preset("*", PAPER),
    *[Preset(pattern, normalize_obs=True) for pattern in LOCOMOTION],
    Preset("antmaze*", reward_scale=10.0, reward_shift=-5.0, agent=MAZE),
    Preset(
        "antmaze*",
        agent=dict(
            policy=dict(hidden_dims=(256, 256)), critic=dict(hidden_dims=(256, 256, 256, 256))
        ),
    ),
    *[Preset(pattern, SMALL, agent=SMALL_DATA) for pattern in ("mjx/*/*", "gymnax/*")],
    # Rewards are between -1 and 0: with 2, scores fall again after a thousand steps.
    Preset("mjx/Reacher-*/*", agent=dict(cql_alpha=0.2)),
    Preset("maze/*", SMALL, agent=SPARSE),
]
