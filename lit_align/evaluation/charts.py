"""Charts of the results: how agents ended beside the paper's, and what the reward models know."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lit_align.evaluation import paper, style
from lit_align.evaluation.intervals import wilson
from lit_align.evaluation.results import AgentResult

START_LOOKS = {"agent": ("started from the agent", "#3d8bfd", "o"), "random": ("started from nothing", "#e5484d", "s")}


def success_bars(
    agents: Mapping[str, AgentResult],
    path: str | os.PathLike[str],
    theme: style.Theme = style.LIGHT,
    columns: int = 4,
    reference: Mapping[str, Mapping[str, float]] | None = paper.SUCCESS,
) -> Path:
    """Draw how the episodes of each agent ended, with Wilson 95 % whiskers, beside the paper's figures.

    Args:
        agents: What to draw, one panel each, in this order.
        path: Where the PNG goes.
        theme: Light or dark.
        columns: Panels side by side.
        reference: Percent by agent and outcome, drawn as outlines; None for worlds that have no such thing.
    """
    with style.fonts():
        columns = max(1, min(columns, len(agents)))
        rows = max(1, math.ceil(len(agents) / columns))
        fig = style.figure(3.1 * columns + 0.5, 2.75 * rows + 0.55, theme)
        high = fig.get_figheight()
        axes = fig.subplots(rows, columns, squeeze=False, sharey=True)
        fig.subplots_adjust(
            left=0.5 / fig.get_figwidth(), right=1 - 0.12 / fig.get_figwidth(), top=1 - 0.72 / high, bottom=0.34 / high,
            wspace=0.10, hspace=0.36,
        )  # fmt: skip
        flat = [ax for row in axes for ax in row]
        for ax, (name, entry) in zip(flat, agents.items(), strict=False):
            _outcome_panel(ax, name, entry, (reference or {}).get(name), theme)
        for ax in flat[len(agents) :]:
            ax.axis("off")
        counts = {entry["episodes"] for entry in agents.values()}
        _bars_legend(fig, theme, any(name in (reference or {}) for name in agents), counts)
        return style.save(fig, path)


def _outcome_panel(
    ax: Axes, name: str, entry: AgentResult, theirs: Mapping[str, float] | None, theme: style.Theme
) -> None:
    style.tidy(ax, theme)
    outcomes = list(entry["outcomes"])
    width = 0.38 if theirs else 0.6
    for place, outcome in enumerate(outcomes):
        colour = style.outcome_colour(outcome, outcomes)
        rate = wilson(entry["outcomes"][outcome], entry["episodes"])
        value = 100 * rate.value
        x = place - (0.21 if theirs else 0)
        ax.bar(x, value, width, color=colour)
        ax.errorbar(
            x, value, yerr=[[value - 100 * rate.low], [100 * rate.high - value]], color=theme.text, lw=1.1, capsize=2.5
        )
        ax.annotate(
            f"{value:.0f}", (x, 100 * rate.high), xytext=(0, 2), textcoords="offset points", ha="center", va="bottom",
            color=theme.text, fontsize=9, weight="bold",
        )  # fmt: skip
        if theirs and outcome in theirs:
            x = place + 0.21
            ax.bar(x, theirs[outcome], width, facecolor=theme.panel, edgecolor=theme.muted, lw=0.9)
            ax.annotate(
                f"{theirs[outcome]:.0f}", (x, theirs[outcome]), xytext=(0, 2), textcoords="offset points", ha="center",
                va="bottom", color=theme.muted, fontsize=8,
            )  # fmt: skip
    ax.set_xticks(range(len(outcomes)), outcomes)
    ax.tick_params(axis="x", colors=theme.text)
    ax.set_ylim(0, 112)
    ax.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    ax.set_title(style.agent_title(name), loc="left", color=theme.text, weight="bold", pad=6)


def _bars_legend(fig: Any, theme: style.Theme, with_paper: bool, counts: set[int]) -> None:
    wide, high = fig.get_figwidth(), fig.get_figheight()
    many = f"{min(counts)}" if len(counts) == 1 else f"{min(counts, default=0)}-{max(counts, default=0)}"
    line = f"Solid: ours, {many} episodes each, 95 % intervals." + ("   Outlined: the paper's." if with_paper else "")
    fig.text(0.5 / wide, 1 - 0.1 / high, "How episodes end", color=theme.text, weight="bold", fontsize=12, va="top")
    fig.text(1 - 0.12 / wide, 1 - 0.14 / high, line, color=theme.muted, fontsize=8.5, va="top", ha="right")


def reward_accuracy(
    reward_models: Mapping[str, Any],
    path: str | os.PathLike[str],
    theme: style.Theme = style.LIGHT,
    with_paper: bool = True,
) -> Path:
    """Draw reward-model accuracy against the number of comparisons, for each target and start.

    Args:
        reward_models: `{target: {start: {number of comparisons: {"accuracy", "pairs"}}}}`.
        path: Where the PNG goes.
        theme: Light or dark.
        with_paper: Whether the paper's mean and range stand behind ours.
    """
    targets = sorted(reward_models)
    sizes = {int(n) for starts in reward_models.values() for found in starts.values() for n in found}
    if with_paper:
        sizes |= set(paper.REWARD_ACCURACY["agent"])
    with style.fonts():
        fig = style.figure(4.9 * max(1, len(targets)) + 0.4, 3.7, theme)
        axes = fig.subplots(1, max(1, len(targets)), squeeze=False, sharey=True)[0]
        wide, high = fig.get_figwidth(), fig.get_figheight()
        fig.subplots_adjust(
            left=0.62 / wide, right=1 - 0.15 / wide, top=1 - 0.75 / high, bottom=0.55 / high, wspace=0.08
        )
        for ax, target in zip(axes, targets, strict=False):
            _accuracy_panel(ax, reward_models[target], sorted(sizes), theme, with_paper)
            ax.set_title(f"Target: {target}", loc="left", color=theme.text, weight="bold", pad=6)
        fig.text(
            0.62 / wide, 1 - 0.1 / high, "Which of two unseen episodes is better?", color=theme.text, weight="bold",
            fontsize=12, va="top",
        )  # fmt: skip
        if with_paper:
            note = "Faint: the paper's mean and range."
            fig.text(0.62 / wide, 1 - 0.32 / high, note, color=theme.muted, fontsize=8.5, va="top")
        return style.save(fig, path)


def _accuracy_panel(
    ax: Axes, starts: Mapping[str, Any], sizes: Sequence[int], theme: style.Theme, with_paper: bool
) -> None:
    style.tidy(ax, theme)
    ax.set_xscale("log")
    ends: list[float] = []
    for start, (label, colour, marker) in START_LOOKS.items():
        if with_paper:
            curve = paper.REWARD_ACCURACY[start]
            ax.plot(list(curve), [mean for mean, _, _ in curve.values()], color=colour, alpha=0.4, lw=1.2, zorder=1)
            low, high = [row[1] for row in curve.values()], [row[2] for row in curve.values()]
            ax.fill_between(list(curve), low, high, color=colour, alpha=0.10, lw=0, zorder=0)
        found = sorted((int(n), entry) for n, entry in starts.get(start, {}).items())
        if not found:
            continue
        xs = [n for n, _ in found]
        rates = [wilson(round(e["accuracy"] * e["pairs"]), e["pairs"]) if e.get("pairs") else None for _, e in found]
        values = [100 * entry["accuracy"] for _, entry in found]
        below = [value - 100 * rate.low if rate else 0 for value, rate in zip(values, rates, strict=True)]
        above = [100 * rate.high - value if rate else 0 for value, rate in zip(values, rates, strict=True)]
        bars = [[max(0.0, v) for v in below], [max(0.0, v) for v in above]]
        ax.errorbar(
            xs, values, yerr=bars, color=colour, marker=marker, ms=6, lw=2, elinewidth=1.1, capsize=2.5, zorder=3
        )
        # To the right of the last point while there is room, above it otherwise.
        late = math.log(xs[-1] / min(sizes)) > 0.55 * math.log(max(sizes) / min(sizes)) if len(sizes) > 1 else False
        # Curves that end together are told one below the other.
        down = 13 * sum(abs(values[-1] - end) < 8 for end in ends)
        ends.append(values[-1])
        ax.annotate(
            f"{label}, {values[-1]:.0f} %", (xs[-1], values[-1]), xytext=(-2, -11 - down) if late else (9, -1 - down),
            textcoords="offset points", color=colour, fontsize=9, weight="bold", va="center",
            ha="right" if late else "left", path_effects=[withStroke(linewidth=3, foreground=theme.page)], zorder=5,
        )  # fmt: skip
    ax.axhline(50, color=theme.muted, lw=0.9, ls=(0, (2, 3)), zorder=1)
    ax.annotate(
        "a guess", (1, 50), xycoords=("axes fraction", "data"), xytext=(-2, -3), textcoords="offset points", ha="right",
        va="top", color=theme.muted, fontsize=8,
    )  # fmt: skip
    _axis_of_sizes(ax, sizes)
    ax.set_ylim(0, 104)
    ax.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    ax.set_xlabel("comparisons it learned from", color=theme.muted, fontsize=9)


def _axis_of_sizes(ax: Axes, sizes: Sequence[int]) -> None:
    low, high = (min(sizes), max(sizes)) if sizes else (10, 1000)
    ax.set_xlim(low / 1.6, high * 1.6)
    shown: list[float] = []
    for size in sizes:
        # Neighbours such as 50 and 100 would overprint each other on a long axis.
        if not shown or size / shown[-1] >= (high / low) ** 0.09:
            shown.append(float(size))
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1000:g}k" if n >= 1000 else f"{n:g}"))
