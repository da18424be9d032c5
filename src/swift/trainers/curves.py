"""This file knows how the curves of a run are drawn: one PNG per value that was logged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from swift.trainers.journal import curves_of, measures_quality

SMOOTHED = "train/loss"
NOT_DRAWN = ("train/epoch", "eval/epoch", "train/train_loss")
SMOOTHING = 0.9
"""How much of the smoothed past each point keeps."""


def draw(log_history: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `<folder>/<curve>.png` for every value with a history, `/` in its name as `_`."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in log_history:
        for name, value in curves_of(entry).items():
            if measures_quality(name) and name not in NOT_DRAWN:
                curves.setdefault(name, []).append((entry["step"], value))
    folder.mkdir(exist_ok=True)
    for name, points in curves.items():
        _draw(name, points, folder / f"{name.replace('/', '_')}.png")


def smooth(values: Sequence[float], keep: float) -> list[float]:
    """Exponential moving average, corrected for its start: the first point is the first value (Adam, section 3)."""
    smoothed, average = [], 0.0
    for i, value in enumerate(values, start=1):
        average = keep * average + (1 - keep) * value
        smoothed.append(average / (1 - keep**i))
    return smoothed


def _draw(name: str, points: Sequence[tuple[int, float]], file: Path) -> None:
    steps, values = zip(*points, strict=True)
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    axes.set_title(name)
    axes.set_xlabel("step")
    if name == SMOOTHED and len(values) > 1:
        axes.plot(steps, values, color="0.8")
        axes.plot(steps, smooth(values, SMOOTHING), color="C0")
    else:
        axes.plot(steps, values, color="C0", marker="." if len(values) < 50 else None)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(file, dpi=100)
