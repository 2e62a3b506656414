"""How an episode ended, in one word."""

from __future__ import annotations

import math

from lit_align.envs.jumppads.terrain import PADS, SPAWN

REASONS = ("reached", "fell", "shadow_boxing", "stuck", "strayed", "timeout")

BOXING_SHARE = 0.4  # of all steps spent punching the air
STUCK_STEPS, STUCK_WALK = 30, 250.0  # a straight walk of 30 steps is 1500 units
CORRIDOR = 350.0  # how far from the straight lines to the pads is still on the way


def off_course(x: float, y: float) -> float:
    """Distance from the nearest straight line between the yard and a pad, in map units."""
    return min(_distance(x, y, *SPAWN, *pad) for pad in PADS.values())


def _distance(x: float, y: float, ax: float, ay: float, bx: float, by: float) -> float:
    dx, dy = bx - ax, by - ay
    along = ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)
    along = min(1.0, max(0.0, along))
    return math.hypot(x - ax - along * dx, y - ay - along * dy)


def reason_for_none(path: list[tuple[float, float]], punches: int, fell: bool) -> str:
    """Why an episode did not reach a pad: one of `REASONS` but the first.

    Args:
        path: `(x, y)` at the start and after each step, in map units.
        punches: Number of steps with the attack button down.
        fell: Whether it ended in the water.
    """
    if fell:
        return "fell"
    if punches >= BOXING_SHARE * max(1, len(path) - 1):
        return "shadow_boxing"
    tail = path[-STUCK_STEPS - 1 :]
    if len(tail) > STUCK_STEPS and max(math.dist(tail[0], p) for p in tail) < STUCK_WALK:
        return "stuck"
    return "strayed" if off_course(*path[-1]) > CORRIDOR else "timeout"
