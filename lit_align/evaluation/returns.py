"""The world's own return: its mean over episodes, and how much that of two agents differs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import cache
from statistics import fmean, stdev
from typing import Any, TypedDict

import numpy as np

from lit_align.data.trajectory import ENDED, Trajectory
from lit_align.evaluation.intervals import Interval


class Return(TypedDict):
    """The mean of some numbers, one an episode, and how sure it is.

    `std` is the sample standard deviation of one number, `low` and `high` are the 95 % t interval of the mean; they are
    null of a single episode.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None


def return_of(trajectory: Trajectory) -> float:
    """Return the undiscounted sum of the world's rewards in an episode."""
    return float(trajectory.rewards.sum(dtype=np.float64))


def summary(numbers: Collection[float], confidence: float = 0.95) -> Return:
    """Return the mean with Student's t interval.

    Args:
        numbers: One or more, such as each episode's undiscounted sum of rewards.
        confidence: How sure the interval is to hold the truth, in (0, 1).
    """
    if not numbers:
        raise ValueError("found no numbers; expected one or more, such as the return of each episode")
    mean = fmean(numbers)
    if len(numbers) == 1:
        return {"mean": mean, "std": None, "low": None, "high": None}
    std = stdev(numbers)
    half = _half(std, len(numbers), confidence)
    return {"mean": mean, "std": std, "low": mean - half, "high": mean + half}


def interval_of(mean: float, std: float, count: int, confidence: float = 0.95) -> Interval | None:
    """Return the same t interval, from what is known of some numbers; None of a single one.

    Args:
        mean: Of the numbers.
        std: Their standard deviation, as of a population.
        count: How many there are.
        confidence: How sure the interval is to hold the truth, in (0, 1).
    """
    if count < 2:
        return None
    half = _half(std * math.sqrt(count / (count - 1)), count, confidence)
    return Interval(mean, mean - half, mean + half)


def _half(std: float, count: int, confidence: float) -> float:
    return t_quantile(count - 1, confidence) * std / math.sqrt(count)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Return:
    """Return the second agent's return minus the first one's, of the same episodes: the t interval of paired samples.

    Args:
        first: The return of each episode, by its id; the agent that is compared with.
        second: The same of the other agent.
    """
    if first.keys() != second.keys():
        raise ValueError(f"found {len(first)} and {len(second)} episodes with other ids; expected the same in both")
    return summary([second[number] - first[number] for number in first])


@cache
def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Return the t that a Student variable of so many degrees of freedom stays within, either side of 0, so surely."""
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"found {degrees} degrees and confidence {confidence}; expected 1 or more, and within (0, 1)")
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves an angle to the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(angle: float, degrees: int) -> float:
    """The probability of |t| < sqrt(degrees) tan(angle): Abramowitz and Stegun 1964, 26.7.3 and 26.7.4."""
    odd, square = degrees % 2, math.cos(angle) ** 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def pays(entry: Mapping[str, Any]) -> bool:
    """Whether an agent's entry of `results.json` tells of a return that says more than how its episodes ended.

    It does not where it is 0 throughout, nor where episodes that have outcomes pay 0 or 1 each, as on the island.
    """
    told, n = entry.get("return"), entry["episodes"]
    if not isinstance(told, Mapping) or not (told["mean"] or told["std"]):
        return False
    of_population = (told["std"] or 0.0) * math.sqrt((n - 1) / n)
    return not (zero_or_one(told["mean"], of_population) and set(entry["outcomes"]) - {ENDED})


def zero_or_one(mean: float, std: float) -> bool:
    """Whether numbers of this mean and standard deviation, as of a population, can all be 0 or 1, as on the island."""
    # The mean of x (x - 1), which is 0 where every x is 0 or 1; what training logs was rounded to float32.
    return math.isclose(std**2 + mean**2, mean, rel_tol=1e-6, abs_tol=1e-12)


def in_words(told: Return, sign: str = "") -> str:
    """Return `195.3 (188.2 to 202.4)`, for a table; with the sign `+` also of what is above 0."""
    low, high = told["low"], told["high"]
    between = "" if low is None or high is None else f" ({_number(low, sign)} to {_number(high, sign)})"
    return _number(told["mean"], sign) + between


def _number(number: float, sign: str) -> str:
    return f"{number:{sign},.0f}" if abs(number) >= 1000 else f"{number:{sign}.4g}"


def faults(where: str, told: Any) -> list[str]:
    """What is wrong with a `Return` that a file holds."""
    facts = dict(told) if isinstance(told, Mapping) else {}
    mean, *spread = (facts.get(name, "") for name in ("mean", "std", "low", "high"))
    if _finite(mean) and (spread == [None] * 3 or (all(map(_finite, spread)) and _ordered(mean, *spread))):
        return []
    expected = "mean, std, low and high with low <= mean <= high, the last three null of one episode"
    return [f"{where} is {told!r}, expected {expected}"]


def _finite(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def _ordered(mean: float, std: float, low: float, high: float) -> bool:
    return std >= 0 and low <= mean <= high
