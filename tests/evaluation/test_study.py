"""A study's numbers are those of its cells, and its figures come from these numbers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_align.commands import run_verb
from lit_align.errors import UserError
from lit_align.evaluation import study_tables as tables
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.study import gather_study, name_of, read_study, write_study
from lit_align.evaluation.study_figures import draw_study
from tests.evaluation import made_study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study.study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def cells(folder: Path) -> Any:
    return gather_study(folder)["cells"]


def test_every_cell_is_found_and_named(cells: Any) -> None:
    assert len(cells) == 15
    assert "notes" not in cells
    assert [(cells[n]["kind"], cells[n]["seed"]) for n in ("base_1", "curves_left_all_0")] == [
        ("base", 1),
        ("curves_left_all", 0),
    ]
    assert name_of("report") == ("report", None)
    assert cells["middle_0"]["lacks"] == ["align_middle"]
    assert cells["base_0"]["lacks"] == []
    assert cells["base_0"]["stages"] == {"play": 30.0, "pretrain": 30.0, "report": 30.0}


def test_the_seeds_of_episodes_are_kept_as_a_range(cells: Any) -> None:
    assert cells["base_1"]["agents"]["finetune"]["episode_seeds"] == {"first": 2000, "count": 100}


def test_other_worlds_stand_apart_from_headlines(cells: Any) -> None:
    robust = cells["robustness_0"]
    assert set(robust["agents"]) == {"finetune", "scratch"}
    assert set(robust["ablations"]) == {"finetune_away", "scratch_away"}
    assert tables.share(tables.in_world(cells, "finetune", "away"), None) == tables.Share(70, 100, (0.7,))
    assert tables.share(tables.in_world(cells, "finetune", "yard"), "left") == tables.Share(90, 100, (0.9,))
    assert tables.in_world(cells, "align_left", "dusk") == []


def test_seeds_are_pooled_by_episodes(cells: Any) -> None:
    found = tables.share(tables.entries(cells, "headline", "align_left"), "left")
    assert found == tables.Share(195, 200, (0.98, 0.97))
    for bound in found.interval[1:]:  # the score equation
        assert abs(0.975 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 200), rel=1e-5)
    pooled = tables.outcomes(cells)
    assert pooled["pretrain"]["outcomes"] == {"left": 21, "middle": 80, "right": 20, "none": 79}
    assert set(pooled) == {"pretrain", "finetune", "scratch", "align_left", "rest_middle"}


def test_the_most_comparisons_are_all(cells: Any) -> None:
    found = tables.reward_models(cells)
    assert set(found) == {"left"}
    assert {start: set(sizes) for start, sizes in found["left"].items()} == {"agent": {"50", "all"}, "random": {"50"}}
    assert found["left"]["agent"]["all"][0]["comparisons"] == 473_112


def test_play_is_counted_with_the_rollouts_that_a_method_learned_from(cells: Any) -> None:
    """Online: the reward model's rollouts and its own play; ReST: these and its rounds; DPO: its rollouts alone."""
    assert tables.env_steps(cells, "reinforce") == tables.Steps(recorded=100_000, played=80_000)
    assert tables.env_steps(cells, "rest") == tables.Steps(100_000, 3 * 27_000 + 6)
    assert tables.env_steps(cells, "dpo") == tables.Steps(185_000, 0)
    assert tables.Steps(185_000, 7).total == 185_007
    assert tables.env_steps(cells, "grpo") is None


def test_a_curve_reaches_a_level_at_its_first_iteration_there(cells: Any) -> None:
    run = tables.curve(cells, "left", "all", "finetune")
    assert run is not None
    assert (tables.steps_to(run, 0.9), tables.steps_to(run, 0.89), tables.steps_to(run, 0.99)) == (3000, 2000, None)
    assert tables.curve(cells, "right", "all", "finetune") is None


def test_recoveries_are_added_up(cells: Any) -> None:
    assert tables.recovered(tables.entries(cells, "base", "pretrain"), None) == tables.Share(13, 20, (0.6, 0.7))
    assert tables.recovered(tables.in_world(cells, "scratch", "away"), None) == tables.Share(2, 20, (0.1,))
    assert tables.recovered(tables.entries(cells, "headline", "align_left"), "left") is None


def test_what_was_not_run_is_none_and_not_zero() -> None:
    assert tables.share([], "left") is None
    assert tables.pooled([]) is None
    assert tables.recovered([], None) is None


def test_routes_are_those_of_the_first_episodes(folder: Path, cells: Any) -> None:
    kept = cells["base_0"]["routes"]["pretrain"]
    played = Episodes.load(folder / "base_0" / "eval_pretrain" / "episodes.npz")
    assert len(kept) == 60 < len(played)
    for route, path in zip(kept, played.positions, strict=False):
        assert route[:2] == np.round(path[0, :2]).tolist()
        assert route[-2:] == np.round(path[-1, :2]).tolist()
        assert route[2:4] == np.round(path[2, :2]).tolist()


def test_the_command_gathers_and_draws_from_the_file_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    run_verb(["study", str(folder), "--out", str(out)])
    assert "15 cells, 10 figures" in capsys.readouterr().out
    assert "not finished: middle_0" in (out / "headline.txt").read_text()
    study = read_study(out / "results.json")
    assert study["cells"] == json.loads(json.dumps(gather_study(folder)["cells"]))
    names = "outcomes reward-models curves-left heatmaps methods methods-curves parameters sizes robustness recovery"
    assert {path.stem for path in out.glob("*.png")} == set(names.split())
    for path in draw_study(study["cells"], tmp_path / "again", study["environment"]):
        assert path.read_bytes() == (out / path.name).read_bytes()
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)  # light


def test_lists_of_numbers_stand_on_a_line(folder: Path, tmp_path: Path) -> None:
    write_study(gather_study(folder), tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert '"env_steps": [1000.0, 2000.0, 3000.0, 4000.0]' in text
    assert len(text.splitlines()) < 3000


def test_a_folder_without_cells_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no cell"):
        gather_study(tmp_path)
    with pytest.raises(UserError, match="found no folder"):
        run_verb(["study", "--run", str(tmp_path / "nowhere")])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold a study"):
        read_study(tmp_path / "x.json")
