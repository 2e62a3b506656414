"""Weights & Biases and TensorBoard: what a run tells them, and what happens when they are lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import tiny_stage
import wandb
from PIL import Image
from safetensors.torch import load_file, save_file
from wandb.sdk.wandb_run import Run

from lit_align.cli import main
from lit_align.commands import VERBS, check_verb, loggers, wandb_tables
from lit_align.errors import UserError
from lit_align.evaluation import results
from lit_align.evaluation.video import write_mp4
from lit_align.pipeline import load_pipeline
from lit_align.stages.metrics_csv import MetricsCSV
from lit_align.workers import descendants
from tests.commands.test_stage import checkpoint, fit, rows
from tests.stages.runs import align, assert_same_weights, finetune, inputs
from tests.stages.runs import rows as rows_of
from tests.support.wandb_server import wandb_server


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    fit(out, "--wandb=offline", epochs=1)
    kept = checkpoint(out)["lit_align_run"]["wandb"]
    assert kept == json.loads((out / "run.json").read_text())["wandb"]
    (out / "run.json").unlink()  # as if only the checkpoint were copied
    fit(out, "--wandb=offline", "--resume=last", epochs=2)
    # offline-run-DATE_TIME-ID, and behind it a number where that folder is there: of a run begun in the same second.
    names = [path.name.split("-")[3] for path in (out / "wandb").glob("offline-run-*")]
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


class Lose(pl.Callback):
    """Does something to a run at its sixth optimizer step of twelve."""

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            self.what()


def lose(monkeypatch: Any, what: Callable[[], object]) -> None:
    monkeypatch.setattr(tiny_stage.Tiny, "configure_callbacks", lambda self: [Lose(what)])


def losses(out: Path) -> list[float]:
    return [float(row["loss"]) for row in rows(out) if row["loss"]]


def warnings_of(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]


def wandb_says(folder: Path, *argv: str) -> str:
    """What the command `wandb` says; it leaves its own log in `folder`."""
    command = [sys.executable, "-m", "wandb", *argv]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300).stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hang", "refuse"])
def test_a_server_lost_in_mid_run_costs_one_warning(tmp_path: Path, monkeypatch: Any, caplog: Any, how: str) -> None:
    monkeypatch.setattr("lit_align.commands.loggers.FINISH_SECONDS", 2)
    out = tmp_path / "run"
    with wandb_server(monkeypatch) as server:
        lose(monkeypatch, getattr(server, how))
        fit(out, "--wandb=online")
        assert len(server.rows) < 12
    run = json.loads((out / "run.json").read_text())
    assert (run["state"], run["steps"]) == ("finished", 12)
    assert len(losses(out)) == 12
    (said,) = warnings_of(caplog)
    assert "W&B is lost" in said
    (place,) = (out / "wandb").glob(f"run-*-{run['wandb']}")
    assert f"wandb sync --include-online {place}`" in said
    assert said in (out / "log.txt").read_text()
    with wandb_server(monkeypatch) as another:  # the very command that was named
        wandb_says(tmp_path, *said.partition("`wandb ")[2].partition("`")[0].split())
        sent = [row["loss"] for row in another.rows if "loss" in row]
    assert sent == pytest.approx(losses(out))


@pytest.mark.slow
def test_what_is_there_to_the_end_is_sent_whole(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    with wandb_server(monkeypatch) as server:
        fit(tmp_path / "run", "--wandb=online")
        assert [row["loss"] for row in server.rows if "loss" in row] == pytest.approx(losses(tmp_path / "run"))
        assert "config.yaml" in server.files
    assert not warnings_of(caplog)


@pytest.mark.slow
def test_a_service_of_wandb_that_is_killed_costs_one_warning(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    def kill() -> None:
        mine = [pid for pid in descendants(os.getpid()) if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert mine
        for pid in mine:
            os.kill(pid, signal.SIGKILL)

    monkeypatch.setenv("WANDB_SILENT", "true")
    lose(monkeypatch, kill)
    fit(tmp_path / "run", "--wandb=offline")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"
    assert len(losses(tmp_path / "run")) == 12
    assert len(warnings_of(caplog)) == 1
    assert wandb.run is None
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(tmp_path / "next", "--wandb=offline", epochs=1)  # the next run of this process has a service again
    assert len(warnings_of(caplog)) == 1
    assert list((tmp_path / "next" / "wandb").glob("offline-run-*/*.wandb"))


class Stuck:
    """A W&B run whose service neither takes nor answers anything any more."""

    id, _is_finished = "stuck", False

    def finish(self, exit_code: int) -> None:
        threading.Event().wait(600)


def test_an_end_that_hangs_is_given_up(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    for name in ("FINISH_SECONDS", "GRACE"):
        monkeypatch.setattr(f"lit_align.commands.loggers.{name}", 0.1)
    logger = loggers.Wandb(MetricsCSV(tmp_path), lambda: 0.0, save_dir=tmp_path, offline=True)
    logger._experiment = Stuck()  # type: ignore[assignment]
    logger.keep_open = True
    logger.finalize("success")
    assert not warnings_of(caplog)
    logger.close()
    assert "no answer in 0.2 s" in warnings_of(caplog)[0]
    assert logger._experiment is None


@pytest.fixture
def listened(monkeypatch: Any) -> list[tuple[str, str, tuple[str, ...], bool]]:
    """Artifacts that W&B runs got: name, digest, aliases, and whether the run uses it or made it."""
    got, log = [], Run._log_artifact

    def listen(self: Any, artifact: Any, *args: Any, **more: Any) -> Any:
        aliases = tuple(each for each in more.get("aliases") or () if each != "latest")
        got.append((artifact.name.partition(":")[0], artifact.digest, aliases, more.get("use_after_commit", False)))
        return log(self, artifact, *args, **more)

    monkeypatch.setattr(Run, "_log_artifact", listen)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return got


@pytest.mark.slow
def test_models_are_artifacts_with_where_they_come_from(tmp_path: Path, listened: list[Any], monkeypatch: Any) -> None:
    folder = inputs(tmp_path)
    first, second = folder / "first", folder / "second"
    start = ["--wandb=offline", "--wandb_data=true"]
    assert main([*finetune(folder, first, epochs=1), *start]) == 0
    run = json.loads((first / "run.json").read_text())
    # The agent that it starts from was made by no run; the data was asked for.
    assert [(name, used) for name, _, _, used in listened] == [("play", True), ("first", False)]
    made = listened[-1]
    assert made[2] == (f"run-{run['wandb']}",)
    assert run["wandb_model"] == {"name": "first", "digest": made[1], "run": run["wandb"], "project": "lit-align"}

    listened.clear()
    assert main([*finetune(folder, first, epochs=1), *start, "--resume=last"]) == 0  # nothing was left to train
    assert [(name, used) for name, _, _, used in listened] == [("play", True)]

    listened.clear()
    argv = [*finetune(folder, second, epochs=1), "--wandb=offline", f"--init_from={first / 'agent'}"]
    assert main(argv) == 0
    assert [(name, digest, used) for name, digest, _, used in listened][0] == ("first", made[1], True)
    assert [name for name, _, _, used in listened if not used] == ["second"]
    with wandb_server(monkeypatch) as server:  # and so a server is told of them
        (place,) = (second / "wandb").glob("offline-run-*")
        subprocess.run(
            [sys.executable, "-m", "wandb", "sync", str(place)], check=True, capture_output=True, timeout=120
        )
        id = json.loads((second / "run.json").read_text())["wandb"]
        assert ("second", listened[-1][1], {"latest", f"run-{id}"}) in server.artifacts
        assert made[1] in server.used

    listened.clear()  # another model than that run logged is not what it logged
    weights = load_file(first / "agent" / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, first / "agent" / "model.safetensors")
    assert main([*argv, "--overwrite=true"]) == 0
    assert [name for name, _, _, used in listened if used] == []


@pytest.mark.slow
def test_an_alignment_logs_its_play(tmp_path: Path, monkeypatch: Any, listened: list[Any]) -> None:
    """Videos, tables and a heatmap; without W&B the same run has the same weights."""
    logged: dict[str, Any] = {}
    log = Run.log
    monkeypatch.setattr(Run, "log", lambda self, data, **more: (logged.update(data), log(self, data, **more))[1])
    folder = inputs(tmp_path)
    assert main(align(folder, folder / "plain")) == 0
    assert main([*align(folder, folder / "told"), "--wandb=offline", "--videos.every=1"]) == 0
    assert_same_weights(folder / "plain" / "agent", folder / "told" / "agent")
    assert rows_of(folder / "plain", "reward/mean") == rows_of(folder / "told", "reward/mean")
    told = json.loads((folder / "told" / "over_optimisation.json").read_text())
    table = {row[1]: row[2:] for row in logged["outcomes"].data}
    last = int(told["episodes"][-1])
    for name, rates in told["outcomes"].items():
        rate, low, high, episodes = table[name]
        assert (rate, episodes) == (pytest.approx(rates[-1]), last)
        # Its ends are the p of which the rate is 1.96 standard deviations away.
        for p in {low, high} - {0.0, 1.0}:
            assert (rate - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / last, rel=1e-4)
    assert logged["over_optimisation_curve"].format == "png"
    (media,) = (folder / "told" / "wandb").glob("offline-run-*/files/media")
    films = sorted(path.name for path in (folder / "told" / "videos").iterdir())
    assert len(films) == 4
    assert len(list((media / "videos").rglob("*.mp4"))) == 4
    assert (media / "images").is_dir()
    assert {name for name, *_ in listened if not name.startswith("run-")} == {"told"}  # a table is an artifact too


def test_a_heatmap_is_drawn_of_a_world_without_a_plan(tmp_path: Path) -> None:
    went = [(np.cumsum(np.ones((9, 3)), axis=0), "left"), (np.ones((1, 3)), "ended")]
    with Image.open(wandb_tables.heatmap(went, "CartPole-v1", tmp_path / "routes.png")) as picture:
        assert picture.width > 100


def test_a_report_is_logged_as_a_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(UserError, match=r"no results\.json"):
        wandb_tables.log_folder(tmp_path, "offline", "report")
    entry = results.agent_result({"left": 3, "none": 1}, seed=0)
    found = results.build("LitAlign/Jumppads-v0", {"align_left": entry})
    results.write(found, tmp_path / "results.json")
    Image.new("RGB", (8, 8)).save(tmp_path / "heatmaps.png")
    write_mp4(tmp_path / "videos" / "align_left" / "left.mp4", np.zeros((3, 16, 16, 3), np.uint8), 10)
    tables = wandb_tables.results_tables(found)
    assert sorted(row[:3] for row in tables["outcomes"].data) == [
        ["align_left", "left", 0.75],
        ["align_left", "none", 0.25],
    ]
    assert "returns" not in tables
    own = {"mean": 21.5, "std": 2.0, "low": 18.3, "high": 24.7}
    paying = results.build("My/World-v0", {"mine": results.agent_result({"ended": 4}, seed=0, **{"return": own})})
    assert wandb_tables.results_tables(paying)["returns"].data == [["mine", 21.5, 2.0, 18.3, 24.7, 4]]
    assert wandb_tables.log_folder(tmp_path, "offline", "report")
    (media,) = (tmp_path / "wandb").glob("offline-run-*/files/media")
    assert [path.suffix for path in (media / "videos").rglob("*.*")] == [".mp4"]
    assert {path.stem.partition("_")[0] for path in (media / "images").rglob("*.png")} == {"heatmaps"}


def test_one_option_of_a_pipeline_logs_all_its_stages_and_changes_no_fingerprint() -> None:
    file = str(Path(__file__).parents[2] / "configs" / "jumppads" / "quickstart.yaml")
    plain, told = (load_pipeline([file], more, VERBS) for more in ([], ["wandb=offline"]))
    assert plain.fingerprints() == told.fingerprints()
    for name, stage in told.stages.items():
        logs = stage.run[-1] in ("fit", "report")
        assert ("--wandb=offline" in stage.argv) is logs, name
        assert [word for word in stage.argv if "wandb" not in word] == plain.stages[name].argv
    check_verb(told.stages["align_left"].argv)
    with pytest.raises(UserError, match="wandb is 'maybe'"):
        load_pipeline([file], ["wandb=maybe"], VERBS)
