"""Ways across the island for the scripted players: around what stands there, to any point.

For each goal the shortest ways from everywhere are found once, on a grid. A player then asks, with one look-up, which
point it should walk towards from where it stands: the farthest one on its way that it can reach in a straight line.
"""

from __future__ import annotations

import heapq
import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lit_align.envs.jumppads.terrain import SHORE, SOLIDS, TREE_RADIUS, TREES, Point

CELL = 50.0
SIDE = 2 * math.ceil(SHORE / CELL)
CLEARANCE = 45.0  # from walls: the player's half width and room to steer
BEACH = 60.0  # from the water

_NEIGHBOURS = [(dx, dy, math.hypot(dx, dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]


def _cell(x: float, y: float) -> tuple[int, int]:
    last = SIDE - 1
    i, j = int((x + SIDE * CELL / 2) // CELL), int((y + SIDE * CELL / 2) // CELL)
    return min(max(i, 0), last), min(max(j, 0), last)


def _centres() -> NDArray[np.float64]:
    return (np.arange(SIDE) + 0.5) * CELL - SIDE * CELL / 2


@cache
def walkable() -> NDArray[np.bool_]:
    """Where a player can stand, `(SIDE, SIDE)`, indexed `[x, y]`."""
    x, y = np.meshgrid(_centres(), _centres(), indexing="ij")
    free = np.hypot(x, y) < SHORE - BEACH
    discs = [(*solid.centre, solid.radius) for solid in SOLIDS] + [(*tree, TREE_RADIUS) for tree in TREES]
    for cx, cy, radius in discs:
        free &= np.hypot(x - cx, y - cy) > radius + CLEARANCE
    return np.asarray(free)


def _next_cells(goal: tuple[int, int]) -> NDArray[np.int64]:
    """For each cell, the flat index of the next one on the shortest way to the goal."""
    free = walkable().copy()
    free[goal] = True
    following = np.arange(SIDE * SIDE)
    cost = np.full(SIDE * SIDE, np.inf)
    start = goal[0] * SIDE + goal[1]
    cost[start] = 0.0
    queue = [(0.0, start)]
    while queue:
        so_far, flat = heapq.heappop(queue)
        if so_far > cost[flat]:
            continue
        i, j = divmod(flat, SIDE)
        for dx, dy, length in _NEIGHBOURS:
            a, b = i + dx, j + dy
            if not (0 <= a < SIDE and 0 <= b < SIDE):
                continue
            # Cells inside walls stay passable at a price, so that whoever was pushed into one finds out again.
            price = so_far + (length if free[a, b] else 20 * length)
            if price < cost[a * SIDE + b]:
                cost[a * SIDE + b] = price
                following[a * SIDE + b] = flat
                heapq.heappush(queue, (price, a * SIDE + b))
    return following


def _visible(from_x: NDArray[np.float64], from_y: NDArray[np.float64], to: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the straight line from each cell to cell `to` is free of walls."""
    free, centres = walkable(), _centres()
    to_x, to_y = centres[to // SIDE], centres[to % SIDE]
    seen = np.ones(len(to), bool)
    for part in np.linspace(0.0, 0.97, 30):
        x, y = from_x + part * (to_x - from_x), from_y + part * (to_y - from_y)
        i = ((x + SIDE * CELL / 2) // CELL).astype(int)
        j = ((y + SIDE * CELL / 2) // CELL).astype(int)
        seen &= free[i, j]
    return seen


@cache
def way_to(goal: Point) -> list[Point]:
    """For each cell of the grid, flat, the point to walk towards; found once for each goal.

    Args:
        goal: `(x, y)`, map units.
    """
    goal_cell = _cell(*goal)
    end = goal_cell[0] * SIDE + goal_cell[1]
    following = _next_cells(goal_cell)
    centres = _centres()
    x, y = np.repeat(centres, SIDE), np.tile(centres, SIDE)
    aim = np.full(SIDE * SIDE, end)
    # Most of the island sees the goal; only the rest has to look along its way.
    rest = np.flatnonzero(~_visible(x, y, aim))
    stride = following[following[following]]
    candidate = stride[rest]
    aim[rest] = candidate  # a cell or two ahead is always safe
    while len(rest) and (candidate != end).any():
        candidate = stride[candidate]
        aim[rest] = np.where(_visible(x[rest], y[rest], candidate), candidate, aim[rest])
    points = zip(centres[aim // SIDE].tolist(), centres[aim % SIDE].tolist(), strict=True)
    return [goal if flat == end else point for flat, point in zip(aim.tolist(), points, strict=True)]


def next_point(x: float, y: float, goal: Point) -> Point:
    """The point to walk towards on the way from `(x, y)` to `goal`."""
    i, j = _cell(x, y)
    return way_to(goal)[i * SIDE + j]
