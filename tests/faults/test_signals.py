"""SIGTERM and Ctrl-C: a run ends at once and cleanly, says so, and goes on exactly."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from forked import Forked

from tests.stages import runs

EPOCHS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = runs.inputs(tmp_path_factory.mktemp("signals"))
    runs.Process(runs.pretrain(folder, folder / "whole", EPOCHS), folder / "whole.log").finish()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_end_ends_and_goes_on(folder: Path, number: int, code: int) -> None:
    out = folder / f"told-{code}"
    argv = runs.pretrain(folder, out, EPOCHS)
    run = Forked(argv, folder / f"{out.name}.log")
    assert run.wait_for(lambda: len(runs.rows(out, "train/loss")) > 20)
    run.signal(number)
    assert run.end() == [code], run.said()
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    assert "Traceback" not in run.said()
    assert not (out / "agent").exists()
    Forked([*argv, "--resume=last"], folder / f"{out.name}.log").finish()
    runs.assert_same_weights(folder / "whole" / "agent", out / "agent")
