"""A stage's run: its folder, exact resume, flags that count, and bad input that leaves nothing behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny_stage
import torch
import yaml

from lit_align.commands.stage import run_stage
from lit_align.errors import UserError
from lit_align.stages.checkpoints import AtomicCheckpointIO

CPU = ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]


def fit(out: Path, *argv: str, epochs: int = 3, action: str = "fit") -> None:
    run_stage(
        "pretrain", [action, "--out", str(out), f"--trainer.max_epochs={epochs}", *CPU, *argv], tiny_stage.CLASSES
    )


def weights(out: Path) -> dict[str, Any]:
    return torch.load(out / "agent" / "net.pt", weights_only=True)


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def equal(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[key], two[key]) for key in one)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, "--seed=5", "--model.lr=0.01")
    files = {
        "config.yaml",
        "environment.json",
        "checkpoints",
        "agent",
        "metrics.csv",
        "log.txt",
        "headline.txt",
        "run.json",
    }
    assert files == {file.name for file in out.iterdir()}
    assert {file.name for file in (out / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["seed"], config["model"]["lr"], config["trainer"]["max_epochs"]) == (5, 0.01, 3)
    run = json.loads((out / "run.json").read_text())
    assert (run["stage"], run["state"], run["steps"], run["frames"]) == ("pretrain", "finished", 12, 96)
    assert run["versions"]["torch"] == torch.__version__
    assert [row["loss"] != "" for row in rows(out)].count(True) == 12


def test_its_config_runs_it_again(tmp_path: Path) -> None:
    fit(tmp_path / "one", "--seed=5", "--model.lr=0.01")
    run_stage(
        "pretrain",
        ["fit", "--config", str(tmp_path / "one" / "config.yaml"), "--out", str(tmp_path / "two")],
        tiny_stage.CLASSES,
    )
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    fit(tmp_path / "three", "--seed=6", "--model.lr=0.01")
    assert not equal(weights(tmp_path / "one"), weights(tmp_path / "three"))


@pytest.mark.parametrize(("die_at", "every"), [(4, None), (6, None), (6, 1), (7, 3), (5, 5), (8, 2)])
def test_a_killed_run_ends_with_the_same_weights_and_metrics(tmp_path: Path, die_at: int, every: int | None) -> None:
    more = [f"--checkpoint_every={every}"] if every else []
    fit(tmp_path / "whole", *more)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(tmp_path / "killed", f"--model.die_at={die_at}", *more)
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["state"] == "failed"
    torch.manual_seed(1234)  # whatever the new process's random state is
    fit(tmp_path / "killed", "--resume=last", *more)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert _steps(tmp_path / "killed") == _steps(tmp_path / "whole")


def _steps(out: Path) -> list[tuple[str, str]]:
    return [(row["step"], row["loss"]) for row in rows(out) if row["loss"]]


def test_a_flag_counts_more_than_the_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, "--model.lr=0.5", epochs=1)
    fit(out, "--model.lr=0.25", "--resume=last", "--checkpoint_every=3", epochs=2)
    told = (out / "log.txt").read_text()
    assert "other settings than it had: model.lr: 0.5 -> 0.25 (before -> now)" in told
    fit(out, "--model.lr=0.25", "--resume=last", epochs=3)
    assert (out / "log.txt").read_text().count("other settings") == 1, "nothing else changed that matters"
    group = checkpoint(out)["optimizer_states"][0]["param_groups"][0]
    assert group["initial_lr"] == 0.25
    assert group["lr"] == pytest.approx(0.25 / 13)  # the schedule after twelve steps


@pytest.mark.parametrize(("every", "rows_at"), [(80, ["5"]), (2, ["1", "3"])])
def test_a_run_that_is_made_shorter_still_validates(tmp_path: Path, every: int, rows_at: list[str]) -> None:
    by_steps = [f"--trainer.val_check_interval={every}", "--trainer.check_val_every_n_epoch=null"]
    fit(tmp_path / "run", "--trainer.max_steps=6" if every > 6 else "--trainer.max_steps=5", *by_steps)
    assert [row["step"] for row in rows(tmp_path / "run") if row["val"]] == rows_at


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    fit(tmp_path / "run", epochs=1)
    assert checkpoint(tmp_path / "run")["lit_align_run"]["rng"]  # loads with weights_only=True, random states included


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "last.ckpt"
    saver = AtomicCheckpointIO()
    saver.save_checkpoint({"step": 1, "pytorch-lightning_version": "2.6.6"}, path)

    def half(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        saver.save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert saver.load_checkpoint(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_is_not_overwritten_by_mistake(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, epochs=1)
    before = (out / "metrics.csv").read_text()
    with pytest.raises(UserError, match="holds a run already"):
        fit(out, epochs=1)
    assert (out / "metrics.csv").read_text() == before


def test_overwrite_starts_afresh(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, epochs=2)
    fit(out, "--overwrite=true", epochs=1)
    assert checkpoint(out)["global_step"] == 4
    assert len(_steps(out)) == 4


def test_resume_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint .*last.ckpt; --resume auto starts afresh"):
        fit(tmp_path / "run", "--resume=last")
    assert not (tmp_path / "run").exists()
    fit(tmp_path / "run", "--resume=auto", epochs=1)
    assert checkpoint(tmp_path / "run")["global_step"] == 4


def test_everything_wrong_with_the_folders_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "pretrain" / "agent").mkdir(parents=True)
    (tmp_path / "pretrain" / "agent" / "config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        fit(tmp_path / "run", f"--init_from={tmp_path / 'pretrain'}", f"--resume={tmp_path / 'absent.ckpt'}")
    assert f"did you mean {tmp_path / 'pretrain' / 'agent'}?" in str(error.value)
    assert "absent.ckpt" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model.lr=-1"], "model.lr is -1.0"),
        (["--model.lrr=1"], "did you mean --model.lr?"),
        (["--batches=2"], "did you mean --data.batches?"),
        (["--trainer.max_epoch=2"], "did you mean --trainer.max_epochs?"),
        (["--data.batches=two"], "data.batches: expected int, found two"),
        (["--data.batches=0"], "not one whole batch"),
    ],
)
def test_bad_input_is_one_error_and_leaves_nothing(tmp_path: Path, argv: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        fit(tmp_path / "run", *argv)
    assert said in str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_action_is_needed() -> None:
    with pytest.raises(UserError, match="did you mean fit"):
        run_stage("pretrain", ["fti"], tiny_stage.CLASSES)


def test_a_dry_run_shows_what_would_run_and_writes_nothing(tmp_path: Path, capsys: Any) -> None:
    fit(tmp_path / "run", "--dry_run", "--model.lr=0.125")
    text = capsys.readouterr().out
    assert "lr: 0.125" in text
    parameters = 4 * 16 + 16 + 16 + 1
    assert f"parameters                             {parameters}" in text
    assert "(8, 4) float32" in text
    assert "optimizer steps in all                 12" in text
    assert not (tmp_path / "run").exists()


def test_validate_measures_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, epochs=1)
    before = (out / "metrics.csv").read_bytes()
    fit(out, action="validate", epochs=1)
    assert (out / "metrics.csv").read_bytes() == before, "which are those of its training"
    measured = yaml.safe_load((out / "validate.yaml").read_text())[0]["val"]
    logged = [float(row["val"]) for row in rows(out) if row["val"]][-1]
    assert measured == pytest.approx(logged)


def test_an_overlay_reaches_what_an_earlier_file_refers_to(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text("data: {batches: 4}\ntrainer: {max_steps: '${data.batches}'}\n")
    (tmp_path / "2.yaml").write_text("data: {batches: 2}\n")
    fit(tmp_path / "run", "--config", str(tmp_path / "1.yaml"), "--config", str(tmp_path / "2.yaml"))
    assert checkpoint(tmp_path / "run")["global_step"] == 2


def test_ctrl_c_is_passed_on_and_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", "--data.batches=1000", epochs=10_000)
    timer.join()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"


def test_a_run_in_a_group_of_processes_leaves_the_next_one_free(tmp_path: Path) -> None:
    """A run that found these variables would wait for others that nobody starts."""
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    fit(tmp_path / "run", "--trainer.strategy=ddp", "--trainer.devices=1", epochs=1)
    assert {name: os.environ.get(name) for name in names} == before
    torch.distributed.destroy_process_group()
