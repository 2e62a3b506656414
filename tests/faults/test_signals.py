"""SIGTERM and Ctrl-C: a run ends at once and cleanly, says so, and goes on exactly."""

from __future__ import annotations

import json
import os
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


def hang(out: Path, epochs: int, folder: Path) -> tuple[Forked, Path]:
    """A run whose end hangs, with a process of its own; a file tells when it hangs, and that process's number."""
    told = folder / f"{out.name}.hangs"
    argv = [*runs.pretrain(folder, out, epochs), "--trainer.callbacks+=kill_here.HangAtEnd"]
    return Forked([*argv, f"--trainer.callbacks.told={told}"], folder / f"{out.name}.log"), told


def gone(process: int) -> bool:
    """Whether a process has ended, if not been reaped."""
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once_what_hangs_while_it_ends(folder: Path, number: int, code: int) -> None:
    out = folder / f"twice-{code}"
    run, told = hang(out, EPOCHS, folder)
    assert run.wait_for(lambda: len(runs.rows(out, "train/loss")) > 10)
    run.signal(number)
    assert run.wait_for(told.exists), run.said()
    child = int(told.read_text())
    assert not gone(child)
    run.signal(number)
    assert run.end() == [code], run.said()
    assert run.said().endswith("ended at once\n")
    assert "Traceback" not in run.said()
    assert gone(child)
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    Forked([*runs.pretrain(folder, out, EPOCHS), "--resume=last"], folder / f"{out.name}.log").finish()
    runs.assert_same_weights(folder / "whole" / "agent", out / "agent")


TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def two(folder: Path, out: Path) -> list[str]:
    return [*(word for word in runs.pretrain(folder, out, EPOCHS) if "--trainer.devices" not in word), *TWO]


@pytest.fixture(scope="module")
def whole_of_two(folder: Path) -> Path:
    Forked(two(folder, folder / "two"), folder / "two.log", 2).finish()
    return folder / "two"


@pytest.mark.parametrize(
    ("number", "everyone", "code"),
    [
        (signal.SIGTERM, True, 143),
        (signal.SIGTERM, False, 143),
        pytest.param(signal.SIGINT, True, 130, marks=pytest.mark.faults),
    ],
)
def test_two_processes_end_and_go_on(folder: Path, whole_of_two: Path, number: int, everyone: bool, code: int) -> None:
    """As torchrun and Slurm signal them, all or the first alone: none waits for the other."""
    out = folder / f"two-{code}-{everyone}"
    run = Forked(two(folder, out), folder / f"{out.name}.log", 2)
    assert run.wait_for(lambda: len(runs.rows(out, "train/loss")) > 10)
    run.signal(number, everyone)
    codes = run.end()
    assert codes[0] == code, run.said()
    assert codes[1] == code if everyone else codes[1] != 0
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    assert not (out / "agent").exists()
    Forked([*two(folder, out), "--resume=last"], folder / f"{out.name}.log", 2).finish()
    runs.assert_same_weights(whole_of_two / "agent", out / "agent")


@pytest.mark.faults
def test_a_run_ends_the_processes_that_it_started(folder: Path, whole_of_two: Path) -> None:
    """The second process is started by the first one, which alone is told."""
    out = folder / "started"
    run = runs.Process(two(folder, out), folder / "started.log")
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
    while len(runs.rows(out, "train/loss")) <= 10:
        assert run.process.poll() is None, run.log.read_text()[-3000:]
    others = [int(each) for each in children.read_text().split()]
    assert others
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.process.wait(60) == 143, run.log.read_text()[-3000:]
    assert all(gone(each) for each in others)
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    runs.Process([*two(folder, out), "--resume=last"], folder / "started.log").finish()
    runs.assert_same_weights(whole_of_two / "agent", out / "agent")
