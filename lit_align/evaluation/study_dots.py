"""Shares as dots with their intervals: the study's plainest figure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lit_align.evaluation import style
from lit_align.evaluation.study_tables import Share

Row = tuple[str, Share | None, str]
"""Label, share, colour."""


def some(rows: Sequence[Row]) -> bool:
    """Whether anything of it was measured."""
    return any(share is not None for _, share, _ in rows)


def dots(groups: Mapping[str, Sequence[Row]], path: str | os.PathLike[str]) -> Path:
    """Draws shares as dots with Wilson 95 % intervals, a row each, groups side by side; ticks are the seeds."""
    theme = style.LIGHT
    with style.fonts():
        rows = max(len(group) for group in groups.values())
        fig = style.figure(0.2 + 5.6 * len(groups), 0.75 + 0.36 * rows, theme)
        axes = fig.subplots(1, len(groups), squeeze=False)[0]
        wide, high = fig.get_figwidth(), fig.get_figheight()
        fig.subplots_adjust(left=2.1 / wide, right=1 - 0.55 / wide, top=1 - 0.42 / high, bottom=0.3 / high, wspace=0.8)
        for ax, (title, group) in zip(axes, groups.items(), strict=True):
            style.tidy(ax, theme, grid="x")
            _dots(ax, group, theme)
            ax.set_ylim(rows - 0.4, -0.6)  # as many for all, so that rows are as far apart
            ax.set_title(title, loc="left", color=theme.text, weight="bold", fontsize=10.5)
        return style.save(fig, path)


def _dots(ax: Axes, rows: Sequence[Row], theme: style.Theme) -> None:
    for place, (_, share, colour) in enumerate(rows):
        if share is None or not share.total:
            text = "not measured yet" if share is None else "none"
            ax.text(1, place, text, color=theme.muted, fontsize=8.5, va="center")
            continue
        rate = share.interval
        value = 100 * rate.value
        bars = [[value - 100 * rate.low], [100 * rate.high - value]]
        ax.errorbar(value, place, xerr=bars, color=colour, marker="o", ms=6, elinewidth=1.6, capsize=2.5, zorder=3)
        if len(share.seeds) > 1:
            for seed in share.seeds:
                ax.plot(100 * seed, place, "|", color=colour, ms=9, alpha=0.6)
        ax.annotate(f"{value:.1f}", (101, place), color=theme.text, fontsize=9, va="center", annotation_clip=False)
    ax.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    ax.tick_params(axis="y", colors=theme.text)
    ax.set_xlim(0, 100)
    percent(ax.xaxis)


def percent(axis: Any) -> None:
    """Has an axis go from 0 to 100 %."""
    axis.set_ticks([0, 25, 50, 75, 100])
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %" if value == 100 else f"{value:g}"))
