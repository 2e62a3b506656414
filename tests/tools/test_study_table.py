"""The study's tables and kept files come from its cells."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation import made_study
from tools import study_table
from tools._study_tables import TABLES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a study that was run and kept."""
    root = tmp_path_factory.mktemp("repository")
    (root / "docs").mkdir()
    (root / "README.md").write_text("# Title\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "first")
    made_study.study(root / "outputs" / "study")
    assert study_table.main(["keep", str(root / "outputs" / "study")], root) == 0
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def kept(root: Path, cell: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "docs" / "results" / "study" / f"{cell}.json").read_text())
    return content


def rows(name: str, root: Path) -> dict[str, list[str]]:
    """A table by its first column."""
    lines = TABLES[name](study_table.kept(root)).splitlines()[2:]
    found = [[part.strip() for part in line.strip("|").split(" | ")] for line in lines]
    return {cells[0]: cells[1:] for cells in found}


def test_every_finished_cell_is_kept_with_how_it_was_made(repository: Path) -> None:
    files = {path.stem for path in (repository / "docs" / "results" / "study").glob("*.json")}
    assert len(files) == 14
    assert "middle_0" not in files  # one of its stages did not finish
    run = kept(repository, "headline_1")["run"]
    assert run["commit"] == git(repository, "rev-parse", "HEAD")
    assert run["command"].endswith("--only headline_1")
    assert run["hardware"]["cores"] >= 1


def test_pooled_shares_with_interval_and_seeds(repository: Path) -> None:
    table = rows("outcomes", repository)
    # 195 of 200; Wilson by hand: (0.975 + z2/400 -+ z sqrt(0.975 0.025 / 200 + z2 / 160000)) / (1 + z2/200)
    assert table["Aligned left"][0] == "**97.5** (94-99), 97.0-98.0<br>paper 98.7"
    assert table["Base"][-1] == "200"
    assert table["Aligned right"][2] == "not measured yet<br>paper 99.8"
    realigned = rows("realigned", repository)
    assert realigned["aligned left"][:2] == ["left", "**97.5** (94.3-98.9), 97.0-98.0"]
    assert realigned["and aligned right"] == ["right", *["not measured yet"] * 4]


def test_more_iterations_stand_beside_fewer(repository: Path) -> None:
    table = rows("longer", repository)
    # 197 of 200; of two seeds one ran three iterations, the other four: 3,000 and 4,000 env steps.
    assert table["3, 4"] == [
        "**98.5** (95.7-99.5), 98.0-99.0",
        "**1.0** (0.3-3.6), 1.0-1.0",
        "**0.0** (0.0-1.9), 0.0-0.0",
        "**0.5** (0.1-2.8), 0.0-1.0",
        "3,500",
        "0.200",
    ]
    assert table["not measured yet"] == ["not measured yet"] * 6  # nothing was aligned right with fewer


def test_what_each_table_says(repository: Path) -> None:
    rewards = rows("rewards", repository)
    assert rewards["all (473,112-473,112)"][:2] == ["**99.0** (1 model)", "2.0"]
    assert rewards["50"][:4] == ["**90.0** (1 model)", "2.0", "**60.0** (1 model)", "2.0"]
    assert rewards["50"][4:] == ["91.5 (84.2-95.2)", "41.0 (11.5-72.5)"]
    methods = rows("methods", repository)
    assert methods["REINFORCE"][4:] == ["100,000", "80,000", "180,000", "30 s"]
    assert methods["DPO"][4:7] == ["185,000", "0", "185,000"]
    assert methods["DPO"][:2] == ["no", "no"]
    assert methods["DPO"][7] == "1 min 00 s"  # its comparisons and itself
    assert methods["GRPO"][2:] == ["not measured yet"] * 6
    assert rows("parameters", repository)["all"][2:] == ["3,000", "0.095"]
    assert rows("parameters", repository)["the heads alone (the paper's)"][2] == "never"
    curves = TABLES["curves"](study_table.kept(repository))
    assert "| left | fine-tuned | not measured yet | not measured yet | **91.0**, 90 % at 3,000 steps |" in curves
    assert "**80.0**, never at 90 %" in curves
    assert rows("sizes", repository)["90k"][-1].startswith("**60.0**")
    assert rows("robustness", repository)["fine-tuned"][:3] == [
        "any",
        "**90.0** (82.6-94.5)",
        "**70.0** (60.4-78.1)",
    ]
    recovery = TABLES["recovery"](study_table.kept(repository))
    assert "| Base | any | as in training | 20 | 13 | **65.0** (43.3-81.9), 60.0-70.0 |" in recovery
    assert "`base_0`" in TABLES["cells"](study_table.kept(repository))


def test_without_runs_no_table_holds_a_number_of_ours() -> None:
    for name, table in TABLES.items():
        text = table({})
        assert "not measured yet" in text.lower(), name
        assert "**" not in text, name


def test_pages_are_filled_and_checked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = repository / "docs" / "methods.md"
    page.write_text(
        "# A\n<!-- study: methods -->\nold\n<!-- /study -->\nafter\n<!-- study: sizes -->\n<!-- /study -->\n"
    )
    assert study_table.main(["--check"], repository) == 1
    assert "docs/methods.md is out of date" in capsys.readouterr().out
    assert study_table.main([], repository) == 0
    text = page.read_text()
    assert "old" not in text
    assert "\nafter\n" in text
    assert "| REINFORCE | yes | yes | **95.0**" in text
    assert study_table.main(["--check"], repository) == 0
    page.write_text("<!-- study: nothing -->\n<!-- /study -->\n")
    assert study_table.main([], repository) == 2
    page.write_text("<!-- study: sizes -->\n")
    assert study_table.main([], repository) == 2
    page.unlink()


def test_bad_runs_are_one_error(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study_table.main(["keep", str(tmp_path)], repository) == 2
    assert "found no finished cell" in capsys.readouterr().err
    assert study_table.main(["figures"], tmp_path) == 2


def test_the_pages_show_what_the_files_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert study_table.main(["--check"], ROOT) == 0, capsys.readouterr().out
    shown = (ROOT / "docs" / "methods.md").read_text() + (ROOT / "docs" / "study.md").read_text()
    assert {name for name in TABLES if f"<!-- study: {name} -->" in shown} == set(TABLES)
