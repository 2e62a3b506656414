"""Processes that Slurm or torchrun started are as many as the Trainer counts on, or nothing is begun."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]

from lit_align.cli import main
from lit_align.stages.launched import slurm_environment
from tests.stages.runs import ROOT, in_job, inputs, pretrain


class Mine(SLURMEnvironment, ClusterEnvironment):
    """A cluster environment of one's own."""


def in_torchrun(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    ranks = {"WORLD_SIZE": processes, "RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0}
    for name, value in ({f"TORCHELASTIC_{name}": "0" for name in ("RUN_ID", "RESTART_COUNT")} | ranks).items():
        monkeypatch.setenv(name, str(value))


def test_torchrun_in_a_job_knows_its_own_processes(monkeypatch):
    in_job(monkeypatch)
    (found,) = slurm_environment([])
    assert isinstance(found, SLURMEnvironment)
    in_torchrun(monkeypatch, 1)
    assert slurm_environment([]) == []  # Lightning takes torchrun's
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert slurm_environment([Mine()]) == []


@pytest.mark.parametrize("more", [[], ["--dry_run"]])
@pytest.mark.parametrize(
    ("started", "devices", "said"),
    [
        (lambda m: in_job(m, 2), 1, "srun started 2 processes; expected 1: --trainer.devices is 1"),
        (lambda m: in_job(m, 1), 2, "srun started 1 process; expected 2: --trainer.devices is 2"),
        (lambda m: in_torchrun(m, 3), 2, "torchrun started 3 processes; expected 2: --trainer.devices is 2"),
    ],
)
def test_another_number_of_processes_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, started, devices, said, more
):
    started(monkeypatch)
    assert main([*pretrain(inputs(tmp_path), tmp_path / "run"), f"--trainer.devices={devices}", *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_job_without_srun_has_one_process(tmp_path, monkeypatch, capsys):
    in_job(monkeypatch, 2)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert main([*pretrain(inputs(tmp_path), tmp_path / "run"), "--trainer.devices=2"]) == 2
    assert "started without srun, which makes 1 process; expected 2" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_in_a_job_of_one_task_has_its_two_processes(tmp_path, monkeypatch):
    """Slurm was told of one task, and torchrun starts two; Slurm's word would make both of them rank 0."""
    in_job(monkeypatch)
    folder = inputs(tmp_path)
    argv = [*pretrain(folder, folder / "run", epochs=1), "--trainer.devices=2", "--trainer.max_steps=2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "lit_align"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *argv], capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "run" / "environment.json").read_text())["processes"] == 2
    assert json.loads((folder / "run" / "run.json").read_text())["state"] == "finished"
