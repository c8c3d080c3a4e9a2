"""Learning curves: thin lines for seeds, a bold IQM, and its shaded bootstrap interval.

Figures do not use pyplot: no backend, no global state, nothing to close.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrl._output import one_line
from jaxrl.analysis.load import Curve, load_config, load_curves, load_switches
from jaxrl.analysis.statistics import bootstrap_ci, iqm
from jaxrl.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito: colour-blind safe, and in this order dark enough for thin lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
Y_LABELS = {"eval": "evaluation return", "train": "return in training"}
UNITS = {"env_steps": "environment steps", "gradient_steps": "gradient steps", "steps": "steps"}
LONG_LEGEND = 6  # entries; a longer legend is placed next to the axes
MOST_LEGEND = 16  # entries that fit there; if there are more, an evenly spaced subset


class Entry(NamedTuple):
    """A curve with its labels in a comparison."""

    config: dict[str, Any]
    env: str
    label: str
    kind: str
    curve: Curve | None  # None: the run has no returns yet


def env_label(config: dict[str, Any]) -> str:
    """Return a run's environment, with the options that make it a different task.

    Scores with legacy contact margins or different Brax backends are not comparable.
    """
    options = config.get("env_options") or {}
    decisive = {"margin": "current", "backend": "spring"}  # with their defaults
    shown = [f"{x}={options[x]}" for x, v in decisive.items() if options.get(x, v) != v]
    return " ".join([str(config["env"]), *shown])


def step_label(configs: Sequence[dict[str, Any]]) -> str:
    """Return the unit of these runs' steps: "environment steps", "gradient steps" or "steps"."""
    units = {config.get("unit", "env_steps") for config in configs}
    return UNITS[units.pop()] if len(units) == 1 else UNITS["steps"]


def plot_run(run_dir: str | Path, path: str | Path | None = None) -> Figure:
    """Plot one run's evaluation return against its steps and write the figure to ``path``.

    Seeds are thin lines; the IQM is bold, with its pointwise 95% bootstrap interval shaded. Each
    configuration of a sweep has its own colour. Dashed lines mark the starts of phases. For a run
    that was never evaluated, training returns are shown.

    Raises:
        UsageError: if ``run_dir`` is not a run folder, is damaged or has no returns yet, or
            ``path`` does not end in an image format.
        OSError: if ``path`` cannot be written.
    """
    config = load_config(run_dir)
    kind, curves = load_curves(run_dir)
    if not curves:
        raise UsageError(f"{run_dir} has no returns yet; wait for its first evaluation")
    figure, (ax,) = _figure(1, len(curves))
    for curve, colour in zip(curves, colours_of(len(curves)), strict=True):
        _seeds(ax, curve, colour)
        _middle(ax, curve, colour, curve.label)
    switches = load_switches(run_dir) if "phases" in config else {}
    for name, step in switches.items():
        ax.axvline(step, color="#555555", linestyle="--", linewidth=0.8, zorder=1)
        ax.annotate(
            one_line(name),
            (step, 1.0),
            (3, -3),
            xycoords=ax.get_xaxis_transform(),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="#555555",
        )
    title = f"{config['algorithm']} on {env_label(config)}"
    _finish(ax, title, step_label([config]), Y_LABELS[kind], curves)
    return written(figure, path)


def plot_comparison(run_dirs: Sequence[str | Path], path: str | Path | None = None) -> Figure:
    """Plot the IQM and 95% interval of several runs, with one panel per environment.

    Runs with different contact margins (``margin``) or Brax backends have separate panels. A label
    is the algorithm, plus the folder if several of its runs share a panel; it has the same colour
    in all panels. A run without returns so far appears only in the legend.

    Raises:
        UsageError: if there is no run, or as in ``plot_run``.
        OSError: if ``path`` cannot be written.
    """
    if not run_dirs:
        raise UsageError("there is no run to compare; give at least one run folder")
    entries = _entries(run_dirs)
    envs = list(dict.fromkeys(entry.env for entry in entries))
    labels = list(dict.fromkeys(entry.label for entry in entries))
    colours = dict(zip(labels, colours_of(len(labels)), strict=True))
    panels = [[entry for entry in entries if entry.env == env] for env in envs]
    figure, axes = _figure(len(envs), max(map(len, panels)))
    for ax, env, panel in zip(axes, envs, panels, strict=True):
        kinds = {entry.kind for entry in panel if entry.curve is not None}
        for entry in panel:
            label = entry.label
            if len(kinds) > 1 and entry.curve is not None and entry.kind == "train":
                label += " (in training)"
            _compared(ax, entry.curve, colours[entry.label], label)
        name = Y_LABELS[kinds.pop()] if len(kinds) == 1 else "episode return"
        steps = step_label([entry.config for entry in panel])
        _finish(ax, env, steps, name, [entry.curve for entry in panel if entry.curve is not None])
    return written(figure, path)


