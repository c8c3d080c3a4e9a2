"""Analysis of run folders: frames, statistics, comparisons, curves, episodes.

The command is ``python -m jaxrl.analysis RUN``.
"""

from jaxrl.analysis.aggregate import (
    aggregate_iqm,
    aggregate_mean,
    aggregate_median,
    bootstrap,
    bootstrap_ci,
    interval,
    iqm,
    optimality_gap,
)
from jaxrl.analysis.compare import Comparison, compare_groups
from jaxrl.analysis.comparison_figure import plot_groups
from jaxrl.analysis.curves import plot_comparison, plot_run
from jaxrl.analysis.efficiency import area_under_curve, curve_ci, steps_to_threshold
from jaxrl.analysis.episode import Episode, rollout
from jaxrl.analysis.evaluation import Played, evaluate_run
from jaxrl.analysis.groups import Groups, read_groups
from jaxrl.analysis.load import (
    Curve,
    load,
    load_config,
    load_curves,
    load_summary,
    load_timing,
)
from jaxrl.analysis.power import detectable_difference, power_of, seeds_needed, separation
from jaxrl.analysis.render import Rendering, render_episode, render_run
from jaxrl.analysis.statistics import (
    difference_ci,
    final_return,
    holm,
    improvement_ci,
    mean_ci,
    performance_profile,
    permutation_test,
    probability_of_improvement,
    profile_ci,
)

__all__ = [
    "Comparison",
    "Curve",
    "Episode",
    "Groups",
    "Played",
    "Rendering",
    "aggregate_iqm",
    "aggregate_mean",
    "aggregate_median",
    "area_under_curve",
    "bootstrap",
    "bootstrap_ci",
    "compare_groups",
    "curve_ci",
    "detectable_difference",
    "difference_ci",
    "evaluate_run",
    "final_return",
    "holm",
    "improvement_ci",
    "interval",
    "iqm",
    "load",
    "load_config",
    "load_curves",
    "load_summary",
    "load_timing",
    "mean_ci",
    "optimality_gap",
    "performance_profile",
    "permutation_test",
    "plot_comparison",
    "plot_groups",
    "plot_run",
    "power_of",
    "probability_of_improvement",
    "profile_ci",
    "read_groups",
    "render_episode",
    "render_run",
    "rollout",
    "seeds_needed",
    "separation",
    "steps_to_threshold",
]
