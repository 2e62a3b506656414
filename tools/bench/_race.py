"""The arithmetic of a race: runs that take turns, medians, and the median of the ratios of each turn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Timing = dict[str, float]
"""`wall` and `cpu` seconds of one run."""
Runner = Callable[[], Timing]


@dataclass
class Case:
    """One comparison, in one unit.

    Attributes:
        ours: Our median.
        theirs: The median of each peer.
        ratio: For each peer the median over the turns of ours / theirs.
        aim: For some peers, what the ratio should reach: at least, or at most where less is better.
        better: `higher` or `lower`.
        unit: Of `ours` and `theirs`; empty where it is the benchmark's.
        facts: Whatever else belongs to the case.
    """

    ours: float
    theirs: dict[str, float]
    ratio: dict[str, float]
    aim: dict[str, float] = field(default_factory=dict)
    better: str = "higher"
    unit: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def margin(self) -> float:
        """How far beyond the aims the worst ratio is: 1 just reaches them; infinite without aims."""
        reach = [self.ratio[peer] / aim for peer, aim in self.aim.items() if peer in self.ratio]
        return min((r if self.better == "higher" else 1 / r for r in reach), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        reached = {"reached": self.margin >= 1} if self.aim else {}
        unit = {"unit": self.unit} if self.unit else {}
        same = {"ours": self.ours, "theirs": self.theirs, "ratio": self.ratio, "aim": self.aim, "better": self.better}
        return {**unit, **same, **reached, **self.facts}


T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of two to ten values that are distributed normally, by Student's t."""
    half = T_QUANTILES[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - half, statistics.fmean(values) + half


def reaches(ours: Sequence[float], theirs: Mapping[str, Sequence[float]], **rest: Any) -> Case:
    """A case that is reached where our mean is not surely below a peer's: 95 % intervals overlap, or ours is higher.

    Args:
        ours: A value for each run.
        theirs: The same of each peer.
        **rest: Other attributes of `Case`.
    """
    means = {peer: statistics.fmean(values) for peer, values in theirs.items()}
    ratio = {peer: statistics.fmean(ours) / (mean or math.ulp(1.0)) for peer, mean in means.items()}
    case = Case(statistics.fmean(ours), means, ratio)
    intervals = {"ours": interval(ours), **{peer: interval(values) for peer, values in theirs.items()}}
    reached = all(intervals["ours"][1] >= low for low, _ in intervals.values())
    facts = {"intervals": intervals, "reached": reached, "values": {"ours": list(ours), **theirs}}
    return replace(case, facts={**rest.pop("facts", {}), **facts}, **rest)


def interleave(runners: Mapping[str, Runner], repeats: int, warm_up: int = 1) -> dict[str, list[Timing]]:
    """Lets all run in turn (ABAB), after runs that do not count.

    Args:
        runners: Each gives the timing of one run.
        repeats: Turns that count.
        warm_up: Turns before that.
    """
    for _ in range(warm_up):
        for run in runners.values():
            run()
    timings: dict[str, list[Timing]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, run in runners.items():
            timings[name].append(run())
    return timings


def from_values(ours: Sequence[float], theirs: Mapping[str, Sequence[float]], **rest: Any) -> Case:
    """A case from one value a turn for us and for each peer.

    Args:
        ours: Our values.
        theirs: Each peer's values of the same turns.
        **rest: Other attributes of `Case`.
    """
    ratio = {
        peer: statistics.median(a / b for a, b in zip(ours, values, strict=True)) for peer, values in theirs.items()
    }
    return Case(
        statistics.median(ours), {peer: statistics.median(values) for peer, values in theirs.items()}, ratio, **rest
    )


def from_timings(
    timings: Mapping[str, Sequence[Timing]], amount: float, ours: str = "ours", scale: float = 1.0, **rest: Any
) -> Case:
    """A case from the timings of turns; the raw seconds and the ratios of CPU time go along.

    Args:
        timings: Of each racer.
        amount: What one run does: tokens, frames, steps.
        ours: Which racer is us.
        scale: Multiplies what is reported, such as 1000 for milliseconds.
        **rest: Other attributes of `Case`; `better="higher"` reports amount / s, `better="lower"` s / amount.
    """

    def made(clock: str) -> Case:
        values = {
            name: [
                scale * (turn[clock] / amount if rest.get("better") == "lower" else amount / turn[clock])
                for turn in turns
            ]
            for name, turns in timings.items()
        }
        return from_values(values.pop(ours), values, **rest)

    case = made("wall")
    case.facts = {
        **case.facts,
        "ratio_cpu": made("cpu").ratio,
        "wall_s": {name: [round(turn["wall"], 6) for turn in turns] for name, turns in timings.items()},
        "cpu_s": {name: [round(turn["cpu"], 6) for turn in turns] for name, turns in timings.items()},
    }
    return case
