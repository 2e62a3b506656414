"""The soak's own judgement: memory that grows is told from memory that does not, and a difference from chance."""

from __future__ import annotations

import numpy as np
import pytest

from tools._soaked import BLOCK, chance, growth


def test_growth_is_the_slope_after_the_warm_up():
    held = {at: 900.0 + 0.25 * at + (500.0 if at < 10 else 0.0) for at in range(60)}
    slope, seen = growth(held, done=60, episodes=64)
    assert slope == pytest.approx(0.25 / 64 * 1000)
    assert seen == 40 * 64


def test_what_is_kept_once_is_no_growth_and_too_little_tells_nothing():
    assert growth({at: 900.0 + 300.0 * (at > 15) for at in range(60)}, 60, 64)[0] == pytest.approx(0.0)
    assert growth(dict.fromkeys(range(4), 900.0), 5, 64)[0] is None


@pytest.mark.parametrize("seed", range(5))
def test_equal_runs_differ_by_chance_as_often_as_is_said(seed):
    rng = np.random.default_rng(seed)
    odds = [chance(*rng.binomial(64, 0.9, (2, 12 * BLOCK)) / 64, seed=n) for n in range(60)]
    assert np.mean(np.array(odds) < 0.2) == pytest.approx(0.2, abs=0.17)  # three standard errors of 60 draws


def test_a_run_that_is_worse_throughout_is_found():
    rng = np.random.default_rng(0)
    good, bad = rng.binomial(64, 0.98, 12 * BLOCK) / 64, rng.binomial(64, 0.9, 12 * BLOCK) / 64
    assert chance(good, bad) < 0.01
    assert chance(good, bad) == chance(bad, good)
    assert chance(good[: BLOCK - 1], bad[: BLOCK - 1]) == 1.0
