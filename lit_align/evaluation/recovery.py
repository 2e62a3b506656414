"""Recovery after a miss: how often an agent that has gone past its pad turns back and reaches it.

The paper tells its pre-trained agent from the one without pre-training by this (arXiv 2406.04208, appendix E.1): the
one turns round, the other gets stuck.

A pad is passed at the first step at which the player is beyond it, as seen from the middle of the yard:

- farther along the straight line from there through the pad's centre than the pad's far edge, and
- no farther to the side of that line than half the distance between this pad and the nearest other one (farther out it
  is another pad's neighbourhood, or nobody's).

Whoever steps on a pad is launched, and the episode is over: so a pad that was passed was missed. Without a wanted pad,
an episode is missed when any pad was passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_align.errors import UserError, did_you_mean
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.intervals import wilson


@dataclass(frozen=True)
class Gate:
    """Where one is past a pad.

    Attributes:
        start: `(x, y)` that it is seen from.
        ahead: Unit vector from there to the pad.
        far: Distance from there to the pad's far edge.
        half: How far to the side still counts.
    """

    start: tuple[float, float]
    ahead: tuple[float, float]
    far: float
    half: float

    def passed(self, path: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each position of a path `(T, 2 or 3)` is beyond the pad `(T,)`."""
        away = np.asarray(path, np.float64)[:, :2] - self.start
        along = away @ np.array(self.ahead)
        aside = np.abs(away @ np.array((-self.ahead[1], self.ahead[0])))
        return np.asarray((along > self.far) & (aside <= self.half))


def gates(pads: Mapping[str, Sequence[float]], start: Sequence[float]) -> dict[str, Gate]:
    """The gate of each pad.

    Args:
        pads: name -> x, y, radius.
        start: x, y of the middle of the yard; more numbers are not used.
    """
    made = {}
    for name, (x, y, radius) in pads.items():
        dx, dy = x - start[0], y - start[1]
        away = math.hypot(dx, dy)
        others = [math.dist((x, y), other[:2]) for pad, other in pads.items() if pad != name]
        half = min(others, default=math.inf) / 2
        made[name] = Gate((start[0], start[1]), (dx / away, dy / away), away + radius, half)
    return made


@cache
def gates_of(environment: str) -> dict[str, Gate]:
    """The gates of a world whose pads we know; none of any other."""
    if "Jumppads" not in environment:
        return {}
    from lit_align.envs.jumppads.terrain import plan

    island: dict[str, Any] = plan()
    return gates(island["pads"], island["spawn"])


def check_target(environment: str, target: str | None) -> None:
    """Raises a UserError if there is no such pad."""
    if target is None:
        return
    known = gates_of(environment)
    if not known:
        raise UserError(f"target is {target!r}, but the pads of {environment} are not known: leave it out")
    if target not in known:
        raise UserError(f"target is {target!r}; expected one of {', '.join(known)}{did_you_mean(target, known)}")


def missed_at(path: NDArray[Any], outcome: str, known: Mapping[str, Gate], target: str | None = None) -> int | None:
    """The step at which an episode missed, counted from 0 at its start; None if it did not.

    Args:
        path: Positions `(T + 1, 2 or 3)`.
        outcome: How it ended.
        known: The world's gates.
        target: The wanted pad; None for any.
    """
    before = path[:-1] if outcome in known else path  # the last position of those who were launched is on a pad
    wanted = known if target is None else (target,)
    steps = [np.flatnonzero(known[name].passed(before)) for name in wanted]
    return min((int(found[0]) for found in steps if len(found)), default=None)


def tally(
    played: Iterable[tuple[NDArray[Any], str]], known: Mapping[str, Gate], target: str | None = None
) -> dict[str, Any]:
    """Counts misses and recoveries.

    Args:
        played: Positions `(T + 1, 2 or 3)` and outcome of each episode.
        known: The world's gates.
        target: The wanted pad; None for any.

    Returns:
        `missed` and `recovered` (of these, the episodes that ended on the wanted pad after all), and `rate`: their
        share with its Wilson 95 % interval; None when none missed.
    """
    missed = [outcome for path, outcome in played if missed_at(path, outcome, known, target) is not None]
    wanted = set(known) if target is None else {target}
    recovered = sum(outcome in wanted for outcome in missed)
    rate = dict(wilson(recovered, len(missed))._asdict()) if missed else None
    return {"missed": len(missed), "recovered": recovered, "rate": rate}


def recovery(environment: str, episodes: Episodes, target: str | None = None) -> dict[str, Any] | None:
    """The `recovery` entry of an agent's results: the tally for any pad, and under the target's name the one for it.

    None for a world whose pads are not known.
    """
    known = gates_of(environment)
    if not known:
        return None
    played = list(zip(episodes.positions, episodes.outcomes, strict=True))
    found = tally(played, known)
    return found if target is None else {**found, target: tally(played, known, target)}
