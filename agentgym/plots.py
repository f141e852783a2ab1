"""Figures of a run, drawn from its ``metrics.jsonl``."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from agentgym import errors, report_data, store

_PANELS = (
    ("success", "episode/success", "eval/success"),
    ("reward", "reward/mean", "eval/return"),
    ("negative log-likelihood", "sft/nll", "eval/nll"),
)
_TRAIN, _EVAL = "#2f6690", "#c2562d"


def learning_curve(run_dir: str | os.PathLike[str]) -> Path:
    """Draw ``learning_curve.png``: success, reward and imitation loss against training steps, as far as logged.

    Training is a thin line with its moving average over a twentieth of the run as a thick one; evaluation is
    points with the 95% intervals ``eval/success_lo`` and ``eval/success_hi`` as bars.

    Args:
        run_dir: A run folder with ``metrics.jsonl``.

    Returns:
        The path of the figure.

    Raises:
        ConfigError: ``metrics.jsonl`` is missing or damaged, or holds none of episode/success, reward/mean, sft/nll
            and their eval/ counterparts.
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise errors.missing("matplotlib", "train") from None
    run = Path(run_dir)
    curves = report_data.read_metrics(run)
    panels = [panel for panel in _PANELS if panel[1] in curves or panel[2] in curves]
    if not panels:
        names = ", ".join(name for panel in _PANELS for name in panel[1:])
        raise errors.ConfigError(f"{run}/metrics.jsonl: nothing to draw: expected one of {names}")
    figure = Figure(figsize=(5.2 * len(panels), 3.6), dpi=150, layout="constrained")
    for axes, (label, train, evaluation) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, label, curves, train, evaluation)
    path = run / "learning_curve.png"
    with store.atomic_file(path) as file:
        FigureCanvasAgg(figure).print_png(file)
    return path


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last ``window`` values at each position, fewer at the start.

    Args:
        values: ``[T]``.
        window: At least 1.

    Returns:
        ``[T]``.
    """
    total = np.cumsum(values)
    total[window:] -= total[:-window].copy()
    return total / np.minimum(np.arange(1, len(values) + 1), window)


def _draw(axes: Any, label: str, curves: dict[str, report_data.Curve], train: str, evaluation: str) -> None:
    steps, values = _finite(curves.get(train, {}))
    if len(steps):
        mean = moving_average(values, max(1, math.ceil(len(values) / 20)))
        axes.plot(steps, values, color=_TRAIN, linewidth=0.8, alpha=0.4)
        axes.plot(steps, mean, color=_TRAIN, linewidth=2.2, label=f"{train}, moving average")
    steps, values = _finite(curves.get(evaluation, {}))
    if len(steps):
        low, high = (_bound(curves.get(f"{evaluation}_{side}", {}), steps, values) for side in ("lo", "hi"))
        bars = np.abs(np.stack([values - low, high - values]))
        some = bool(bars.any())
        name = f"{evaluation}, 95% interval" if some else evaluation
        axes.errorbar(
            steps, values, yerr=bars if some else None, fmt="o", markersize=4.5, capsize=3, color=_EVAL, label=name
        )
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    if label == "success":
        axes.set_ylim(-0.02, 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, fontsize="small")


def _finite(curve: report_data.Curve) -> tuple[np.ndarray, np.ndarray]:
    points = np.array([point for point in curve.items() if math.isfinite(point[1])], dtype=float).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _bound(curve: report_data.Curve, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The bound at each step, or the value itself where none was logged."""
    found = np.array([curve.get(float(step), math.nan) for step in steps])
    return np.where(np.isfinite(found), found, values)
