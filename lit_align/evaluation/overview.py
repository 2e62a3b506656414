"""The whole procedure in one picture, drawn from what a run really did (after the paper's Figure 1)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, PathPatch
from matplotlib.path import Path as Bezier

from lit_align.evaluation import style
from lit_align.evaluation.charts import START_LOOKS
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.heatmap import Extent, Routes, draw_routes, extent_of, scale_of, share_bar, soften, visits
from lit_align.evaluation.plan import SEA, Plan, draw_ground, draw_marks, frame

CARD, GAP, FORK, HEAD, FOOT, TOP = 2.05, 0.34, 0.42, 0.52, 0.38, 0.30
SHARED = (
    ("pretrain", "1  Pre-train", "imitate all recorded play"),
    ("finetune", "2  Fine-tune", "imitate direct runs"),
)
LANE = (
    ("compare", "3  Compare", "which episode is better?"),
    ("reward", "4  Reward model", "learn to score episodes"),
    ("rest", "5  Preference-tune", "imitate its best episodes"),
    ("align", "6  Align", "online RL on that score"),
)


@dataclass
class Story:
    """What the picture is drawn from; what is missing is shown as not run.

    Attributes:
        episodes: agent's name -> its evaluation's episodes.
        outcomes: agent's name -> `{outcome: episodes}`.
        reward_models: as in `results.json`.
        targets: What agents are aligned to, one lane each.
        plan: The world from above.
    """

    episodes: Mapping[str, Episodes]
    outcomes: Mapping[str, Mapping[str, int]]
    reward_models: Mapping[str, Any] = field(default_factory=dict)
    targets: Sequence[str] = ("left", "right")
    plan: Plan | None = None

    def routes(self, name: str) -> Routes:
        """Return an agent's routes, without a heading."""
        return Routes("", self.episodes[name].positions, {})

    @property
    def extent(self) -> Extent:
        """(left, right, bottom, top) of every map in the picture."""
        return self.plan.extent if self.plan else extent_of([self.routes(name) for name in self.episodes])

    def scale(self) -> LogNorm:
        """Return one colour scale for every map in the picture."""
        return scale_of([soften(visits(played.positions, self.extent)) for played in self.episodes.values()])


def overview(story: Story, path: str | os.PathLike[str], theme: style.Theme = style.DARK) -> Path:
    """Draw the procedure from left to right, a lane a target, and write a PNG."""
    with style.fonts():
        lanes = max(1, len(story.targets))
        lane = HEAD + CARD + FOOT
        wide = 0.25 + (len(SHARED) + len(LANE)) * (CARD + GAP) - GAP + FORK + 0.25
        high = TOP + lanes * lane + (lanes - 1) * 0.22 + 0.02
        fig = style.figure(wide, high, theme, dpi=150)
        norm = story.scale() if story.episodes else LogNorm(1e-3, 1)
        tops = [high - TOP - row * (lane + 0.22) for row in range(lanes)]
        middle = (tops[0] + tops[-1]) / 2
        for column, (name, title, note) in enumerate(SHARED):
            ax = _card(fig, column, middle, title, note, theme)
            _map_card(fig, ax, story, name, norm, theme)
            if column:
                _arrow(fig, column, middle, middle, theme)
        for row, target in enumerate(story.targets):
            for place, (kind, title, note) in enumerate(LANE):
                column = len(SHARED) + place
                ax = _card(fig, column, tops[row], f"{title}" if kind != "align" else f"{title} {target}", note, theme)
                _arrow(fig, column, middle if place == 0 else tops[row], tops[row], theme)
                if kind == "compare":
                    _compare_card(ax, story, target, theme)
                elif kind == "reward":
                    _reward_card(ax, story.reward_models.get(target, {}), theme)
                else:
                    _map_card(fig, ax, story, f"{kind}_{target}", norm, theme)
        return style.save(fig, path)


def _left(column: int) -> float:
    """Return a column's left edge in inches; the fork before the lanes is wider than the other gaps."""
    return 0.25 + column * (CARD + GAP) + (FORK if column >= len(SHARED) else 0)


def _box(fig: Figure, column: int, top: float, down: float, height: float) -> tuple[float, float, float, float]:
    """Return the figure's share of a box in a card: `down` inches under the card's top."""
    wide, high = fig.get_figwidth(), fig.get_figheight()
    return (_left(column) / wide, (top - down - height) / high, CARD / wide, height / high)


def _card(fig: Figure, column: int, top: float, title: str, note: str, theme: style.Theme) -> Axes:
    x, y, _, _ = _box(fig, column, top, 0, 0)
    high = fig.get_figheight()
    fig.text(x, y - 0.06 / high, title, color=theme.text, weight="bold", fontsize=12.5, va="center")
    fig.text(x, y - 0.29 / high, note, color=theme.muted, fontsize=9.5, va="center")
    ax = fig.add_axes(_box(fig, column, top, HEAD - 0.08, CARD))
    ax.set_facecolor(theme.panel)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(theme.grid)
    return ax


