"""The chart of over-optimisation: proxy, truth and KL under each other, over the steps that were played."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lit_align.evaluation import style
from lit_align.evaluation.curves import short, smooth
from lit_align.evaluation.over_optimisation import Series, Watch, peak_and_last


def draw(
    watch: Watch, path: str | os.PathLike[str], theme: style.Theme = style.LIGHT, title: str = "Over-optimisation"
) -> Path:
    """Draws proxy, truth and KL under each other, over env steps, and writes a PNG.

    Args:
        watch: What to draw; what it does not know has no panel.
        path: Where the PNG goes.
        theme: Light or dark.
        title: What stands above.
    """
    # Beside outcomes a return that is the proxy is not shown twice.
    twice = watch.returns is not None and watch.outcomes and np.array_equal(watch.returns, watch.proxy)
    there = (True, watch.outcomes, watch.returns is not None and not twice, watch.kl is not None)
    panels = [panel for panel, is_there in zip((_proxy, _outcomes, _returns, _kl), there, strict=True) if is_there]
    with style.fonts():
        fig = style.figure(7.6, 0.95 + 1.75 * len(panels), theme)
        axes = [row[0] for row in fig.subplots(len(panels), 1, squeeze=False, sharex=True)]
        wide, high = fig.get_figwidth(), fig.get_figheight()
        fig.subplots_adjust(
            left=0.62 / wide, right=1 - 0.95 / wide, top=1 - 0.72 / high, bottom=0.5 / high, hspace=0.34
        )
        ends = peak_and_last(watch)
        for ax, panel in zip(axes, panels, strict=True):
            style.tidy(ax, theme)
            panel(ax, watch, theme)
            if ends is not None and ends[0].env_steps < ends[1].env_steps:
                ax.axvline(ends[0].env_steps, color=theme.muted, lw=1, ls=(0, (2, 2)), zorder=1)
        axes[-1].set_xlabel("steps in the world", color=theme.muted, fontsize=9)
        axes[-1].xaxis.set_major_formatter(FuncFormatter(short))
        fig.text(0.1 / wide, 1 - 0.12 / high, title, color=theme.text, weight="bold", fontsize=12, va="top")
        if ends is not None and ends[0].env_steps < ends[1].env_steps:
            note = "Dotted: where the truth was highest."
            fig.text(1 - 0.1 / wide, 1 - 0.16 / high, note, color=theme.muted, fontsize=8.5, va="top", ha="right")
        return style.save(fig, path)


def _proxy(ax: Axes, watch: Watch, theme: style.Theme) -> None:
    _title(ax, "Reward that the agent is told (the proxy)", theme)
    _line(ax, watch.env_steps, watch.proxy, theme.text)


def _returns(ax: Axes, watch: Watch, theme: style.Theme) -> None:
    assert watch.returns is not None
    _title(ax, "The world's own return" + _of_truth(watch, "return"), theme)
    _line(ax, watch.env_steps, watch.returns, style.SPARE_COLOURS[3])


def _of_truth(watch: Watch, name: str | None) -> str:
    return " (the truth)" if watch.truth is None or watch.truth[0] == name else ""


def _outcomes(ax: Axes, watch: Watch, theme: style.Theme) -> None:
    _title(ax, "How its episodes really end" + _of_truth(watch, watch.target), theme)
    place = -math.inf
    for name in sorted(watch.outcomes, key=lambda name: float(watch.outcomes[name][-1])):
        colour = style.outcome_colour(name, sorted(watch.outcomes))
        values = 100 * watch.outcomes[name]
        wanted = watch.target in (name, None)
        _line(ax, watch.env_steps, values, colour, 2.2 if wanted else 1.2)
        # Names beside the ends of their lines, moved apart where these lie together.
        place = max(place + 13, float(values[-1]))
        ax.annotate(
            name, (watch.env_steps[-1], place), xytext=(6, 0), textcoords="offset points", color=colour, va="center",
            fontsize=9, weight="bold" if wanted else "normal", annotation_clip=False,
        )  # fmt: skip
    ax.set_ylim(0, 103)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g} %"))


def _kl(ax: Axes, watch: Watch, theme: style.Theme) -> None:
    assert watch.kl is not None
    estimate = ", an estimate" if "conditional" in watch.kl_name else ""
    _title(ax, f"KL to the reference, nats a step{estimate}", theme)
    _line(ax, watch.env_steps, watch.kl, style.SPARE_COLOURS[4])
    ax.set_ylim(bottom=0)


def _title(ax: Axes, text: str, theme: style.Theme) -> None:
    ax.set_title(text, loc="left", color=theme.text, weight="bold", fontsize=9.5, pad=4)


def _line(ax: Axes, x: Series, y: Series, colour: str, width: float = 2.0) -> None:
    """A curve; where it is long, the values faintly and their running mean."""
    many = len(y) > 60 and bool((y == y).all())
    if many:
        ax.plot(x, y, color=colour, lw=0.8, alpha=0.25)
    ax.plot(x, smooth(y) if many else y, color=colour, lw=width, marker=None if len(y) > 1 else "o", clip_on=False)
