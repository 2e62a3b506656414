"""A run that is told to make room stops where it goes on exactly, on all its processes alike."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]

from lit_align.cli import main
from lit_align.errors import UserError
from lit_align.slurm import NOT_REQUEUED, PREEMPTED
from lit_align.stages.agreement import Agreement
from lit_align.stages.preemption import Preemption
from tests.stages.runs import CPU, ROOT, align, assert_same_weights, in_job, inputs, pretrain, rows

COLUMNS = ("iteration", "frames", "train/loss", "val/loss")


@pytest.fixture
def folder(tmp_path):
    return inputs(tmp_path)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """This process as the only task of a Slurm job, with a `scontrol` that writes down what it was asked."""
    asked = tmp_path / "asked.txt"
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {asked}\ntest ! -e {tmp_path}/refuse || {{ echo no >&2; exit 1; }}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    in_job(monkeypatch)
    return lambda: asked.read_text().splitlines() if asked.is_file() else []


class Send(pl.Callback):
    """Signals its own process before an optimizer step, or in a validation.

    Args:
        step: optimizer steps before the signal.
        name: of the signal.
        rank: of the process that is signalled.
        validation: whether to wait for the next validation.
        wait_for: a file without which the batch does not end.
        die: whether the next validation breaks off.
    """

    def __init__(
        self,
        step: int,
        name: str = "SIGUSR1",
        rank: int = 0,
        validation: bool = False,
        wait_for: str = "",
        die: bool = False,
    ) -> None:
        self.step, self.name, self.rank, self.validation, self.wait_for = step, name, rank, validation, wait_for
        self.die = die
        self.sent = False
        self.environment: object = None

    def _send(self, trainer: pl.Trainer) -> None:
        if self.sent or trainer.global_step < self.step or trainer.global_rank != self.rank:
            return
        self.sent = True
        os.kill(os.getpid(), signal.Signals[self.name])
        while self.wait_for and not Path(self.wait_for).exists():
            signal.sigtimedwait([], 0.02)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step and not self.validation:
            self._send(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: object) -> None:
        if self.validation:
            self._send(trainer)
        if self.die and self.sent:
            raise RuntimeError("pulled the plug")


def send(step: int, *more: str) -> list[str]:
    words = ["--trainer.callbacks+=tests.stages.test_preemption.Send", f"--trainer.callbacks.step={step}"]
    return [*words, *(f"--trainer.callbacks.{word}" for word in more)]


def grace(seconds: float) -> list[str]:
    return ["--trainer.callbacks+=lit_align.stages.preemption.Preemption", f"--trainer.callbacks.grace={seconds}"]


def saved_step(out: Path) -> int:
    return int(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def state(out: Path) -> str:
    return str(json.loads((out / "run.json").read_text())["state"])


def assert_same_run(one: Path, other: Path, what: str = "agent") -> None:
    assert_same_weights(one / what, other / what)
    for column in COLUMNS:
        assert rows(one, column) == rows(other, column)


EVERY_OTHER = ["--trainer.accumulate_grad_batches=2"]
HALF_WAY = ["--trainer.val_check_interval=4"]


@pytest.mark.parametrize(
    ("more", "sent", "saved"),
    [
        ([], send(2), 3),
        ([], send(7), 8),  # the last batch of an epoch: its validation, and the epoch's checkpoint, come before the end
        ([], send(8, "validation=true"), 8),
        (EVERY_OTHER, send(1), 2),
        (HALF_WAY, send(3), 5),  # half an epoch's validation is between
    ],
)
def test_an_offline_stage_saves_at_the_batchs_end_and_goes_on_exactly(folder, more, sent, saved):
    assert main([*pretrain(folder, folder / "whole"), *more]) == 0
    out = folder / "told"
    assert main([*pretrain(folder, out), *more, *sent]) == PREEMPTED
    assert state(out) == "preempted"
    assert saved_step(out) == saved
    assert not (out / "agent").exists()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert main([*pretrain(folder, out), *more, "--resume=auto"]) == 0
    assert state(out) == "finished"
    assert_same_run(folder / "whole", out)
    assert len(rows(out, "train/loss")) > saved


def test_a_validation_that_was_due_and_broke_off_is_not_lost(folder):
    """Nothing is saved between a batch and the validation after it, half an epoch's or a whole one's."""
    assert main([*pretrain(folder, folder / "whole"), *HALF_WAY]) == 0
    for step in (3, 7):
        out = folder / f"told{step}"
        with pytest.raises(RuntimeError, match="pulled the plug"):
            main([*pretrain(folder, out), *HALF_WAY, *send(step, "die=true")])
        assert main([*pretrain(folder, out), *HALF_WAY, "--resume=auto"]) == 0
        assert_same_run(folder / "whole", out)


def test_a_signal_in_the_last_epoch_of_a_run_that_is_as_good_as_done_changes_nothing(folder):
    assert main([*pretrain(folder, folder / "run", epochs=1), *send(7)]) == 0
    assert state(folder / "run") == "finished"
    assert (folder / "run" / "agent").is_dir()


@pytest.mark.parametrize(
    ("more", "saved"),
    [
        ([], 4),  # the border is a few batches away
        (grace(0.001), 0),  # there is no time for them: the iteration is played again
    ],
)
def test_align_stops_at_a_border_or_plays_the_iteration_again(folder, more, saved):
    assert main(align(folder, folder / "whole")) == 0
    out = folder / "told"
    assert main([*align(folder, out), *send(1), *more]) == PREEMPTED
    assert (saved_step(out) if (out / "checkpoints" / "last.ckpt").is_file() else 0) == saved
    assert len(rows(out, "iteration")) == saved / 4
    assert main([*align(folder, out), "--resume=auto"]) == 0
    assert_same_run(folder / "whole", out)


@pytest.mark.parametrize("verb", ["finetune", "reward", "prefer"])
def test_every_offline_stage_does(folder, verb):
    compare = [f"--trajectories={folder / 'play'}", f"--out={folder / 'pairs'}", "--comparisons=40"]
    assert main(["compare", *compare, "--test_comparisons=8", "--rule.name=left", "--rule.ranking=[[left]]"]) == 0
    data = [f"--data.preferences={folder / 'pairs'}"]
    if verb == "finetune":
        data = [f"--data.trajectories=[{folder / 'play'}]", "--data.batch_size=4"]
    same = [verb, "fit", f"--init_from={folder / 'base' / 'agent'}", *CPU, *data, "--trainer.max_epochs=2"]
    assert main([*same, f"--out={folder / 'whole'}"]) == 0
    total = saved_step(folder / "whole")
    assert main([*same, f"--out={folder / 'told'}", *send(total // 2 - 1)]) == PREEMPTED
    assert 0 < saved_step(folder / "told") < total
    assert main([*same, f"--out={folder / 'told'}", "--resume=auto"]) == 0
    assert_same_run(folder / "whole", folder / "told", "reward_model" if verb == "reward" else "agent")


def test_the_job_is_requeued_and_the_same_command_goes_on(folder, job, monkeypatch, capsys):
    assert main([*pretrain(folder, folder / "run"), *send(2)]) == PREEMPTED
    assert job() == ["requeue 42"]
    assert main(pretrain(folder, folder / "run")) == 2
    assert "holds a run already (state: preempted)" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(pretrain(folder, folder / "run")) == 0
    assert len(job()) == 1
    assert main(pretrain(folder, folder / "fresh")) == 0  # a requeued job may have nothing to go on from
    assert_same_run(folder / "fresh", folder / "run")


@pytest.mark.parametrize("begins", ["--overwrite=true", "--resume=PATH"])
def test_a_requeued_job_goes_on_from_its_own_checkpoint_however_it_first_began(folder, job, monkeypatch, begins):
    out = folder / f"own{begins[2:8]}"
    assert main(pretrain(folder, out)) == 0  # another job's
    shutil.copy(out / "checkpoints" / "last.ckpt", folder / "before.ckpt")
    monkeypatch.setenv("SLURM_JOB_ID", "43")
    run = [*pretrain(folder, out), begins.replace("PATH", str(folder / "before.ckpt")), "--trainer.max_epochs=4"]
    first = 2 if "overwrite" in begins else saved_step(out) + 2
    assert main([*run, *send(first)]) == PREEMPTED
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main([*run, *send(first - 1)]) == 0  # a step that it has behind it
    assert state(out) == "finished"


def test_a_task_of_a_job_array_is_requeued_alone_and_a_refusal_is_told(folder, job, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    (folder / "refuse").touch()
    assert main([*pretrain(folder, folder / "run"), *send(2)]) == NOT_REQUEUED
    assert job() == ["requeue 40_3"]
    assert "job 40_3 was not requeued (no); submit it again" in capsys.readouterr().err
    assert saved_step(folder / "run") == 3


def test_a_job_that_is_ended_is_saved_and_not_requeued(folder, job):
    assert main([*pretrain(folder, folder / "run"), *send(2, "name=SIGTERM")]) == PREEMPTED
    assert job() == []
    assert (saved_step(folder / "run"), state(folder / "run")) == (3, "preempted")


def test_a_job_whose_batch_does_not_end_in_time_is_requeued_all_the_same(folder, job):
    stuck = send(2, f"wait_for={folder / 'asked.txt'}")
    assert main([*pretrain(folder, folder / "run"), *stuck, *grace(0.1)]) == PREEMPTED
    assert job() == ["requeue 42"]  # once


class Slow(pl.Callback):
    """A checkpoint takes longer than there is time."""

    def on_save_checkpoint(self, trainer: Any, *_: object) -> None:
        (told,) = (each for each in trainer.callbacks if isinstance(each, Preemption))
        if told._deadline is not None:
            told._deadline = time.monotonic() - 1
            time.sleep(3.0)  # in which the watch looks at the clock


def test_a_checkpoint_that_is_being_written_is_not_cut_off(folder, job, caplog):
    slow = "--trainer.callbacks+=tests.stages.test_preemption.Slow"
    assert main([*pretrain(folder, folder / "run"), *send(2), slow]) == PREEMPTED
    assert job() == ["requeue 42"]
    assert (saved_step(folder / "run"), state(folder / "run")) == (3, "preempted")
    assert "no batch ended in time" not in caplog.text


def test_a_job_that_ends_now_is_requeued_whatever_is_being_written(job, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 100))
    told = Preemption(grace=1e6)
    told._on_signal(signal.SIGUSR1, None)
    told._saving = True
    assert not told._is_late()
    now = time.monotonic()
    later = SimpleNamespace(time=time.time, monotonic=lambda: now + 95)
    monkeypatch.setattr("lit_align.stages.preemption.time", later)
    assert told._is_late()
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) - 100))  # its time was extended since
    late = Preemption(grace=1e6)
    late._on_signal(signal.SIGUSR1, None)
    assert not late._is_late()


def records(path: Path) -> Iterator[Any]:
    """What an offline W&B run wrote down: a log as LevelDB has it, blocks of 32 KiB, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768  # too little is left of the block for another header
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            yield messages.Record.FromString(whole)
            whole = b""


