"""What `lit-align pipeline` says to who starts it: what is missing before it begins, and which stage is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.cli import main
from lit_align.commands.inputs import missing_inputs
from lit_align.commands.pipeline import run_command
from lit_align.errors import UserError
from lit_align.pipeline import load_pipeline


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two pipelines: `second.yaml` reads what `first.yaml` leaves."""
    monkeypatch.chdir(tmp_path)
    play = {"run": "collect", "args": {"env": "CartPole-v1", "agent": "some/hub-agent"}}
    write("first.yaml", out="out/first_${seed}", stages={"play": play})
    score = {"reward_model": "${stage:reward}/reward_model", "trajectories": "${start}/play"}
    reward = {"init_from": "${start}/finetune/agent", "data.preferences": "./pairs", "model.heads": 2}
    rest = {"init_from": "${start}/finetune/agent", "data.trajectories": ["${start}/play"]}
    stages = {
        "reward": {"run": "reward fit", "args": reward},
        "score": {"run": "score", "args": score},
        "rest": {"run": "finetune fit", "args": rest},
    }
    write("second.yaml", out="out/second_${seed}", start="out/first_${seed}", stages=stages)
    return tmp_path


def write(name: str, **content: Any) -> None:
    Path(name).write_text(yaml.safe_dump({"seed": 0, **content}, sort_keys=False))


def test_a_dry_run_tells_what_is_missing_and_who_leaves_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["--config", "second.yaml", "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["run"] * 3
    missing = [line for line in lines if line.startswith("missing ")]
    how = "of the pipeline in out/first_0 leaves it: lit-align pipeline --config first.yaml --seed 0"
    assert missing == [
        f"missing stage reward needs out/first_0/finetune/agent, which is not there; stage finetune {how}",
        "missing stage reward needs ./pairs, which is not there; stage pairs of the pipeline in . leaves it",
        f"missing stage score needs out/first_0/play, which is not there; stage play {how}",
    ]
    assert lines[-1] == "3 of 3 stages would run in out/second_0; those marked `same` are done"
    for folder in ("out/first_0/finetune/agent", "out/first_0/play", "pairs"):
        Path(folder).mkdir(parents=True)
    run_command(["--config", "second.yaml", "--dry_run", "--only", "score"])
    assert "missing" not in capsys.readouterr().out


def test_a_run_is_refused_before_anything_is_cleared(place: Path) -> None:
    (place / "out" / "second_0" / "rest").mkdir(parents=True)
    with pytest.raises(UserError, match="stage rest needs out/first_0/finetune/agent, which is not there"):
        run_command(["--config", "second.yaml", "--only", "rest"])
    assert (place / "out" / "second_0" / "rest").is_dir()
    assert not (place / "out" / "second_0" / ".pipeline").exists()


def test_what_a_stage_or_a_cell_makes_is_not_missing(place: Path) -> None:
    cells = {
        "first_0": {"run": "pipeline", "config": "first.yaml", "args": {"seed": 0}},
        "second_0": {"run": "pipeline", "config": "second.yaml", "args": {"seed": 0, "start": "${stage:first_0}"}},
    }
    write("both.yaml", out="out", stages=cells)
    pipeline = load_pipeline(["both.yaml"], [], ("collect", "score", "reward", "finetune", "pipeline"))
    said = missing_inputs(pipeline, pipeline.stages, [Path()])
    assert [message.partition(",")[0] for message in said] == ["stage second_0/reward needs ./pairs"]
    alone = pipeline.only(["second_0"])
    del alone.stages["first_0"]
    assert "stage second_0/score needs out/first_0/play" in " ".join(missing_inputs(alone, alone.stages, [Path()]))


def test_a_mistake_names_its_stage(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = {"play": {"run": "collect", "args": {"episods": 3}}, "pre": {"run": "pretrain fit", "args": {"data.x": 1}}}
    write("wrong.yaml", out="out", stages=stages)
    assert main(["pipeline", "--config", "wrong.yaml", "--dry_run"]) == 2
    said = capsys.readouterr().err
    assert "stage play (lit-align collect, in out/play): unknown option --episods; did you mean --episodes?" in said
    assert "stage pre (lit-align pretrain fit, in out/pre): unknown option --data.x" in said
