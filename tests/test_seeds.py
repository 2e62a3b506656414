"""Contract 4: what is trained on is never what is measured on."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.seeds import PURPOSES, episode_seeds


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PURPOSES), st.integers(0, 127)), unique=True, max_size=6),
    st.integers(0, 2**21 - 50),
)
def test_no_two_purposes_or_runs_share_a_seed(runs, start):
    ranges = [
        set(episode_seeds(purpose, seed, 50, start)) | set(episode_seeds(purpose, seed, 50)) for purpose, seed in runs
    ]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(ranges, 2))


def test_seeds_fit_31_bits():
    assert episode_seeds(PURPOSES[-1], 127, 1, 2**21 - 1)[0] < 2**31


def test_a_range_goes_on_where_it_stopped_and_wrong_words_are_named():
    assert episode_seeds("train", 3, 10) == episode_seeds("train", 3, 4) + episode_seeds("train", 3, 6, start=4)
    with pytest.raises(ValueError, match="unknown purpose 'test'"):
        episode_seeds("test", 0, 1)
    with pytest.raises(ValueError, match="0 to 127"):
        episode_seeds("train", 128, 1)
