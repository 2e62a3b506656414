"""Training curves out of the `metrics.csv` that Lightning's CSVLogger leaves in every run folder."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from lit_align.evaluation import style

Columns = Mapping[str, NDArray[np.float64]]
# What the x axis is, best first: columns that count work, then Lightning's own step.
CLOCKS = (r"env_steps", r"(train_)?frames(_seen)?$", r"^step$")
CLOCK_NAMES = {"env": "steps in the world", "frames": "frames seen", "step": "updates"}


@dataclass(frozen=True)
class Line:
    """One curve: y over x, with a name and a colour."""

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: str


@dataclass(frozen=True)
class Panel:
    """One small chart.

    Attributes:
        title: What y is.
        lines: What is drawn; a panel without any says so.
        x_name: What x is.
        percent: Whether y is a share in [0, 1].
    """

    title: str
    lines: Sequence[Line]
    x_name: str = "updates"
    percent: bool = False


def read_metrics(path: str | os.PathLike[str]) -> dict[str, NDArray[np.float64]]:
    """Return every numeric column of a metrics.csv, (rows,) float64 with NaN where a row has no value.

    A run that was killed while writing leaves half a last line: it is ignored.
    """
    with Path(path).open(newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        rows = [row for row in reader if len(row) == len(names)]
    return {name: np.array([_number(row[place]) for row in rows]) for place, name in enumerate(names)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def find(columns: Columns, *patterns: str) -> str | None:
    """Return the first column that matches one of the patterns, the first pattern having the say."""
    for pattern in patterns:
        for name in columns:
            if re.search(pattern, name):
                return name
    return None


def clock(columns: Columns) -> tuple[str, str]:
    """Return the column that counts the work, and what to call it."""
    name = find(columns, *CLOCKS) or next(iter(columns), "step")
    key = next((key for key in CLOCK_NAMES if key in name), "step")
    return name, CLOCK_NAMES[key]


def line(columns: Columns, name: str | None, label: str, colour: str) -> Line | None:
    """Return a column as a line over the clock; None when there is no such column or it is empty.

    Lightning writes what is logged at different moments into different rows: the clock is filled forward.
    """
    if name is None or name not in columns:
        return None
    ticks = columns[clock(columns)[0]].copy()
    for row in range(1, len(ticks)):
        if np.isnan(ticks[row]):
            ticks[row] = ticks[row - 1]
    here = ~np.isnan(columns[name]) & ~np.isnan(ticks)
    return Line(label, ticks[here], columns[name][here], colour) if here.any() else None


def loss_panel(title: str, columns: Columns) -> Panel:
    """Return a stage's training and validation loss."""
    train = find(columns, r"^train[/_]loss", r"^loss", r"train.*(loss|nll)")
    held = find(columns, r"^val(id|idation)?[/_]loss", r"val.*(loss|nll)")
    lines = [line(columns, train, "training", "#3d8bfd"), line(columns, held, "held out", "#e3a72f")]
    return Panel(title, [found for found in lines if found], clock(columns)[1])


def align_panels(runs: Mapping[str, Columns]) -> list[Panel]:
    """Return what an alignment is judged by, all targets together: reward, true outcome, KL.

    Args:
        runs: target -> columns of that alignment's metrics.csv.
    """
    wanted: dict[str, Callable[[str], tuple[str, ...]]] = {
        "Learned reward (the proxy)": lambda target: (r"reward[/_]mean", r"(^|[/_])reward$", r"reward"),
        "Episodes that end at the target (the truth)": lambda target: (
            rf"outcome.*{target}", rf"(^|[/_]){target}$", r"success|target",
        ),
        "KL to the agent it started from": lambda target: (r"(^|[/_])kl([/_](mean|step|reference))?$", r"kl"),
    }  # fmt: skip
    panels = []
    for title, patterns in wanted.items():
        lines, x_name = [], "updates"
        for place, (target, columns) in enumerate(runs.items()):
            colour = style.OUTCOME_COLOURS.get(target, style.SPARE_COLOURS[place % len(style.SPARE_COLOURS)])
            found = line(columns, find(columns, *patterns(target)), target, colour)
            if found:
                lines.append(found)
                x_name = clock(columns)[1]
        panels.append(Panel(title, lines, x_name, percent="truth" in title))
    return panels


def curves(panels: Sequence[Panel], path: str | os.PathLike[str], theme: style.Theme = style.LIGHT) -> Path:
    """Draw panels side by side and write a PNG."""
    with style.fonts():
        fig = style.figure(3.9 * max(1, len(panels)) + 0.3, 3.0, theme)
        axes = fig.subplots(1, max(1, len(panels)), squeeze=False)[0]
        wide, high = fig.get_figwidth(), fig.get_figheight()
        fig.subplots_adjust(left=0.6 / wide, right=1 - 0.2 / wide, top=1 - 0.45 / high, bottom=0.5 / high, wspace=0.22)
        for ax, panel in zip(axes, panels, strict=False):
            _panel(ax, panel, theme)
        return style.save(fig, path)


def _panel(ax: Axes, panel: Panel, theme: style.Theme) -> None:
    style.tidy(ax, theme)
    ax.set_title(panel.title, loc="left", color=theme.text, weight="bold", fontsize=10.5)
    ax.set_xlabel(panel.x_name, color=theme.muted, fontsize=9)
    ax.xaxis.set_major_formatter(FuncFormatter(short))
    if not panel.lines:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color=theme.muted)
        ax.set_xticks([])
        ax.set_yticks([])
        return
    for curve in panel.lines:
        scale = 100 if panel.percent else 1
        many = len(curve.y) > 60
        if many:
            ax.plot(curve.x, scale * curve.y, color=curve.colour, lw=0.8, alpha=0.25)
        ax.plot(curve.x, scale * (smooth(curve.y) if many else curve.y), color=curve.colour, lw=2, label=curve.label,
                marker=None if len(curve.y) > 1 else "o")  # fmt: skip
    if panel.percent:
        ax.set_ylim(0, 103)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))
    ax.legend(frameon=False, labelcolor=theme.text, fontsize=9, loc="best")


def smooth(values: NDArray[np.float64], share: float = 0.04) -> NDArray[np.float64]:
    """Return a centred running mean over `share` of the curve, (N,) -> (N,); shorter at the ends."""
    half = max(1, int(share * len(values) / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(0, np.arange(len(values)) - half)
    high = np.minimum(len(values), np.arange(len(values)) + half + 1)
    mean: NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return mean


def short(number: float, _: object = None) -> str:
    """Return `12k`, `1.5M`: a tick of an axis."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"
