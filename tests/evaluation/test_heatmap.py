"""Visits on a grid, and the pictures of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lit_align.envs.jumppads.terrain import PADS
from lit_align.evaluation import style
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.heatmap import Routes, extent_of, heatmaps, soften, visits
from lit_align.evaluation.overview import Story, overview
from lit_align.evaluation.plan import as_plan, plan_of
from tests.evaluation import synthetic

SQUARE = (0.0, 10.0, 0.0, 10.0)


def test_a_straight_walk_spends_its_steps_where_it_goes() -> None:
    path = np.array([[0.5, 4.5, 0], [9.5, 4.5, 0]], np.float32)  # one step over nine cells of a row
    grid = visits([path], SQUARE, cells=10)
    assert grid.sum() == pytest.approx(1.0)
    assert grid[4].sum() == pytest.approx(1.0), "row 4 counted from the bottom is y in [4, 5)"
    assert np.allclose(grid[4, 1:9], 1 / 9, atol=0.06)


def test_standing_still_counts_as_time() -> None:
    grid = visits([np.full((8, 3), 2.5, np.float32)], SQUARE, cells=10)
    assert grid[2, 2] == pytest.approx(7.0)


@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_inside_the_map_every_step_is_counted_once(steps: int, episodes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    paths = [rng.uniform(0.1, 9.9, (steps + 1, 3)).astype(np.float32) for _ in range(episodes)]
    assert visits(paths, SQUARE, cells=17).sum() == pytest.approx(steps)


def test_soften_keeps_the_sum_and_spreads() -> None:
    grid = np.zeros((21, 21))
    grid[10, 10] = 1
    soft = soften(grid, 1.0)
    assert soft.sum() == pytest.approx(1.0)
    assert soft[10, 10] == pytest.approx(1 / (2 * np.pi), rel=0.02), "the peak of a normal density with sigma 1"
    assert soft[10, 11] == soft[11, 10]


def test_extent_holds_all_routes() -> None:
    left, right, bottom, top = extent_of([Routes("", [np.array([[0, 0], [4, 2]], np.float32)], {})])
    assert left < 0 < 4 < right
    assert bottom < 0 < 2 < top
    assert right - left == pytest.approx(top - bottom)


def test_the_islands_plan_is_the_islands() -> None:
    plan = plan_of("LitAlign/Jumppads-v0")
    assert plan is not None
    assert {name: place[:2] for name, place in plan.pads.items()} == PADS
    assert plan_of("CartPole-v1") is None
    with pytest.raises(ValueError, match="outline"):
        as_plan({"pads": {}})


@pytest.mark.parametrize("theme", style.THEMES)
def test_picture_shows_where_they_went(tmp_path: Path, theme: style.Theme) -> None:
    played = synthetic.episodes("align_left", 20)
    path = heatmaps(
        [Routes("Aligned", played.positions, played.count()), Routes("Nobody", [], {})],
        tmp_path / "heat.png",
        as_plan(synthetic.PLAN),
        theme,
        title="Routes",
    )
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    hot = (pixels[..., 0] > 220) & (pixels[..., 1] < 190) & (pixels[..., 2] < 130)
    halves = hot[:, : hot.shape[1] // 2].sum(), hot[:, hot.shape[1] // 2 :].sum()
    assert halves[0] > 10 * max(1, halves[1]), "the panel with routes glows, the empty one shows its pads only"


def test_pictures_work_without_a_plan_and_are_reproducible(tmp_path: Path) -> None:
    routes = [Routes("A", [np.array([[0, 0], [1, 1]], np.float32)], {"won": 1})]
    first = heatmaps(routes, tmp_path / "a.png").read_bytes()
    assert heatmaps(routes, tmp_path / "b.png").read_bytes() == first


def test_overview_draws_what_there_is(tmp_path: Path) -> None:
    played = {name: synthetic.episodes(name, 10) for name in ("finetune", "align_left")}
    outcomes = {name: one.count() for name, one in played.items()}
    models = {"left": {"agent": {"50": {"accuracy": 0.9, "pairs": 3}}}}
    whole = overview(Story(played, outcomes, models, ("left",), as_plan(synthetic.PLAN)), tmp_path / "one.png")
    nothing = overview(Story({}, {}), tmp_path / "none.png")
    assert Image.open(whole).size[0] == Image.open(nothing).size[0]
    assert Image.open(whole).size[1] < Image.open(nothing).size[1], "one lane is lower than two"


def test_episodes_come_back_from_disk(tmp_path: Path) -> None:
    played = synthetic.episodes("pretrain", 7)
    played.save(tmp_path / "episodes.npz")
    again = Episodes.load(tmp_path / "episodes.npz")
    assert again.outcomes == played.outcomes
    assert again.reasons == played.reasons
    assert (again.seeds == played.seeds).all()
    assert (again.lengths == played.lengths).all()
    assert all((a == b).all() for a, b in zip(again.positions, played.positions, strict=True))
    none = Episodes.of([])
    none.save(tmp_path / "none.npz")
    assert len(Episodes.load(tmp_path / "none.npz")) == 0