def preempting(run: Path) -> list[tuple[bool, int]]:
    """Of each W&B run of a folder: whether it was marked before it ended, and its exit code."""
    paths = list(run.glob("wandb/offline-run-*/*.wandb"))
    found: list[tuple[bool, int]] = []
    deadline = time.monotonic() + 60
    while len(found) < len(paths) and time.monotonic() < deadline:  # its own process may be behind with writing
        found = []
        for path in paths:
            marked = False
            for record in records(path):
                kind = record.WhichOneof("record_type")
                marked = marked or kind == "preempting"
                if kind == "exit":
                    found.append((marked, record.exit.exit_code))
    return sorted(found)


def test_a_requeued_job_goes_on_in_its_wandb_run_which_was_marked(folder, job, monkeypatch):
    out = folder / "run"
    argv = [*pretrain(folder, out), "--wandb=offline"]
    assert main([*argv, *send(2)]) == PREEMPTED
    assert job() == ["requeue 42"]
    assert preempting(out) == [(True, 1)]  # shown as failed, were it not marked before it ended
    kept = json.loads((out / "run.json").read_text())["wandb"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(argv) == 0
    # Of two that begin in the same second, W&B calls one ...-ID-1.
    names = [path.name.split("-")[3] for path in (out / "wandb").glob("offline-run-*")]
    assert (names, json.loads((out / "run.json").read_text())["wandb"]) == ([kept, kept], kept)
    assert preempting(out) == [(False, 0), (True, 1)]
    told = json.loads((out / "environment.json").read_text())
    assert (told["slurm"], told["earlier"][0]["slurm"]) == (
        {"job": "42", "restarts": "1"}, {"job": "42", "restarts": "0"}
    )  # fmt: skip


class Environment(pl.Callback):
    """Notes what Lightning takes the cluster for."""

    seen: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        asks = trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor
        self.seen.append((trainer._accelerator_connector.cluster_environment, asks.__module__))


def test_lightnings_own_requeue_and_its_question_before_every_batch_are_off(folder, job):
    Environment.seen.clear()
    note = "--trainer.callbacks+=tests.stages.test_preemption.Environment"
    assert main([*pretrain(folder, folder / "run", epochs=1), note]) == 0
    ((found, asks),) = Environment.seen
    assert isinstance(found, SLURMEnvironment)
    assert not found.auto_requeue
    # Lightning's waits for the GPU; under another name it would be back unseen.
    assert asks == "lit_align.stages.preemption"
    assert "_broadcast_sigterm_tensor" in inspect.getsource(_TrainingEpochLoop.advance)


def reduced(told: list[list[int]], device: Any, monkeypatch: Any) -> list[list[int]]:
    """What one process is told, whose every asking another one answers with a 1 in the second place."""

    def all_reduce(values: torch.Tensor, op: Any, async_op: bool) -> Any:
        values[1] = max(int(values[1]), 1)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    asked = Agreement()
    return [asked.ask(values, device, wait=bool(wait)) for *values, wait in told]


def test_what_was_asked_is_answered_when_it_is_asked_again(monkeypatch):
    told = [[2, 0, False], [0, 0, False], [1, 0, False], [0, 0, True], [0, 0, False]]
    assert reduced(told, torch.device("cpu"), monkeypatch) == [[0, 0], [2, 1], [0, 1], [0, 1], [0, 0]]


def test_a_signal_that_comes_while_the_processes_agree_is_not_lost():
    told = Preemption()

    def ask(*_: Any) -> list[int]:
        told._on_signal(signal.SIGUSR1, None)
        return [0, 0]

    told._agreement = SimpleNamespace(ask=ask)  # type: ignore[assignment]
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    assert told._agree(trainer, 0) == 0
    assert told._requeue


@pytest.mark.parametrize("name", ["SIGNAL9", "SIGKILL"])
def test_a_signal_that_cannot_be_waited_for_is_refused(name):
    with pytest.raises(UserError, match=f"there is no signal '{name}' to wait for"):
        Preemption(requeue_on=[name])


TWO = """
import sys
sys.path[:0] = [{root!r}, {support!r}]
from lit_align import slurm
from lit_align.commands.stage import run_stage
from lit_align.errors import Preempted
from tiny_stage import CLASSES
try:
    run_stage("pretrain", sys.argv[2:], CLASSES)
except Preempted as stop:
    open(f"{out}/rank{{stop.rank}}.txt", "w").write(str(stop))
    sys.exit(slurm.leave(stop))
"""


@pytest.mark.slow
def test_two_processes_agree_on_the_batch_though_only_the_second_was_told(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT), support=str(ROOT / "tests" / "support"), out=tmp_path))
    two = [f"--out={tmp_path / 'run'}", "--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.max_epochs=2"]
    command = [sys.executable, str(script), "pretrain", "fit", *two, *send(5, "rank=1")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == PREEMPTED, done.stderr[-3000:]
    said = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
    # They ask each other at the end of step 6, and hear of it at the end of the next.
    assert said == ["stopped at optimizer step 7"] * 2
    assert saved_step(tmp_path / "run") == 7
    assert state(tmp_path / "run") == "preempted"
