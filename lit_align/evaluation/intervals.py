"""The Wilson score interval of a proportion."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A proportion and the interval around it, all in [0, 1]."""

    value: float
    low: float
    high: float

    def percent(self) -> str:
        """Return `93.5 % (89-96)`: the value and its interval, for a table."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.0f}-{100 * self.high:.0f})"


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of `successes` out of `trials`.

    Unlike the textbook interval it stays inside [0, 1], and has a width at 0 and at 100 percent, where aligned agents
    live.

    Args:
        successes: How often it happened.
        trials: How often it could have happened. With none at all the interval is everything, [0, 1], and the value 0.
        confidence: How sure the interval is to hold the truth, in (0, 1).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"found {successes} successes of {trials} trials; expected 0 <= successes <= trials")
    if not 0 < confidence < 1:
        raise ValueError(f"found confidence {confidence}; expected a number between 0 and 1, such as 0.95")
    if trials == 0:
        return Interval(0.0, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    scale = 1 + z * z / trials
    centre = (p + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # At the two ends the bound is exactly 0 or 1; rounding must not move it to the wrong side of p.
    low = 0.0 if successes == 0 else max(0.0, min(p, centre - half))
    high = 1.0 if successes == trials else min(1.0, max(p, centre + half))
    return Interval(p, low, high)
