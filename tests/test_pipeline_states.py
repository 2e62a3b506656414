"""What a pipeline knows of its stages between runs: seconds of those that were left out, cells that were changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fake_verbs
import pytest
import yaml

from lit_align.pipeline import load_pipeline
from lit_align.progress import Progress
from lit_align.scheduler import run_pipeline


def run(folder: Path, stages: dict[str, Any], *only: str) -> str:
    """Runs a pipeline in `folder/run`; returns what it said."""
    file, printed = folder / "pipeline.yaml", folder / "printed.txt"
    file.write_text(yaml.safe_dump({"out": str(folder / "run"), "stages": stages}, sort_keys=False))
    pipeline = load_pipeline([str(file)], [], fake_verbs.VERBS)
    pipeline = pipeline.only(only) if only else pipeline
    with printed.open("w") as output:
        progress = Progress(len(pipeline.stages), 8, output.fileno())
        try:
            run_pipeline(pipeline, fake_verbs.run, fake_verbs.check, lambda words: False, progress)
        finally:
            progress.close()
    return printed.read_text()


def test_the_seconds_of_stages_that_are_left_out_are_kept(tmp_path: Path) -> None:
    stages = {"a": {"run": "write"}, "b": {"run": "write"}, "d": {"run": "write", "needs": "a"}}
    run(tmp_path, stages)
    run(tmp_path, {**stages, "a": {"run": "write", "args": {"x": 1}}}, "a")
    assert list(json.loads((tmp_path / "run" / "timings.json").read_text())) == ["a", "b", "d"]
    run(tmp_path, {name: {"run": "write", "args": {"x": 2}} for name in ("a", "d")}, "a")
    assert list(json.loads((tmp_path / "run" / "timings.json").read_text())) == ["a", "d"]  # there is no b any more


@pytest.fixture
def study(tmp_path: Path) -> dict[str, Any]:
    """A cell, in a cell or not, of a stage with a learning rate."""
    one = {"run": "write", "args": {"lr": "${lr}"}}
    cell = {"out": str(tmp_path / "alone"), "lr": 1, "stages": {"one": one, "two": {"run": "write"}}}
    (tmp_path / "cell.yaml").write_text(yaml.safe_dump(cell))
    plain = {"run": "pipeline", "config": str(tmp_path / "cell.yaml")}
    (tmp_path / "outer.yaml").write_text(yaml.safe_dump({"out": str(tmp_path / "alone"), "stages": {"deep": plain}}))
    stages = {"cell": plain, "cells": {"run": "pipeline", "config": str(tmp_path / "outer.yaml")}}
    run(tmp_path, stages)
    assert run(tmp_path, stages).count("same") == 2
    return stages


@pytest.mark.parametrize("place", ["cell", "cells/deep"])
def test_a_result_that_was_removed_inside_a_cell_is_made_again(
    tmp_path: Path, study: dict[str, Any], place: str
) -> None:
    folder = tmp_path / "run" / place
    shutil.rmtree(folder / "one")
    assert run(tmp_path, study).count("same") == 1
    assert (folder / "one" / "options.json").is_file()
    assert (folder / "runs-two").read_text() == "x"
    assert run(tmp_path, study).count("same") == 2


def test_a_cell_that_was_run_by_itself_with_other_settings_is_run_again(tmp_path: Path, study: dict[str, Any]) -> None:
    folder = tmp_path / "run" / "cell"
    fake_verbs.run(["pipeline", "--config", str(tmp_path / "cell.yaml"), f"--out={folder}", "--lr=2"])
    run(tmp_path, study)
    assert json.loads((folder / "one" / "options.json").read_text())["lr"] == "1"


def test_a_moved_cell_is_still_done(tmp_path: Path, study: dict[str, Any]) -> None:
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    (tmp_path / "run").symlink_to("elsewhere")
    assert run(tmp_path, study).count("same") == 2


def test_a_cell_of_an_earlier_version_is_still_done(tmp_path: Path, study: dict[str, Any]) -> None:
    file = tmp_path / "run" / ".pipeline" / "cell.json"
    content = json.loads(file.read_text())
    assert set(content.pop("inner")) == {"one", "two"}
    file.write_text(json.dumps(content))
    assert run(tmp_path, study).count("same") == 2