def _arrow(fig: Figure, column: int, from_top: float, to_top: float, theme: style.Theme) -> None:
    """Draw an arrow into a card from the one to its left."""
    wide, high = fig.get_figwidth(), fig.get_figheight()
    centre = HEAD - 0.08 + CARD / 2
    start, end = (_left(column - 1) + CARD + 0.06) / wide, (_left(column) - 0.05) / wide
    above, below, half = (from_top - centre) / high, (to_top - centre) / high, (start + end) / 2
    # A curve that leaves and arrives level; a straight line when both cards are in one lane.
    bend = Bezier(
        [(start, above), (half, above), (half, below), (end - 0.08 / wide, below)],
        [Bezier.MOVETO, Bezier.CURVE4, Bezier.CURVE4, Bezier.CURVE4],
    )
    fig.add_artist(PathPatch(bend, transform=fig.transFigure, fill=False, ec=theme.muted, lw=1.6))
    tip = {"arrowstyle": "-|>", "mutation_scale": 13, "color": theme.muted, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    fig.add_artist(
        FancyArrowPatch((end - 0.09 / wide, below), (end, below), transform=fig.transFigure, **tip)  # type: ignore[arg-type]
    )


def _map_card(fig: Figure, ax: Axes, story: Story, name: str, norm: LogNorm, theme: style.Theme) -> None:
    if name in story.episodes:
        draw_routes(ax, story.routes(name), story.plan, story.extent, norm, labels=False)
    else:
        _absent(ax, theme)
    if name in story.outcomes:
        place = ax.get_position()
        high = fig.get_figheight()
        bar = fig.add_axes((place.x0, place.y0 - 0.37 / high, place.width, 0.36 / high))
        share_bar(bar, story.outcomes[name], theme, size=9)


def _absent(ax: Axes, theme: style.Theme) -> None:
    ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center", color=theme.muted)


def _compare_card(ax: Axes, story: Story, target: str, theme: style.Theme) -> None:
    """Draw the fine-tuned agent's routes, and two of them that one would choose between."""
    played = story.episodes.get("finetune")
    if played is None or not len(played):
        _absent(ax, theme)
        return
    if story.plan is None:
        ax.set_facecolor(SEA)
    else:
        draw_ground(ax, story.plan)
    for path, outcome in list(zip(played.positions, played.outcomes, strict=True))[:60]:
        ax.plot(path[:, 0], path[:, 1], color=style.outcome_colour(outcome), lw=0.6, alpha=0.22, zorder=2)
    good = next((i for i, outcome in enumerate(played.outcomes) if outcome == target), None)
    others = [i for i, outcome in enumerate(played.outcomes) if outcome != target]
    # The other one as far away as can be, so that the two are told apart at a glance.
    bad = max(others, key=lambda i: _apart(played, good, i)) if others else None
    for index, sign, word in ((good, "+", "chosen"), (bad, "-", "rejected")):
        if index is None:
            continue
        colour = style.outcome_colour(target) if sign == "+" else "#c3cad6"
        path = played.positions[index]
        ax.plot(path[:, 0], path[:, 1], color=colour, lw=2.4, ls="-" if sign == "+" else (0, (3, 1.5)), zorder=5)
        ax.text(
            0.04 if sign == "+" else 0.96, 0.03, word, transform=ax.transAxes, color=colour, fontsize=9.5,
            weight="bold", ha="left" if sign == "+" else "right", zorder=6,
        )  # fmt: skip
    if story.plan is not None:
        draw_marks(ax, story.plan, labels=False)
    frame(ax, story.extent)


def _apart(played: Episodes, good: int | None, other: int) -> float:
    if good is None:
        return 0.0
    return float(np.linalg.norm(played.positions[good][-1, :2] - played.positions[other][-1, :2]))


def _reward_card(ax: Axes, starts: Mapping[str, Any], theme: style.Theme) -> None:
    """Draw the accuracy with the fewest comparisons, started from the agent and from nothing."""
    sizes = sorted({int(n) for found in starts.values() for n in found})
    if not sizes:
        _absent(ax, theme)
        return
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.text(0.5, 0.92, f"{sizes[0]} comparisons", ha="center", va="top", color=theme.muted, fontsize=9.5)
    for place, (start, (label, colour, _)) in enumerate(START_LOOKS.items()):
        entry = starts.get(start, {}).get(str(sizes[0]))
        y = 0.55 - 0.32 * place
        ax.text(0.08, y + 0.1, label, color=theme.text, fontsize=9, va="bottom")
        ax.barh(y, 0.56, left=0.08, height=0.13, color=theme.grid)
        if entry:
            ax.barh(y, 0.56 * entry["accuracy"], left=0.08, height=0.13, color=colour)
            value = f"{100 * entry['accuracy']:.0f} %"
            ax.text(0.96, y, value, color=theme.text, weight="bold", fontsize=12, va="center", ha="right")
        else:
            ax.text(0.96, y, "not run", color=theme.muted, fontsize=9, va="center", ha="right")
        ax.plot([0.08 + 0.28] * 2, [y - 0.09, y + 0.09], color=theme.text, lw=1, ls=(0, (2, 1.5)))
    ax.text(0.08 + 0.28, 0.12, "guess", color=theme.muted, fontsize=7.5, ha="center", va="top")
