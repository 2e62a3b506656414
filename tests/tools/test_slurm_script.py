"""`train.sbatch`, run by a shell: a false `srun` writes down what it is asked, a false `scontrol` too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "slurm" / "train.sbatch"
JOB = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "3"}


def run(
    folder: Path, *words: str, code: int = 0, refuse: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    texts = {
        "srun": f'echo "$OMP_NUM_THREADS $@" >> {folder}/ran.txt; exit {code}',
        "scontrol": f'echo "$@" >> {folder}/asked.txt; exit {int(refuse)}',
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMP_", "LIT_ALIGN"))}
    environment = {**clean, **JOB, **more, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(["bash", str(SCRIPT), *words], capture_output=True, text=True, env=environment, check=False)


def ran(folder: Path) -> str:
    return (folder / "ran.txt").read_text().strip()


SRUN = "3 --kill-on-bad-exit=1 --cpus-per-task=3 lit-align"


def test_a_stage_is_told_what_slurm_was_told_and_no_more(tmp_path):
    assert run(tmp_path, "pretrain", "fit", "--out", "x").returncode == 0
    assert ran(tmp_path) == f"{SRUN} pretrain fit --out x --trainer.num_nodes 2 --trainer.devices 4"


@pytest.mark.parametrize("words", [["--trainer.devices=1"], ["--trainer.devices", "1"], ["--resume", "some/last.ckpt"]])
def test_what_the_person_says_wins(tmp_path, words):
    assert run(tmp_path, "align", "fit", "--trainer.num_nodes=1", *words).returncode == 0
    told = ran(tmp_path).split()
    assert sum(word.startswith("--trainer.num_nodes") for word in told) == 1
    assert sum(word.startswith("--trainer.devices") for word in told) == 1
    assert [word for word in told if word.startswith("--resume")] == [w for w in words if w == "--resume"]


def test_other_verbs_are_left_as_they_are(tmp_path):
    assert run(tmp_path, "evaluate", "an/agent", "--episodes", "9").returncode == 0
    assert ran(tmp_path) == f"{SRUN} evaluate an/agent --episodes 9"


def test_where_the_run_could_not_requeue_its_job_the_script_does(tmp_path):
    assert run(tmp_path, "pretrain", "fit", code=76).returncode == 75
    array = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3"}
    assert run(tmp_path, "pretrain", "fit", code=76, **array).returncode == 75
    assert (tmp_path / "asked.txt").read_text().splitlines() == ["requeue 7", "requeue 6_3"]
    done = run(tmp_path, "pretrain", "fit", code=76, refuse=True)
    assert (done.returncode, "submit the same command again with --resume last" in done.stderr) == (76, True)


@pytest.mark.parametrize("code", [0, 1, 75])
def test_a_job_that_was_cancelled_or_failed_is_not_requeued(tmp_path, code):
    assert run(tmp_path, "pretrain", "fit", code=code).returncode == code
    assert not (tmp_path / "asked.txt").exists()


def test_without_words_it_says_how_it_is_called(tmp_path):
    done = run(tmp_path)
    assert (done.returncode, "usage: sbatch" in done.stderr) == (2, True)
