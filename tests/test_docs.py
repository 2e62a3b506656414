"""The documentation says what the code does: commands parse, links, tests, settings and metrics exist, examples run."""

from __future__ import annotations

import ast
import csv
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import markdown_pages as shown
import pytest
import yaml

from lit_align.commands import COMMANDS, STAGES, VERBS, check_verb
from lit_align.commands.arguments import function_parser, known_keys
from lit_align.commands.stage import CLASSES, StageCLI
from lit_align.pipeline import load_pipeline
from tests import helpers
from tools import results_table, study_table
from tools.fuzz.__main__ import parser as fuzz_parser
from tools.slurm import pipeline as slurm_pipeline

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# What a stage cannot do without; the folders need not exist to parse.
NEEDS = {
    "pretrain": ["--data.trajectories=[x]"],
    "finetune": ["--data.trajectories=[x]", "--init_from=x"],
    "reward": ["--data.preferences=x", "--init_from=x"],
    "prefer": ["--data.preferences=x", "--init_from=x"],
    "align": ["--model.reward_model=x", "--init_from=x"],
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cases(found: Any) -> list[Any]:
    return [pytest.param(text, id=f"{ids(page)}-{number}") for page in PAGES for number, text in enumerate(found(page))]


def commands(page: Path) -> list[str]:
    return [line for block in shown.blocks(page, "bash") for line in shown.lines(block)]


@pytest.mark.parametrize("line", cases(commands))
def test_a_command_that_is_shown_parses(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "lit-align":
        check_verb(words[1:])
    elif words[:3] == ["python", "-m", "tools.results_table"]:
        results_table.parser().parse_args(words[3:])
    elif words[:3] == ["python", "-m", "tools.study_table"]:
        study_table.parser().parse_args(words[3:])
    elif words[:3] == ["python", "-m", "tools.slurm.pipeline"]:
        slurm_pipeline.parser().parse_args(words[3:])
    elif words[0] == "make":
        assert set(words[1:]) <= targets()
    else:
        pytest.fail(f"{line!r}: no test knows how to check this command")


def test_the_pages_show_commands() -> None:
    assert {shlex.split(line)[1] for line in commands(PAGES[0]) if line.startswith("lit-align")} >= set(STAGES)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_verbs_options_and_targets_in_the_text_exist(page: Path) -> None:
    options = all_options()
    wrong = []
    for code in shown.inline(page):
        words = code.split()
        if words[0] == "make":
            wrong += [code for word in words[1:] if "=" not in word and word not in targets()]
        if words[0] == "lit-align" and len(words) > 1 and words[1] not in {*VERBS, "--help", "VERB"}:
            wrong.append(code)
        for word in words:
            name = word.split("=")[0].removeprefix("--")
            if word.startswith("--") and not name.endswith(".*") and name not in options:
                wrong.append(code)
    assert not wrong


@cache
def all_options() -> frozenset[str]:
    names = {"help", "print_config", "check", "name", "command", "quick", "peer-src"}  # of every verb, and of tools
    for verb in COMMANDS:
        module = __import__(f"lit_align.commands.{verb}", fromlist=["run"])
        names |= set(known_keys(function_parser(verb, module.run)))
    for verb in STAGES:
        names |= set(known_keys(stage(verb, NEEDS[verb]).parser))
    names |= {"only", "dry_run", "jobs", "config"}  # of the pipeline
    names |= {action.dest for action in slurm_pipeline.parser()._actions}
    names |= {action.dest for action in fuzz_parser()._actions}
    # Of sbatch and srun.
    slurm = "signal requeue open-mode constraint time nodes ntasks ntasks-per-node cpus-per-task kill-on-bad-exit"
    return frozenset(names | set(slurm.split()) | {"gpus-per-task", "gpu-bind", "gpus-per-node"})


def stage(verb: str, argv: list[str]) -> StageCLI:
    return StageCLI(verb, "fit", argv, CLASSES[verb], parse_only=True)


@pytest.mark.parametrize("file", CONFIGS, ids=ids)
def test_every_shipped_configuration_parses(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    if "stages" in content or "base" in content:
        if "study" in (file.stem, file.parent.name):
            return  # tests/test_study.py reads these, cells with what they are cells of
        pipeline = load_pipeline([str(file)], [], VERBS)
        for one in pipeline.stages.values():
            check_verb(one.argv)
        return
    if file.parent.name in ("sizes", "trainer"):  # laid over a pre-training file
        check_verb(
            ["pretrain", "fit", "--config=configs/jumppads/pretrain.yaml", f"--config={file}", *NEEDS["pretrain"]]
        )
        return
    verb = "finetune" if file.stem == "rest" else file.stem.split("_")[0].split("-")[0]
    extra = ["--data.select.scores=x"] if file.stem == "rest" else []
    check_verb([verb, "fit", "--config", str(file), *NEEDS[verb], *extra])


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in shown.links(page):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        # Pictures are of a run, and come with its results.
        if file.parent == ROOT / "docs" / "images" and not list((ROOT / "docs" / "results").glob("*.json")):
            continue
        if not file.exists() or (anchor and anchor not in shown.anchors(file)):
            wrong.append(link)
        if page.parent == ROOT / "docs" and not file.is_relative_to(ROOT / "docs"):
            wrong.append(f"{link} leaves docs/, where the site cannot follow")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    wrong = []
    for code in shown.inline(page):
        path, _, name = code.partition("::")
        if re.fullmatch(r"(lit_align|tests|tools|configs|docs)/[\w/.-]+", path) and "NAME" not in path:
            file = ROOT / path
            if not file.exists() or (name and f"def {name}(" not in file.read_text()):
                wrong.append(code)
    assert not wrong


def test_no_page_names_a_machine() -> None:
    for page in PAGES:
        assert not re.search(r"/(home|work|root|Users)/", page.read_text()), page


def test_the_settings_in_the_recipe_are_those_of_the_files() -> None:
    """An own reading of the table, beside that of the tool which fills it."""
    wrong, seen = [], 0
    for file, rows in shown.tables_after(ROOT / "docs" / "recipe.md", r"<!-- defaults: (\S+) -->"):
        content = yaml.safe_load((ROOT / file).read_text())
        for name, told, *_ in rows:
            value: Any = content
            for part in name.strip("`").split("."):
                value = value[part]
            seen += 1
            if yaml.safe_load(told) != value:
                wrong.append(f"docs/recipe.md says {name} is {told}, {file} says {value}")
    assert seen > 20
    assert not wrong, "\n".join([*wrong, "python -m tools.results_table mends this"])


def documented() -> set[str]:
    page = ROOT / "docs" / "metrics.md"
    return {
        code
        for line in page.read_text().splitlines()
        if line.startswith("|")
        for code in shown.codes(line.split("|")[1])
    }


def test_every_metric_that_is_logged_is_explained() -> None:
    logged = set()
    for file in sorted((ROOT / "lit_align" / "stages").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                logged |= set(re.findall(r"^[a-z]+/[a-z_]+$", node.value))
    assert len(logged) > 10
    assert logged <= documented()


def test_every_column_of_real_runs_is_explained(tmp_path: Path) -> None:
    """Runs each stage for a moment, in a world of lamps, and reads what it logged."""
    found = shown.run_all_stages(tmp_path)
    assert set(found) == {"pretrain", "reward", "prefer", "align"}
    for verb, folder in found.items():
        with (folder / "metrics.csv").open() as file:
            columns = set(next(csv.reader(file)))
        assert columns - {"step", "epoch"} <= documented(), verb
        assert len(columns) > 5


def example(page: Path, word: str) -> str:
    return next(block for block in shown.blocks(page, "python") if word in block)


def run_example(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    helpers.tiny_agent().save(folder / "outputs" / "quickstart" / "align_left" / "agent")
    exec(compile(code, "README.md", "exec"), {})  # a reader would type it in just so


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code = example(PAGES[0], "Sampler")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    run_example(code.replace("LitAlign/Jumppads-v0", "LitAlign-test/Light-v0"), tmp_path, monkeypatch)
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_the_example_of_acting_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = example(PAGES[0], "agent.act")
    run_example(code.replace("LitAlign/Jumppads-v0", "LitAlign-test/Light-v0"), tmp_path, monkeypatch)
    assert capsys.readouterr().out in ("left\n", "right\n")


@pytest.mark.slow
def test_the_example_runs_on_the_island(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(example(PAGES[0], "Sampler"), tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(int(line.split()[0]) for line in lines) == list(range(8))


@pytest.mark.slow
def test_the_speed_of_the_island_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(example(ROOT / "docs" / "island.md", "steps/s").replace(" < 2:", " < 0.2:"), tmp_path, monkeypatch)
    assert float(capsys.readouterr().out.split()[0]) > 0


def test_recordings_of_ones_own_are_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_align import TrajectoryDataset

    run_example(example(PAGES[0], "TrajectoryWriter"), tmp_path, monkeypatch)
    dataset = TrajectoryDataset(tmp_path / "recordings")
    assert (len(dataset), len(dataset[0]), dataset.meta.outcomes) == (100, 50, {"done": 25, "failed": 75})


def test_the_results_format_shown_is_valid() -> None:
    import json

    from lit_align.evaluation.results import validate

    block = shown.blocks(ROOT / "docs" / "formats.md", "json")[0]
    validate(json.loads(block))
