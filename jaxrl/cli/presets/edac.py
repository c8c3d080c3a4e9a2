"""Presets of EDAC: ensembles and coefficients from CORL's configurations."""

from jaxrl.cli.presets.offline import PAPER, SHIPPED, SMALL
from jaxrl.cli.presets.preset import Preset

PRESETS = [
    Preset("*", PAPER, total_steps=3_000_000),
    Preset("hopper*", agent=dict(critic=dict(num_critics=50))),
    Preset("halfcheetah[_-]medium[_-]expert-v*", agent=dict(diversity_coef=5.0)),
    Preset("walker2d[_-]medium[_-]expert-v*", agent=dict(diversity_coef=5.0)),
    Preset("maze2d*", agent=dict(diversity_coef=0.1)),
    Preset("pen*", agent=dict(critic=dict(num_critics=20), diversity_coef=10.0)),
    Preset("pen[_-]human*", agent=dict(diversity_coef=1000.0)),
    *[
        Preset(f"{task}*", agent=dict(critic=dict(num_critics=50), diversity_coef=200.0))
        for task in ("door", "hammer", "relocate")
    ],
    *[Preset(pattern, SMALL) for pattern in SHIPPED],
    # Without LayerNorm, ten critics agree on wrong values: scores on Pendulum's medium-replay are
    # below the random policy's, and Hopper's rise later.
    *[Preset(x, agent=dict(critic=dict(layer_norm=True))) for x in ("mjx/*/*", "gymnax/*")],
]
