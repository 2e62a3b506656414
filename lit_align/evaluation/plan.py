"""The plan of a world, seen from above, in the form that pictures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon
from numpy.typing import NDArray

from lit_align.evaluation.style import OUTCOME_COLOURS

Outline = NDArray[np.float64]
Circle3 = tuple[float, float, float]

SEA, BEACH, LAND, LAND_EDGE, PAD = "#0b1524", "#253240", "#1a2b31", "#4a6272", "#ffd84d"
ROCK, TREE = "#33444f", "#29453f"
# By a word in a landmark's name: what the player sees it in.
TINTS = {
    "blue": "#2f5fa8",
    "white": "#93a1b0",
    "red": "#a8393d",
    "pond": "#16395c",
    "ruin": "#55483f",
    "crate": "#5a4a35",
}


@dataclass(frozen=True)
class Plan:
    """A world from above, in the world's units.

    Attributes:
        shore: (N, 2) outline of the land.
        meadow: (N, 2) outline of what is inside the beach, if anything.
        solids: (name, outline (M, 2)) of what cannot be walked through.
        sights: (name, outline (M, 2)) of what can be walked over.
        trees: (x, y, radius) each.
        pads: name -> (x, y, radius).
        spawn: (x, y, radius) where episodes begin.
    """

    shore: Outline
    meadow: Outline | None = None
    solids: Sequence[tuple[str, Outline]] = ()
    sights: Sequence[tuple[str, Outline]] = ()
    trees: Sequence[Circle3] = ()
    pads: Mapping[str, Circle3] = field(default_factory=dict)
    spawn: Circle3 | None = None

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top), a square with a margin of sea."""
        low, high = self.shore.min(axis=0), self.shore.max(axis=0)
        middle, half = (low + high) / 2, 0.53 * float((high - low).max())
        return (middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half)


def plan_of(environment: str) -> Plan | None:
    """Return the plan of a world that we know one of; None otherwise."""
    if "Jumppads" not in environment:
        return None
    from lit_align.envs.jumppads.terrain import plan

    return as_plan(plan())


def as_plan(found: Mapping[str, Any]) -> Plan:
    """Read a world's own plan, plain lists and numbers.

    Args:
        found: `outline` [[x, y], ...]; optionally `meadow` likewise, `solids`, `sights` as lists of `{name, points}`,
            `trees` as [x, y, radius], `pads` as {name: [x, y, radius]}, `spawn` as [x, y, radius].
    """
    if "outline" not in found:
        raise ValueError(f"found a plan with {sorted(found)}; expected an `outline` of the land at least")
    pads = {str(name): _circle(place) for name, place in found.get("pads", {}).items()}
    return Plan(
        _outline(found["outline"]),
        _outline(found["meadow"]) if found.get("meadow") else None,
        [(str(item["name"]), _outline(item["points"])) for item in found.get("solids", ())],
        [(str(item["name"]), _outline(item["points"])) for item in found.get("sights", ())],
        [_circle(place) for place in found.get("trees", ())],
        pads,
        _circle(found["spawn"]) if found.get("spawn") else None,
    )


def _outline(points: Any) -> Outline:
    return np.asarray(points, dtype=np.float64)[:, :2]


def _circle(place: Sequence[float]) -> Circle3:
    x, y, *radius = (float(number) for number in place)
    return (x, y, radius[0] if radius else 100.0)


def _tint(name: str, otherwise: str) -> str:
    return next((colour for word, colour in TINTS.items() if word in name), otherwise)


def draw_ground(ax: Axes, plan: Plan) -> None:
    """Draw sea, land and what stands on it; routes go on top."""
    ax.set_facecolor(SEA)
    centre = plan.shore.mean(axis=0)
    for grow, alpha in ((1.05, 0.25), (1.02, 0.45)):
        ax.add_patch(Polygon(centre + (plan.shore - centre) * grow, closed=True, fc="#15283a", ec="none", alpha=alpha))
    ax.add_patch(Polygon(plan.shore, closed=True, fc=BEACH, ec=LAND_EDGE, lw=0.9, zorder=1))
    if plan.meadow is not None:
        ax.add_patch(Polygon(plan.meadow, closed=True, fc=LAND, ec="none", zorder=1.05))
    for name, outline in plan.sights:
        ax.add_patch(Polygon(outline, closed=True, fc=_tint(name, "#24363d"), ec="#314750", lw=0.4, zorder=1.1))
    for x, y, radius in plan.trees:
        ax.add_patch(Circle((x, y), radius * 1.4, fc=TREE, ec="none", zorder=1.2))
    for name, outline in plan.solids:
        colour = _tint(name, ROCK)
        ax.add_patch(Polygon(outline, closed=True, fc=colour, ec="#ffffff", lw=0.4, alpha=0.9, zorder=1.3))
    if plan.spawn is not None:
        ax.add_patch(Circle(plan.spawn[:2], plan.spawn[2], fc="#2b3d46", ec="#47606f", lw=0.5, zorder=1.2))


def draw_marks(ax: Axes, plan: Plan, labels: bool = True, size: float = 8.0) -> None:
    """Draw pads and spawn over the routes.

    Args:
        ax: Where to draw.
        plan: What to draw.
        labels: Whether pads bear their names.
        size: Font size in points.
    """
    for name, (x, y, radius) in plan.pads.items():
        edge = OUTCOME_COLOURS.get(name, PAD)
        for grow, alpha in ((2.1, 0.10), (1.5, 0.18)):
            ax.add_patch(Circle((x, y), radius * grow, fc=PAD, ec="none", alpha=alpha, zorder=3))
        ax.add_patch(Circle((x, y), radius, fc=PAD, ec=edge, lw=1.6, zorder=4))
        if labels:
            ax.annotate(
                name, (x, y + radius * 1.5), ha="center", va="bottom", color="#f4f6fa", fontsize=size, zorder=6
            )  # fmt: skip
    if plan.spawn is not None:
        ax.plot(*plan.spawn[:2], marker="+", ms=size, mew=1.6, color="#7ef0d4", zorder=5)
        if labels:
            ax.annotate(
                "start", plan.spawn[:2], xytext=(0, -size), textcoords="offset points", ha="center", va="top",
                color="#7ef0d4", fontsize=size, zorder=6,
            )  # fmt: skip


def frame(ax: Axes, extent: tuple[float, float, float, float]) -> None:
    """Set the limits of a plan and take the axes' furniture away."""
    ax.set_xlim(extent[0], extent[1])
    ax.set_ylim(extent[2], extent[3])
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
