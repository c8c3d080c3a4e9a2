"""Analysis of run folders: frames, statistics, curves, episodes.

The command is ``python -m jaxrl.analysis RUN``.
"""

from jaxrl.analysis.curves import plot_comparison, plot_run
from jaxrl.analysis.episode import Episode, rollout
from jaxrl.analysis.load import (
    Curve,
    load,
    load_config,
    load_curves,
    load_summary,
    load_timing,
)
from jaxrl.analysis.render import Rendering, render_episode, render_run
from jaxrl.analysis.statistics import (
    bootstrap_ci,
    final_return,
    iqm,
    performance_profile,
    probability_of_improvement,
)

__all__ = [
    "Curve",
    "Episode",
    "Rendering",
    "bootstrap_ci",
    "final_return",
    "iqm",
    "load",
    "load_config",
    "load_curves",
    "load_summary",
    "load_timing",
    "performance_profile",
    "plot_comparison",
    "plot_run",
    "probability_of_improvement",
    "render_episode",
    "render_run",
    "rollout",
]