def _entries(run_dirs: Sequence[str | Path]) -> list[Entry]:
    configs = [load_config(run_dir) for run_dir in run_dirs]
    taken = [(env_label(config), config["algorithm"]) for config in configs]
    folders = [Path(run_dir).resolve().name for run_dir in run_dirs]
    entries = []
    places = zip(run_dirs, folders, configs, taken, strict=True)
    for run_dir, folder, config, (env, algorithm) in places:
        name = algorithm
        if taken.count((env, algorithm)) > 1:
            name += f" ({one_line(folder if folders.count(folder) == 1 else run_dir)})"
        kind, curves = load_curves(run_dir)
        for curve in curves:
            entries.append(Entry(config, env, f"{name} {curve.label}".strip(), kind, curve))
        if not curves:
            entries.append(Entry(config, env, name, kind, None))
    return entries


def _compared(ax: Axes, curve: Curve | None, colour: str, label: str) -> None:
    if curve is None:
        ax.plot([], [], color=colour, label=f"{label}: no returns yet")
        return
    seeds = curve.returns.shape[1]
    _middle(ax, curve, colour, f"{label}, {seeds} seeds" if seeds > 1 else f"{label}, 1 seed")


def _seeds(ax: Axes, curve: Curve, colour: str) -> None:
    if curve.returns.shape[1] > 1:
        ax.plot(curve.steps, curve.returns, color=colour, alpha=0.3, linewidth=0.7, zorder=2)


def _middle(ax: Axes, curve: Curve, colour: str, label: str) -> None:
    """Draw the IQM and its interval at steps where every seed has a return."""
    whole = curve.complete()
    steps, returns = whole.steps, whole.returns
    seeds = returns.shape[1]
    text = label or (f"{seeds} seeds" if seeds > 1 else "1 seed")
    middle = [float(iqm(row)) for row in returns]
    # A run that has just started has one point, which is not visible as a line.
    marker = "o" if len(steps) == 1 else ""
    ax.plot(steps, middle, marker=marker, color=colour, linewidth=2.0, label=text, zorder=4)
    if seeds > 1 and len(steps):
        # All points share the same bootstrap samples, so the edges are as smooth as the curves.
        low, high = np.transpose([bootstrap_ci(row) for row in returns])
        ax.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, zorder=3)


def colours_of(count: int) -> list[str]:
    """Return ``count`` colours: distinct ones, or a dark-to-light scale if there are too many."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](x)) for x in np.linspace(0.0, 0.92, count)]


def drawing(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches."""
    from matplotlib.figure import Figure

    class Drawing(Figure):
        """A figure that notebooks display without pyplot."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Drawing(figsize=(width, height), layout="constrained")


def _figure(panels: int, entries: int) -> tuple[Figure, list[Axes]]:
    columns = min(panels, 3)
    rows = -(-panels // columns)
    width = 5.2 if entries <= LONG_LEGEND else 7.0
    figure = drawing(width * columns, 3.6 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[panels:]:
        ax.set_axis_off()
    return figure, axes[:panels]


def _finish(ax: Axes, title: str, steps: str, y_label: str, curves: Sequence[Curve]) -> None:
    """Add labels, grid and legend."""
    members = any(curve.returns.shape[1] > 1 for curve in curves)
    ax.set_title(title, fontsize=11, parse_math=False)
    ax.set_xlabel(f"{steps} per seed" if members else steps)
    ax.set_ylabel(f"{y_label} (IQM, 95% interval)" if members else y_label)
    count_steps(ax)
    decorate(ax)
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) <= LONG_LEGEND:
        legend = ax.legend(frameon=False, fontsize=9)
    else:
        count = len(labels)
        shown = np.linspace(0, count - 1, min(count, MOST_LEGEND)).round().astype(int)
        legend = ax.legend(
            [handles[i] for i in shown],
            [labels[i] for i in shown],
            title=f"{len(shown)} of {count}" if count > len(shown) else None,
            frameon=False,
            fontsize=8,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )
    for text in legend.get_texts():  # folder names may contain dollar signs
        text.set_parse_math(False)


def count_steps(ax: Axes) -> None:
    """Format the horizontal axis as steps: 250k, 1M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.margins(x=0.01)


def decorate(ax: Axes) -> None:
    """Draw a grid behind the curves and remove the frame."""
    ax.grid(color="#B0B0B0", alpha=0.35, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def check_picture(path: str | Path) -> None:
    """Raise UsageError unless a path ends in an image format."""
    from matplotlib.backend_bases import FigureCanvasBase

    if Path(path).suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UsageError(f"out {path} is not the name of a picture; end it in .png, .pdf or .svg")


def written(figure: Figure, path: str | Path | None) -> Figure:
    """Write a figure to a path, if given, and return the figure."""
    if path is not None:
        check_picture(path)
        figure.savefig(path, dpi=160)
    return figure
