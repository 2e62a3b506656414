"""What a run's folder says of the job it ran in, and what is known of it from another machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lit_align import slurm
from lit_align.commands.environment import environment, is_gone, processes, this_process
from lit_align.commands.run_folder import RunFolder
from lit_align.commands.runs import describe, table

SQUEUE = """#!/bin/sh
echo "$@" >> {folder}/asked.txt
case "$*" in
*--jobs=1*) echo RUNNING ;;
*--jobs=2*) echo TIMEOUT ;;
*--jobs=3*) echo PENDING ;;
*--jobs=4*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1 ;;
*--jobs=5*) echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1 ;;
*--clusters=none*) echo "'none' can't be reached now" >&2; exit 1 ;;
*--clusters=some*) echo "CLUSTER: some"; echo RUNNING ;;
*) echo FAILED ;;
esac
"""


@pytest.fixture
def login(tmp_path: Path, monkeypatch: Any) -> Path:
    """A machine with a false `squeue`, and no job."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "squeue"
    script.write_text(SQUEUE.format(folder=tmp_path))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_")] + ["WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_run_in_a_job_says_which_and_how_many_processes_it_has(login: Path, monkeypatch: Any) -> None:
    assert (processes(), this_process()["slurm"], environment([], "now")["slurm"]) == (1, None, None)
    facts = {"JOB_ID": "42", "JOB_NAME": "x", "CLUSTER_NAME": "some", "RESTART_COUNT": "2", "NTASKS": "16"}
    for name, value in facts.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    told = {"job": "42", "cluster": "some", "restarts": "2"}
    assert this_process()["slurm"] == told
    found = environment([], "now")
    assert (found["slurm"], found["processes"]) == (told, 16)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")  # of a job's tasks, `srun` may start fewer
    assert processes() == 8
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun, in one of them
    assert processes() == 2


@pytest.mark.parametrize(
    ("job", "cluster", "state"),
    [
        ("1", None, "running"),
        ("2", None, "killed"),
        ("3", None, "killed"),  # it waits for its next start: the process is gone
        ("4", None, "killed"),  # Slurm has forgotten it
        ("5", None, "unknown"),
        ("6", "some", "running"),
        ("6", "none", "killed"),  # `squeue` knows no clusters
        (None, None, "unknown"),
    ],
)
def test_of_a_run_on_another_machine_slurm_is_asked(
    login: Path, capsys: Any, job: str | None, cluster: str | None, state: str
) -> None:
    folder = RunFolder(login / "run")
    folder.path.mkdir()
    elsewhere = {**this_process(), "boot": "another's", "machine": "another"}
    elsewhere["slurm"] = None if job is None else {"job": job, "cluster": cluster}
    folder.write_run(stage="pretrain", state="running", process=elsewhere)
    folder.write("metrics.csv", "step,seconds\n4,2.5\n")
    found = describe(folder.path)
    assert (found["state"], found["step"], found["seconds"]) == (state, 5, 2.5)
    assert state in table([found])
    assert json.loads((folder.path / "run.json").read_text())["process"]["slurm"] == elsewhere["slurm"]


def test_without_squeue_nobody_knows(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.is_over("1") is None
    elsewhere = {**this_process(), "boot": "another's", "machine": "another", "slurm": {"job": "1"}}
    assert is_gone(elsewhere) is None
