"""The README's tables come from result files, and a result file from a run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lit_align.evaluation import paper
from lit_align.evaluation.results import agent_result, build, read, write
from tools import results_table

ROOT = Path(__file__).parents[1]
ACCURACY = {
    "left": {"agent": {"50": {"accuracy": 0.9, "pairs": 300}}, "random": {"50": {"accuracy": 0.6, "pairs": 300}}}
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "README.md").write_text("# Title\n\n<!-- results -->\nold\n<!-- /results -->\n\nafter\n")
    (root / "code.py").write_text("x = 1\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "first")
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def run_folder(root: Path, seed: int, left: int, accuracy: Any = ACCURACY) -> Path:
    """A made-up run: 100 episodes of an agent aligned to the left, of which `left` went there."""
    run = root / "outputs" / f"run{seed}"
    outcomes = {"left": left, "middle": 0, "right": 0, "none": 100 - left}
    agents = {"align_left": agent_result(outcomes, seed=seed, episode_seeds=[1, 2])}
    write(build("LitAlign/Jumppads-v0", agents, accuracy), run / "report" / "results.json")
    (run / "timings.json").write_text(json.dumps({"play": 61.0, "align_left": 120.5}))
    (run / "pretrain").mkdir()
    (run / "pretrain" / "run.json").write_text(json.dumps({"versions": {"torch": "9.9", "python": "3.11.1"}}))
    return run


def keep(root: Path, seed: int, left: int, **more: Any) -> dict[str, Any]:
    run = run_folder(root, seed, left, **more)
    assert results_table.main(["keep", str(run), "--name", f"quickstart-seed{seed}"], root) == 0
    return json.loads((root / "docs" / "results" / f"quickstart-seed{seed}.json").read_text())


def test_what_is_kept_of_a_run(repository: Path) -> None:
    kept = keep(repository, 3, 90)
    run = kept["run"]
    assert set(run) == {"command", "commit", "hardware", "seed", "stage_seconds", "date"}
    assert run["commit"] == git(repository, "rev-parse", "HEAD")
    assert run["seed"] == 3
    assert run["command"].endswith("--seed 3")
    assert run["stage_seconds"] == {"play": 61.0, "align_left": 120.5}
    assert (run["hardware"]["torch"], run["hardware"]["python"]) == ("9.9", "3.11.1")
    assert run["hardware"]["cpu"]
    assert run["hardware"]["cores"] >= 1
    assert str(repository) not in json.dumps(kept)
    assert (
        read(repository / "docs" / "results" / "quickstart-seed3.json")["agents"]["align_left"]["outcomes"]["left"]
        == 90
    )


def test_changed_code_is_told_changed_documentation_is_not(repository: Path) -> None:
    (repository / "README.md").write_text((repository / "README.md").read_text() + "more\n")
    assert not results_table.commit(repository).endswith("-dirty")
    (repository / "code.py").write_text("x = 2\n")
    assert results_table.commit(repository).endswith("-dirty")


def cells(text: str, name: str) -> list[str]:
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_one_seed_gives_counts_with_their_interval(repository: Path) -> None:
    keep(repository, 0, 90)
    assert results_table.main([], repository) == 0
    text = (repository / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- results -->\n")
    assert text.endswith("<!-- /results -->\n\nafter\n")
    # 90 of 100: 82.6 to 94.5 by Wilson's formula, worked by hand.
    row = cells(text, "Aligned left")
    assert row[1] == "**90.0** (83-94)<br>paper 98.7"
    assert row[5] == "100"
    assert cells(text, "50") == ["50", "**90.0** (90.0-90.0, 1 model)", "**60.0** (60.0-60.0, 1 model)",
                                 "91.5 (84.2-95.2)", "41.0 (11.5-72.5)"]  # fmt: skip
    assert results_table.ABSENT in cells(text, "Base")[1]
    assert results_table.main(["--check"], repository) == 0


def test_several_seeds_are_pooled_and_their_range_is_told(repository: Path) -> None:
    keep(repository, 0, 90)
    keep(repository, 1, 97, accuracy={"left": {"agent": {"50": {"accuracy": 0.8, "pairs": 300}}}})
    assert results_table.main(["--check"], repository) == 1
    assert results_table.main([], repository) == 0
    text = (repository / "README.md").read_text()
    # 187 of 200 is 93.5 percent, 89.2 to 96.2.
    assert cells(text, "Aligned left")[1] == "**93.5** (89-96), 90.0-97.0<br>paper 98.7"
    assert cells(text, "Aligned left")[5] == "200"
    assert cells(text, "50")[1] == "**85.0** (80.0-90.0, 2 models)"
    assert text.index("quickstart-seed0.json") < text.index("quickstart-seed1.json")


def test_without_results_nothing_is_claimed(repository: Path) -> None:
    assert results_table.main([], repository) == 0
    text = (repository / "README.md").read_text()
    for name in ("Base", "Fine-tuned", "Aligned left", "Aligned right"):
        assert all(cell.startswith(results_table.ABSENT) for cell in cells(text, name)[1:5])
    assert text.count(results_table.ABSENT) == 4 * 4 + 2 * len(paper.REWARD_ACCURACY["agent"])


def test_mistakes_are_said_clearly(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(repository, 0, 90)
    assert results_table.main(["keep", str(run), "--name", "../x"], repository) == 2
    found = read(run / "report" / "results.json")
    found["agents"]["align_left"]["env_args"] = {"max_steps": 12}
    elsewhere = repository / "outputs" / "brief"
    write(found, elsewhere / "report" / "results.json")
    assert results_table.main(["keep", str(elsewhere), "--name", "x"], repository) == 2
    (run / "timings.json").unlink()
    assert results_table.main(["keep", str(run), "--name", "x"], repository) == 2
    assert results_table.main(["keep", str(run / "nothing"), "--name", "x"], repository) == 2
    (repository / "README.md").write_text("no markers\n")
    assert results_table.main([], repository) == 2
    said = capsys.readouterr().err
    assert all(
        word in said
        for word in (
            "--name is",
            "align_left ({'max_steps': 12})",
            "timings.json",
            "found no file",
            "expected one each",
        )
    )
    assert not (repository / "docs").exists()


def test_the_readme_shows_what_the_files_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert results_table.main(["--check"], ROOT) == 0, capsys.readouterr().out


def test_settings_in_the_recipe_follow_their_files(repository: Path) -> None:
    (repository / "docs").mkdir()
    (repository / "x.yaml").write_text("model: {lr: 3.0e-4, name: last}\nrule: [[left], [none]]\n")
    recipe = repository / "docs" / "recipe.md"
    head = "<!-- defaults: x.yaml -->\n\n| setting | value | why |\n|---|---|---|\n"
    after = "\n| `model.lr` | 1 | not ours |\n"
    recipe.write_text(head + "| `model.lr` | 1 | so |\n| `model.name` | - | so |\n| `rule` |  | so |\n" + after)
    assert results_table.main([], repository) == 0
    rows = "| `model.lr` | 0.0003 | so |\n| `model.name` | last | so |\n| `rule` | [[left], [none]] | so |\n"
    assert recipe.read_text() == head + rows + after
    (repository / "x.yaml").write_text("model: {lr: 3.0e-4}\nrule: [[left], [none]]\n")
    assert results_table.main([], repository) == 2
