"""How long things took, in a histogram of a fixed size, whatever the number of things."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LOWEST, RATIO, BINS = 1e-5, 1.02, 1000
"""Seconds where the second bin begins, the width of a bin, and their number: up to more than an hour."""
_LOG = math.log(RATIO)


class Histogram:
    """Seconds, counted in bins each 2 % wider than the one before."""

    def __init__(self) -> None:
        self.counts = [0] * BINS
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        number = 0 if seconds < LOWEST else min(BINS - 1, 1 + int(math.log(seconds / LOWEST) / _LOG))
        self.counts[number] += 1
        if seconds > self.longest:
            self.longest = seconds

    @property
    def total(self) -> int:
        """How many were counted."""
        return sum(self.counts)

    def percentiles(self, wanted: Sequence[float]) -> list[float]:
        """The seconds below which `wanted` per cent lie, within 1 %; 0 where nothing was counted."""
        total = self.total
        if not total:
            return [0.0] * len(wanted)
        ranks = np.ceil(np.array(wanted) / 100 * total).clip(1)
        found = np.searchsorted(np.cumsum(self.counts), ranks)
        return [min(LOWEST * RATIO ** (number - 0.5), self.longest) for number in found.tolist()]

    def summary(self) -> dict[str, float]:
        """p50, p95, p99 and the longest, in milliseconds."""
        values = [*self.percentiles((50, 95, 99)), self.longest]
        return {name: round(1000 * value, 3) for name, value in zip(("p50", "p95", "p99", "max"), values, strict=True)}
