"""Weights & Biases and TensorBoard: a resumed run goes on in the same one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb

from lit_align.errors import UserError
from tests.commands.test_stage import checkpoint, fit


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    fit(out, "--wandb=offline", epochs=1)
    kept = checkpoint(out)["lit_align_run"]["wandb"]
    assert kept == json.loads((out / "run.json").read_text())["wandb"]
    (out / "run.json").unlink()  # as if only the checkpoint were copied
    fit(out, "--wandb=offline", "--resume=last", epochs=2)
    names = [path.name.rpartition("-")[2] for path in (out / "wandb").glob("offline-run-*")]
    assert names == [kept, kept]
    fit(tmp_path / "other", "--wandb=offline", epochs=1)
    assert checkpoint(tmp_path / "other")["lit_align_run"]["wandb"] != kept


def test_a_wandb_server_that_is_not_there_costs_no_training(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("lit_align.commands.loggers.INIT_SECONDS", 3)
    wandb.teardown()  # else it goes by the environment that an earlier test gave it
    fit(tmp_path / "run", "--wandb=online", epochs=1)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"
    assert "W&B cannot be reached" in caplog.text
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_tensorboard_is_written_or_what_to_install_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr("lit_align.commands.loggers.TensorBoardLogger", absent)
    with pytest.raises(UserError, match=r"pip install 'lit-align\[tensorboard\]'"):
        fit(tmp_path / "run", "--tensorboard=true")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    fit(tmp_path / "run", "--tensorboard=true", epochs=1)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
