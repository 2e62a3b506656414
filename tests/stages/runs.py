"""Tiny runs of real stages: the folders that they need, in this process or in one that can be killed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_align.cli import main
from lit_align.models.reward import RewardModel
from tests.helpers import TINY, made_up, record, tiny_agent

ROOT = Path(__file__).parents[2]
CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.log_every_n_steps=1"]
BACKBONE = [f"--model.backbone.{name}={value}" for name, value in TINY.to_dict().items() if value is not None]
CLOCKED = ("_per_s", "train/data_wait", "train/tflops", "train/mfu", "train/memory_mb")
"""Ends of the columns that no two runs share."""
WORLD = "tests.helpers:LitAlign-test/Light-v0"


def inputs(folder: Path) -> Path:
    """`play/` (24 episodes), `base/agent/` and `judge/reward_model/` in a folder."""
    record(folder / "play", [made_up(i, 5 + i % 9, outcome=("left", "none")[i % 2]) for i in range(24)])
    tiny_agent().save(folder / "base" / "agent")
    RewardModel.from_agent(tiny_agent(1)).save(folder / "judge" / "reward_model")
    return folder


def pretrain(folder: Path, out: Path, epochs: int = 2) -> list[str]:
    data = [f"--data.trajectories=[{folder / 'play'}]", "--data.batch_size=4", "--data.window=8"]
    return ["pretrain", "fit", f"--out={out}", *data, *BACKBONE, *CPU, f"--trainer.max_epochs={epochs}"]


def align(folder: Path, out: Path, epochs: int = 2) -> list[str]:
    model = [f"--init_from={folder / 'base' / 'agent'}", f"--model.reward_model={folder / 'judge' / 'reward_model'}"]
    data = [f"--data.env={WORLD}", "--data.worlds=3", "--data.episodes=8", "--data.minibatches=2", "--data.epochs=2"]
    trainer = [*CPU, f"--trainer.max_epochs={epochs}", "--trainer.limit_val_batches=0"]
    return ["align", "fit", f"--out={out}", *model, *data, *trainer]


def finetune(folder: Path, out: Path, epochs: int = 2) -> list[str]:
    start = [f"--init_from={folder / 'base' / 'agent'}", f"--data.trajectories=[{folder / 'play'}]"]
    data = ["--data.batch_size=4", "--data.window=8"]
    return ["finetune", "fit", f"--out={out}", *start, *data, *CPU, f"--trainer.max_epochs={epochs}"]


def comparisons(folder: Path) -> Path:
    """`pairs/`, comparisons between the episodes of `play/`."""
    argv = ["compare", f"--trajectories={folder / 'play'}", f"--out={folder / 'pairs'}", "--comparisons=30"]
    assert main([*argv, "--test_comparisons=8", "--rule.name=left", "--rule.ranking=[[left]]"]) == 0
    return folder / "pairs"


def _on_pairs(verb: str, folder: Path, out: Path, epochs: int) -> list[str]:
    start = [f"--init_from={folder / 'base' / 'agent'}", f"--data.preferences={folder / 'pairs'}", "--data.pairs=5"]
    return [verb, "fit", f"--out={out}", *start, *CPU, f"--trainer.max_epochs={epochs}"]


def reward(folder: Path, out: Path, epochs: int = 2) -> list[str]:
    return _on_pairs("reward", folder, out, epochs)


def prefer(folder: Path, out: Path, epochs: int = 2) -> list[str]:
    return _on_pairs("prefer", folder, out, epochs)


def in_job(monkeypatch: pytest.MonkeyPatch, tasks: int = 1) -> None:
    """Makes this process the first task of a Slurm job on one node."""
    facts = {"JOB_ID": "42", "JOB_NAME": "train", "NTASKS": tasks, "NTASKS_PER_NODE": tasks, "NNODES": 1}
    for name, value in (facts | {"STEP_NUM_TASKS": tasks, "PROCID": 0, "LOCALID": 0, "NODEID": 0}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    for name in ("RESTART_COUNT", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "NODELIST"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)


class Process:
    """`python -m lit_align ARGV`."""

    def __init__(self, argv: list[str], log: Path, hash_seed: int = 0) -> None:
        self.log = log
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(hash_seed)}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lit_align", *argv], stdout=file, stderr=file, env={**os.environ, **environment}
            )

    def finish(self) -> None:
        assert self.process.wait(timeout=900) == 0, self.log.read_text()[-3000:]

    def kill_when(self, seen: Callable[[], bool]) -> None:
        """SIGKILL as soon as something is there; fails if the run ends before."""
        deadline = time.monotonic() + 900
        while not seen():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, "what the test waits for never came"
            time.sleep(0.005)
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL, "the run had ended before it was killed"


def rows(out: Path, column: str) -> list[dict[str, str]]:
    """The rows of `metrics.csv` that have a value in a column, without what a clock says."""
    if not (out / "metrics.csv").is_file():
        return []
    with (out / "metrics.csv").open(newline="") as file:
        kept = [row for row in csv.DictReader(file) if row.get(column)]
    return [{name: value for name, value in row.items() if not str(name).endswith(CLOCKED)} for row in kept]


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
