"""Where agents went: visits on the world's plan, one picture an agent, one scale for all."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.gridspec import GridSpecFromSubplotSpec
from numpy.typing import NDArray

from lit_align.evaluation import style
from lit_align.evaluation.plan import SEA, Plan, draw_ground, draw_marks, frame

Extent = tuple[float, float, float, float]


@dataclass
class Routes:
    """What one panel shows.

    Attributes:
        title: Its heading.
        positions: One (T+1, 2 or 3) array an episode.
        outcomes: `{outcome: episodes}`, drawn as a bar under the panel; may be empty.
    """

    title: str
    positions: Sequence[NDArray[np.float32]]
    outcomes: Mapping[str, int]


def visits(positions: Sequence[NDArray[np.float32]], extent: Extent, cells: int = 250) -> NDArray[np.float64]:
    """Return the mean number of steps an episode spends in each cell, (cells, cells), the first row at the bottom.

    Each step's move is spread over the cells that it crosses, so fast runs leave lines and not dots. What leaves the
    extent is not counted.

    Args:
        positions: One (T+1, >=2) array an episode, in the world's units.
        extent: (left, right, bottom, top) in the same units.
        cells: Cells along each side.
    """
    grid = np.zeros((cells, cells))
    if not positions:
        return grid
    size = max((extent[1] - extent[0]), (extent[3] - extent[2])) / cells
    for path in positions:
        points = np.asarray(path, dtype=np.float64)[:, :2]
        if len(points) < 2:
            continue
        moves = np.diff(points, axis=0)
        parts = np.maximum(1, np.ceil(2 * np.abs(moves).max(axis=1) / size)).astype(int)
        starts = np.repeat(points[:-1], parts, axis=0)
        # The middle of every part of every move, weighing one step a move in all.
        place = np.concatenate([(np.arange(n) + 0.5) / n for n in parts])[:, None]
        spread = starts + place * np.repeat(moves, parts, axis=0)
        weights = np.repeat(1.0 / parts, parts)
        counted, _, _ = np.histogram2d(
            spread[:, 1], spread[:, 0], bins=cells, range=((extent[2], extent[3]), (extent[0], extent[1])),
            weights=weights,
        )  # fmt: skip
        grid += counted
    return grid / len(positions)


def soften(grid: NDArray[np.float64], sigma: float = 1.0) -> NDArray[np.float64]:
    """Blur (H, W) by a Gaussian of `sigma` cells; the sum stays, but for what runs over the border."""
    if sigma <= 0:
        return grid
    reach = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        grid = np.apply_along_axis(np.convolve, axis, grid, kernel, mode="same")
    return grid


def extent_of(routes: Sequence[Routes]) -> Extent:
    """Return a square that holds all routes, with a margin."""
    points = [np.asarray(path)[:, :2] for group in routes for path in group.positions if len(path)]
    if not points:
        return (-1.0, 1.0, -1.0, 1.0)
    every = np.concatenate(points)
    low, high = every.min(axis=0), every.max(axis=0)
    middle, half = (low + high) / 2, max(1e-6, 0.55 * float((high - low).max()))
    return tuple(float(v) for v in (middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half))  # type: ignore[return-value]


def draw_routes(
    ax: Axes, routes: Routes, plan: Plan | None, extent: Extent, norm: LogNorm | None = None, labels: bool = True
) -> None:
    """Draw one agent's visits into an axes.

    Args:
        ax: Where to draw.
        routes: Whose routes.
        plan: The world's plan; an empty sea without one.
        extent: (left, right, bottom, top).
        norm: The colour scale; pass the same one to panels that are compared.
        labels: Whether pads bear their names.
    """
    if plan is None:
        ax.set_facecolor(SEA)
    else:
        draw_ground(ax, plan)
    heat = soften(visits(routes.positions, extent))
    ax.imshow(
        np.ma.masked_less_equal(heat, 1e-9), extent=extent, origin="lower", cmap=style.HEAT,
        norm=norm or scale_of([heat]), interpolation="bilinear", zorder=2,
    )  # fmt: skip
    if plan is not None:
        draw_marks(ax, plan, labels)
    frame(ax, extent)


def scale_of(grids: Sequence[NDArray[np.float64]]) -> LogNorm:
    """Return one logarithmic scale for several grids: from a single passer-by to where most time is spent."""
    seen = np.concatenate([grid[grid > 1e-9] for grid in grids] or [np.ones(1)])
    top = float(np.quantile(seen, 0.998)) if len(seen) else 1.0
    return LogNorm(vmin=max(top / 400, 1e-9), vmax=max(top, 1e-6), clip=True)


def heatmaps(
    routes: Sequence[Routes],
    path: str | os.PathLike[str],
    plan: Plan | None = None,
    theme: style.Theme = style.DARK,
    columns: int = 4,
    title: str = "",
) -> Path:
    """Draw one panel an agent, all on one scale, and write a PNG.

    Args:
        routes: The panels, in reading order.
        path: Where the PNG goes.
        plan: The world's plan from above; None for a world that has none.
        theme: Colours around the panels; the plan itself is always night.
        columns: Panels side by side.
        title: One line above them.
    """
    with style.fonts():
        columns = max(1, min(columns, len(routes)))
        rows = max(1, math.ceil(len(routes) / columns))
        fig = style.figure(3.3 * columns + 0.3, 3.95 * rows + (0.45 if title else 0.1), theme)
        extent = plan.extent if plan is not None else extent_of(routes)
        norm = scale_of([soften(visits(group.positions, extent)) for group in routes])
        top = 1 - (0.5 if title else 0.12) / fig.get_figheight()
        grid = fig.add_gridspec(rows, columns, left=0.015, right=0.985, bottom=0.02, top=top, wspace=0.05, hspace=0.06)
        for place, group in enumerate(routes):
            cell = GridSpecFromSubplotSpec(3, 1, grid[place], height_ratios=(0.30, 3.2, 0.34), hspace=0.03)
            _heading(fig.add_subplot(cell[0]), group, theme)
            draw_routes(fig.add_subplot(cell[1]), group, plan, extent, norm)
            share_bar(fig.add_subplot(cell[2]), group.outcomes, theme)
        if title:
            fig.text(
                0.02, 1 - 0.16 / fig.get_figheight(), title, color=theme.text, va="top", fontsize=12, weight="bold"
            )
        return style.save(fig, path)


def _heading(ax: Axes, group: Routes, theme: style.Theme) -> None:
    ax.axis("off")
    ax.text(0, 0.2, group.title, transform=ax.transAxes, color=theme.text, weight="bold", va="bottom")
    count = f"{len(group.positions)} episodes"
    ax.text(1, 0.2, count, transform=ax.transAxes, color=theme.muted, ha="right", va="bottom", fontsize=8)


def share_bar(ax: Axes, outcomes: Mapping[str, int], theme: style.Theme, size: float = 8.0) -> None:
    """Draw how episodes ended as one bar of shares, the large ones with their percentage."""
    ax.axis("off")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    total, left = sum(outcomes.values()), 0.0
    for name, count in outcomes.items():
        share = count / max(1, total)
        if not share:
            continue
        ax.barh(
            0.62, share, left=left, height=0.5, color=style.outcome_colour(name, list(outcomes)), ec=theme.page, lw=1
        )
        if share >= 0.09:
            ax.text(left + share / 2, 0.6, f"{100 * share:.0f}", color="white", ha="center", va="center",
                    fontsize=size, weight="bold")  # fmt: skip
        if share >= 0.14:
            ax.text(left + share / 2, 0.28, name, color=theme.muted, ha="center", va="top", fontsize=size - 0.5)
        left += share
