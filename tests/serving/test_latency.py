from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.serving.latency import BINS, Histogram


def filled(values):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(st.lists(st.floats(2e-5, 1000), min_size=1, max_size=200), st.floats(0, 100))
def test_percentiles_are_those_of_all_values_within_the_width_of_a_bin(values, wanted):
    exact = np.percentile(values, wanted, method="inverted_cdf")
    assert filled(values).percentiles([wanted]) == pytest.approx([exact], rel=0.011)


def test_its_size_does_not_grow_and_nothing_is_too_short_or_too_long():
    histogram = filled([0.0, 1e-9, 1e9, 0.001])
    assert len(histogram.counts) == BINS
    assert (histogram.total, histogram.longest) == (4, 1e9)
    assert histogram.summary()["p50"] < 0.02


def test_nothing_counted_is_zero():
    assert Histogram().summary() == {"p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0}
