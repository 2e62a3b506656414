"""Two agents on the same episodes: how much a rate differs, how sure that is, and whether it can be luck."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lit_align.evaluation.intervals import wilson


class Pairs(NamedTuple):
    """Episodes that two agents played, by whether something happened to each.

    Attributes:
        both: It happened to both.
        gained: To the second agent alone.
        lost: To the first agent alone.
        neither: To none.
    """

    both: int
    gained: int
    lost: int
    neither: int


class Difference(NamedTuple):
    """The second agent's rate minus the first one's, with its interval, all in [-1, 1], and McNemar's exact p-value."""

    value: float
    low: float
    high: float
    p: float

    def points(self) -> str:
        """Return `+12.5 (+3 to +22)`: the value and its interval in percentage points, for a table."""
        return f"{100 * self.value:+.1f} ({100 * self.low:+.0f} to {100 * self.high:+.0f})"

    def luck(self) -> str:
        """Return the p-value for a table, `<0.001` where it is smaller."""
        return f"{self.p:.3f}" if self.p >= 0.001 else "<0.001"


def difference(pairs: Pairs, confidence: float = 0.95) -> Difference:
    """Return by how much the second agent's rate is above the first one's.

    The interval is Newcombe's for paired proportions (1998, Statistics in Medicine 17, 2635-2650, method 10): the two
    Wilson intervals, squared and added, with the correlation of the pairs, corrected for continuity where it is
    positive. It stays inside [-1, 1] and has a width where nothing differs, where the textbook one has none.

    Args:
        pairs: Episodes of each kind; with none at all the interval is everything.
        confidence: How sure the interval is to hold the truth, in (0, 1).
    """
    if min(pairs) < 0:
        raise ValueError(f"found {pairs}; expected numbers of episodes, none below 0")
    both, gained, lost, neither = pairs
    total = sum(pairs)
    if not total:
        return Difference(0.0, -1.0, 1.0, 1.0)
    first, second = wilson(both + lost, total, confidence), wilson(both + gained, total, confidence)
    phi = _correlation(pairs)
    value = (gained - lost) / total
    below = _combined(second.value - second.low, first.high - first.value, phi)
    above = _combined(second.high - second.value, first.value - first.low, phi)
    return Difference(value, max(-1.0, value - below), min(1.0, value + above), mcnemar(gained, lost))


def _combined(one: float, other: float, phi: float) -> float:
    """Two distances to a limit as one."""
    return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))


def _correlation(pairs: Pairs) -> float:
    """Return phi of the 2 x 2 table; a positive one is brought nearer to 0, as method 10 says."""
    both, gained, lost, neither = pairs
    margins = (both + gained) * (both + lost) * (neither + gained) * (neither + lost)
    if not margins:
        return 0.0
    excess = both * neither - gained * lost
    return (max(0.0, excess - sum(pairs) / 2) if excess > 0 else excess) / math.sqrt(margins)


def mcnemar(gained: int, lost: int) -> float:
    """Return the exact two-sided p-value of McNemar's test, in (0, 1].

    If the agents were equally good, each episode that went another way would have gone so with either at odds of one
    to one: twice the binomial tail, in whole numbers.

    Args:
        gained: Episodes in which it happened to the second agent alone.
        lost: To the first one alone.
    """
    flips, fewer = gained + lost, min(gained, lost)
    term = tail = 1
    for k in range(fewer):
        term = term * (flips - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**flips)


def compare(first: Mapping[int, str], second: Mapping[int, str]) -> dict[str, Any]:
    """Return what `results.json` keeps of two agents that played the same episodes.

    Args:
        first: How each episode ended, by its id; the agent that is compared with.
        second: The same of the other agent.

    Returns:
        `episodes`, and under `outcomes`, for each outcome of either agent, the fields of `Pairs` and of `Difference`.
    """
    if first.keys() != second.keys():
        raise ValueError(f"found {len(first)} and {len(second)} episodes with other ids; expected the same in both")
    outcomes: dict[str, Any] = {}
    for name in sorted({*first.values(), *second.values()}):
        held = [(first[number] == name, second[number] == name) for number in first]
        wanted = ((True, True), (False, True), (True, False), (False, False))
        pairs = Pairs(*(held.count(kind) for kind in wanted))
        outcomes[name] = {**pairs._asdict(), **difference(pairs)._asdict()}
    return {"episodes": len(first), "outcomes": outcomes}
