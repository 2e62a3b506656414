"""Wilson intervals against numbers that others published and against properties they must have."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.evaluation.intervals import Interval, wilson

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (score, no continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson(successes, trials)
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@given(counts)
def test_bounds_solve_the_score_equation(pair: tuple[int, int]) -> None:
    """The bounds are where the score test just rejects: |p - b| = z sqrt(b (1 - b) / n)."""
    k, n = pair
    found, z = wilson(k, n), 1.959963984540054
    for bound in (found.low, found.high):
        assert abs(k / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-7)


@given(counts)
def test_contains_the_proportion_inside_the_unit(pair: tuple[int, int]) -> None:
    found = wilson(*pair)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pair[0] / pair[1]
    assert found.high > found.low


@given(counts, st.integers(2, 20))
def test_shrinks_with_more_episodes_and_grows_with_confidence(pair: tuple[int, int], times: int) -> None:
    k, n = pair
    small, large = wilson(k, n), wilson(k * times, n * times)
    assert large.high - large.low < small.high - small.low
    sure = wilson(k, n, 0.99)
    assert sure.low <= small.low
    assert sure.high >= small.high


@given(counts)
def test_failures_mirror_successes(pair: tuple[int, int]) -> None:
    k, n = pair
    found, mirror = wilson(k, n), wilson(n - k, n)
    assert found.low == pytest.approx(1 - mirror.high, abs=1e-12)
    assert found.high == pytest.approx(1 - mirror.low, abs=1e-12)


def test_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for k, n in ((0, 1), (3, 7), (199, 200), (1000, 1000)):
        theirs = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        ours = wilson(k, n)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_trials_means_no_knowledge() -> None:
    assert wilson(0, 0) == Interval(0.0, 0.0, 1.0)


@pytest.mark.parametrize(("k", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_nonsense_is_refused(k: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson(k, n, confidence)


def test_reads_well() -> None:
    assert wilson(187, 200).percent() == "93.5 % (89-96)"
