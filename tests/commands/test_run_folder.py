"""What a run's folder tells, which checkpoint it goes on from, and `lit-align runs`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_align.cli import main
from lit_align.commands.environment import is_gone, this_process
from lit_align.commands.run_folder import RunFolder
from lit_align.errors import UserError
from lit_align.stages.checkpoints import AtomicCheckpointIO, RunState
from tests.commands.test_stage import equal, fit, weights


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def flip(path: Path) -> None:
    """One bit of a weight; `torch.load` does not notice."""
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["state_dict"]["net.0.weight"].numpy().tobytes()
    content[content.index(weight) + 5] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("hurt", [cut, empty, flip])
def test_of_a_damaged_checkpoint_the_one_before_is_used_and_said(tmp_path: Path, capsys: Any, hurt: Any) -> None:
    fit(tmp_path / "whole", "--checkpoint_every=3")
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(tmp_path / "torn", "--checkpoint_every=3", "--model.die_at=10")
    kept = tmp_path / "torn" / "checkpoints"
    steps = [torch.load(kept / name, weights_only=True)["global_step"] for name in ("previous.ckpt", "last.ckpt")]
    assert steps == [8, 9]
    hurt(kept / "last.ckpt")
    capsys.readouterr()
    fit(tmp_path / "torn", "--checkpoint_every=3", "--resume=last")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1
    assert "last.ckpt is damaged" in said[0]
    assert "Going on from the one before it, previous.ckpt" in said[0]
    assert "is damaged" in (tmp_path / "torn" / "log.txt").read_text()
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "torn"))


def processes(monkeypatch: Any, chosen: list[str | None]) -> Any:
    """A Trainer whose processes tell each other that."""
    monkeypatch.setattr("lit_align.stages.checkpoints.exchanged", lambda trainer, value: chosen)
    return SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=AtomicCheckpointIO()), world_size=len(chosen))


def test_another_process_reads_what_the_first_one_chose(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(tmp_path, "--checkpoint_every=3", "--model.die_at=10")
    last, before = (RunFolder(tmp_path).checkpoints / name for name in ("last.ckpt", "previous.ckpt"))
    flip(last)
    first, other = RunFolder(tmp_path), RunFolder(tmp_path)
    assert first.checkpoint("last") == before
    assert other.checkpoint("last", read=False) == last  # not read, so not known to be damaged
    assert not other.warning
    trainer, state = processes(monkeypatch, [str(before), str(last)]), RunState()
    state.checkpoint = last
    state.setup(trainer, None, "fit")  # type: ignore[arg-type]
    assert trainer.strategy.checkpoint_io.load_checkpoint(str(last))["global_step"] == 8
    trainer, state = processes(monkeypatch, ["last.ckpt", None]), RunState()
    with pytest.raises(UserError, match="do not find the same checkpoint.*process 1: nothing"):
        state.setup(trainer, None, "fit")  # type: ignore[arg-type]


def test_where_both_are_damaged_nothing_is_started(tmp_path: Path) -> None:
    fit(tmp_path / "run", epochs=2)
    before = (tmp_path / "run" / "metrics.csv").read_text()
    for name in ("last.ckpt", "previous.ckpt"):
        cut(tmp_path / "run" / "checkpoints" / name)
    with pytest.raises(UserError, match="no checkpoint is whole.*--overwrite true"):
        fit(tmp_path / "run", "--resume=auto")
    assert (tmp_path / "run" / "metrics.csv").read_text() == before


def test_a_damaged_checkpoint_that_was_named_is_refused(tmp_path: Path) -> None:
    fit(tmp_path / "run", epochs=1)
    flip(tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="does not match its checksum"):
        fit(tmp_path / "other", f"--resume={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}")
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")  # root, who may run the tests, may write anywhere

    monkeypatch.setattr("lit_align.commands.run_folder.tempfile.mkdtemp", refuse)
    with pytest.raises(UserError, match=r"nothing can be written in .* \(Permission denied\)"):
        fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_environment_of_every_start_is_kept(tmp_path: Path) -> None:
    fit(tmp_path / "run", epochs=1)
    fit(tmp_path / "run", "--resume=last", epochs=2)
    told = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert told["versions"]["torch"] == torch.__version__
    assert told["hardware"]["cores"] == len(os.sched_getaffinity(0))
    assert len(told["earlier"]) == 1
    assert "--resume=last" in told["command"]
    assert "--resume=last" not in told["earlier"][0]["command"]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["starts"], run["state"]) == (2, "finished")


def listed(folder: Path, capsys: Any) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["runs", str(folder), "--json"]) == 0
    return {Path(each["folder"]).name: each for each in json.loads(capsys.readouterr().out)}


def test_runs_are_listed_with_how_far_they_came_and_how_they_ended(tmp_path: Path, capsys: Any) -> None:
    fit(tmp_path / "a" / "good", epochs=1)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(tmp_path / "bad", "--model.die_at=6")
    ended = subprocess.run(
        [sys.executable, "-c", "import json; from lit_align.commands.environment import this_process as t; "
         "print(json.dumps(t()))"], capture_output=True, text=True, check=True
    )  # fmt: skip
    for name, process in (("here", this_process()), ("dead", json.loads(ended.stdout))):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        folder.write_run(stage="align", state="running", process=process)
        folder.write("metrics.csv", "step,seconds,loss\n4,2.5,\n9,,0.5\n10,3")  # the last line is being written
    found = listed(tmp_path, capsys)
    assert {name: each["state"] for name, each in found.items()} == {
        "good": "finished", "bad": "failed", "here": "running", "dead": "killed"
    }  # fmt: skip
    assert (found["good"]["stage"], found["good"]["step"]) == ("pretrain", 4)
    assert found["bad"]["error"] == "RuntimeError: pulled the plug"
    assert (found["dead"]["step"], found["dead"]["seconds"]) == (10, 2.5)
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].split()[:3] == ["FOLDER", "STAGE", "STEP"]
    assert main(["runs", str(tmp_path / "absent")]) == 2


def test_a_process_is_told_from_one_that_got_its_number_later() -> None:
    me = this_process()
    assert not is_gone(me)
    assert is_gone({**me, "started": "1"})
    assert is_gone({**me, "boot": "an earlier one"})
    assert is_gone({**me, "boot": "another's", "machine": "another"}) is None


@pytest.mark.parametrize("how", ["--resume=last", "--resume=auto", "--overwrite=true"])
def test_a_run_that_is_alive_is_neither_gone_on_with_nor_overwritten(tmp_path: Path, how: str) -> None:
    fit(tmp_path / "run", epochs=1)
    folder = RunFolder(tmp_path / "run")
    script = (
        "import json; from lit_align.commands.environment import this_process as t; "
        "print(json.dumps(t()), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        process = json.loads(other.stdout.readline())
        folder.write_run(state="running", process=process)
        before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=f"holds a run that process {other.pid} is working on"):
            fit(tmp_path / "run", how, epochs=2)
        assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
        other.kill()
    fit(tmp_path / "run", how, epochs=2)
    assert folder.read_run()["state"] == "finished"


def test_a_run_goes_on_where_its_process_may_be_gone(tmp_path: Path) -> None:
    """Itself, what runs it as a stage, one of another machine or boot, and one whose start is not known."""
    me, folder = this_process(), RunFolder(tmp_path)
    parent = {**me, "pid": os.getppid(), "started": Path(f"/proc/{os.getppid()}/stat").read_text().split()[21]}
    elsewhere = {**me, "pid": 1, "boot": "another's", "machine": "another", "slurm": {"job": "7"}}
    for process in (me, parent, elsewhere, {**me, "pid": 1, "started": None}, {}, None):
        folder.write_run(state="running", process=process)
        folder.check_not_running()
