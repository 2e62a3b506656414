"""On a real Slurm of one node: jobs of two tasks that are signalled, requeued and go on as if nothing had been.

`make test-slurm` runs this; `make test` leaves it out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stages.runs import ROOT, align, assert_same_weights, inputs, pretrain, rows
from tools.slurm.local_cluster import LocalCluster, Unavailable

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
SCRIPT = ROOT / "tools" / "slurm" / "train.sbatch"
SECONDS = 900.0
EPOCHS = {"pretrain": 60, "align": 12}
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    try:
        started = LocalCluster().__enter__()
    except Unavailable as error:
        pytest.skip(f"Slurm cannot be had here: {error}")
    try:
        yield started
    finally:
        started.__exit__()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs(tmp_path_factory.mktemp("slurm"))


class Job:
    """A stage as a job of two tasks on one node."""

    def __init__(self, cluster: LocalCluster, argv: list[str], log: Path) -> None:
        self.cluster, self.log = cluster, log
        words = ["sbatch", "--parsable", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=30", f"--output={log}"]
        export = f"--export=ALL,LIT_ALIGN={sys.executable} -m lit_align,PYTHONPATH={ROOT}"
        self.number = cluster.run(*words, export, str(SCRIPT), *argv).strip()

    def state(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    def wait(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not seen():
            assert time.monotonic() < deadline, f"{self.state()}\n{self.said()}\n{self.cluster.logs()}"
            time.sleep(0.1)

    def finish(self) -> None:
        self.wait(lambda: self.state()["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"))
        assert self.state()["JobState"] == "COMPLETED", self.said()

    def said(self) -> str:
        return self.log.read_text()[-3000:] if self.log.is_file() else ""


@pytest.mark.parametrize(("stage", "column"), [(pretrain, "train/loss"), (align, "iteration")])
def test_a_job_that_is_signalled_is_requeued_and_ends_with_the_same_weights(cluster, folder, stage, column):
    verb = stage.__name__
    whole, told = folder / f"{verb}_whole", folder / f"{verb}_told"
    job = Job(cluster, [*stage(folder, told, EPOCHS[verb]), *TWO], folder / f"{verb}_told.log")
    job.wait(lambda: len(rows(told, column)) >= 3 or job.state()["JobState"] != "RUNNING" and told.exists())
    cluster.run("scancel", "--signal=USR1", job.number)  # to the tasks and not to the script, as `sbatch --signal` does
    job.wait(lambda: job.state()["JobState"] == "PENDING")
    assert json.loads((told / "run.json").read_text())["state"] == "preempted", job.said()
    assert not (told / "agent").exists()
    before = len(rows(told, column))
    job.finish()
    assert job.state()["Restarts"] == "1"
    assert "start 2: lit-align" in job.log.read_text()
    Job(cluster, [*stage(folder, whole, EPOCHS[verb]), *TWO], folder / f"{verb}_whole.log").finish()
    assert_same_weights(whole / "agent", told / "agent")
    assert rows(told, column) == rows(whole, column)
    assert 0 < before < len(rows(whole, column))
    assert json.loads((told / "run.json").read_text())["state"] == "finished"
    for run in (told, whole):  # and not two runs of one process each, that write over one another
        assert json.loads((run / "environment.json").read_text())["processes"] == 2


def test_tasks_that_would_each_train_alone_are_refused(cluster, folder):
    job = Job(cluster, pretrain(folder, folder / "alone"), folder / "alone.log")  # as `--trainer.devices=1`
    job.wait(lambda: job.state()["JobState"] == "FAILED")
    assert "srun started 2 processes; expected 1: --trainer.devices is 1" in job.said()
    assert not (folder / "alone").exists()
