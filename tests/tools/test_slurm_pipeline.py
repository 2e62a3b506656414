"""A pipeline as Slurm jobs: a false `sbatch` writes down what it is asked, a false `srun` runs it."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path

import pytest

from lit_align.errors import Preempted
from lit_align.workers import Result, Task, WorkerPool
from tools.slurm.pipeline import main

PIPELINE = """
out: {out}
seed: 0
jobs: {jobs}
stages:
  play: {{run: collect, args: {{episodes: 2}}}}
  pretrain: {{run: pretrain fit, args: {{data.trajectories: ["${{stage:play}}"]}}}}
  finetune:
    run: finetune fit
    args: {{init_from: "${{stage:pretrain}}/agent", data.trajectories: ["${{stage:play}}"]}}
"""
SBATCH = """#!/bin/sh
printf '%s\\n' "$@" "" >> {asked}
test ! -e {refuse} || {{ echo "no such partition" >&2; exit 1; }}
echo "$((100 + $(grep -c '^$' {asked})));cluster"
"""
SRUN = """#!/bin/sh
echo "$@" >> {ran}
echo "$OMP_NUM_THREADS $MKL_NUM_THREADS $LIT_ALIGN_CORES" >> {threads}
test ! -e {signal} || {{ kill -USR1 $PPID; sleep 9; }}
exit $(cat {code} 2>/dev/null || echo 0)
"""

SCONTROL = """#!/bin/sh
echo "$@" >> {requeued}
"""


@pytest.fixture(params=[1, 2])
def place(tmp_path, monkeypatch, request):
    file = tmp_path / "three.yaml"
    file.write_text(PIPELINE.format(out=tmp_path / "run", jobs=request.param))
    (tmp_path / "bin").mkdir()
    names = {
        name: tmp_path / f"{name}.txt" for name in ("asked", "refuse", "ran", "code", "signal", "requeued", "threads")
    }
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text.format(**names))
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def asked(place: Path) -> list[dict[str, str]]:
    """The options of each `sbatch`, by name."""
    if not (place / "asked.txt").is_file():
        return []
    jobs = (place / "asked.txt").read_text().strip("\n").split("\n\n")
    return [dict(word.removeprefix("--").partition("=")[::2] for word in job.split("\n")) for job in jobs]


def submit(place: Path, *more: str) -> int:
    return main(["--config", str(place / "three.yaml"), *more])


def test_each_stage_is_a_job_that_waits_for_what_it_needs(place, capsys):
    assert submit(place, "--partition", "gpu", "--set", "pretrain.ntasks-per-node=8", "--set", "pretrain.gpus=8") == 0
    play, pretrain, finetune = asked(place)
    assert play["dependency"] == "singleton"
    assert pretrain["dependency"] == "afterok:101,singleton"
    assert finetune["dependency"] == "afterok:101:102,singleton"
    assert {job["partition"] for job in (play, pretrain, finetune)} == {"gpu"}
    assert (pretrain["ntasks-per-node"], pretrain["gpus"]) == ("8", "8")
    assert (finetune["ntasks-per-node"], "gpus" in finetune) == ("1", False)
    assert pretrain["job-name"].endswith("run.pretrain")
    assert (play["signal"], play["requeue"], play["kill-on-invalid-dep"]) == ("USR1@120", "", "yes")
    words = shlex.split(finetune["wrap"])
    assert words[-4:] == ["--config", str(place / "three.yaml"), "--inside", "finetune"]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["play 101", "pretrain 102 after play", "finetune 103 after play, pretrain"]


def test_resources_come_from_a_file_too(place):
    (place / "resources.yaml").write_text(
        "default: {partition: cpu, time: '1:00:00', exclusive: true}\n"
        "stages:\n  pretrain: {nodes: 2, gres: 'gpu:4', exclusive: false}\n"
    )
    assert submit(place, "--resources", str(place / "resources.yaml"), "--time", "2:00:00") == 0
    play, pretrain, _ = asked(place)
    assert (play["partition"], play["time"], play["nodes"], play["exclusive"]) == ("cpu", "2:00:00", "1", "")
    assert (pretrain["nodes"], pretrain["gres"], "exclusive" in pretrain) == ("2", "gpu:4", False)


def test_a_dry_run_shows_the_commands_and_does_nothing(place, capsys):
    assert submit(place, "--dry_run") == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["play", "pretrain", "finetune"]
    assert all(line[1] == "sbatch" for line in lines)
    assert "--dependency=afterok:<play>:<pretrain>,singleton" in lines[2]
    assert asked(place) == []
    assert not (place / "run").exists()


def as_job(monkeypatch: pytest.MonkeyPatch, tasks: int = 1) -> None:
    facts = {"JOB_ID": "7", "JOB_NAME": "x", "NNODES": "1", "NTASKS_PER_NODE": str(tasks), "PROCID": "0"}
    for name, value in facts.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def make_folder(place: Path, stage: str) -> None:
    """What the false `srun` does not do."""
    (place / "run" / stage).mkdir(parents=True, exist_ok=True)


def state(place: Path, stage: str) -> str:
    return str(json.loads((place / "run" / ".pipeline" / f"{stage}.json").read_text())["state"])


def test_in_its_job_a_stage_runs_in_the_jobs_tasks_and_what_is_done_is_not_submitted_again(place, monkeypatch, capsys):
    with monkeypatch.context() as job:
        as_job(job, tasks=4)
        assert submit(place, "--inside", "play") == 0
        make_folder(place, "play")
        assert submit(place, "--inside", "pretrain") == 0
        make_folder(place, "pretrain")
    first, second = (place / "ran.txt").read_text().splitlines()
    assert first.startswith("--nodes=1 --ntasks=1 ")
    assert "-m lit_align collect --out" in first
    assert second.startswith("--kill-on-bad-exit=1 ")
    assert second.endswith("--trainer.num_nodes=1 --trainer.devices=4")
    assert sorted(json.loads((place / "run" / "timings.json").read_text())) == ["play", "pretrain"]
    capsys.readouterr()
    assert submit(place) == 0
    assert [job["dependency"] for job in asked(place)] == ["singleton"]  # finetune, which need not wait
    assert capsys.readouterr().out.split() == ["play", "same", "pretrain", "same", "finetune", "101"]


def test_a_stage_that_is_preempted_goes_on_and_one_that_fails_fails(place, monkeypatch):
    as_job(monkeypatch)
    assert submit(place, "--inside", "play") == 0
    make_folder(place, "play")
    (place / "code.txt").write_text("75")
    assert submit(place, "--inside", "pretrain") == 75
    assert state(place, "pretrain") == "running"
    (place / "code.txt").write_text("9")
    assert submit(place, "--inside", "pretrain") == 1
    assert state(place, "pretrain") == "failed"
    first, again = (place / "ran.txt").read_text().splitlines()[1:]
    assert "--resume" not in first
    assert " --resume auto " in again


def test_a_pipeline_that_is_told_to_make_room_stops_and_is_requeued(place, monkeypatch):
    as_job(monkeypatch)
    (place / "signal.txt").touch()
    assert submit(place, "--inside", "play") == 75
    assert (place / "requeued.txt").read_text() == "requeue 7\n"
    assert state(place, "play") == "running"
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_task_has_the_threads_of_its_own_cores_and_not_of_the_whole_job(place, monkeypatch):
    as_job(monkeypatch, tasks=2)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setattr("lit_align.scheduler.cores", lambda: 2)  # of the batch script's process: all tasks' of its node
    assert submit(place, "--inside", "play") == 0
    assert (place / "threads.txt").read_text() == "1 1 1\n"
    assert "--cpus-per-task=1" in (place / "ran.txt").read_text()
    assert "OMP_NUM_THREADS" not in (place / "ran.txt").read_text()


def test_a_stage_that_could_not_have_its_job_requeued_has_it_done_from_outside(place, monkeypatch):
    as_job(monkeypatch)
    (place / "code.txt").write_text("76")
    assert submit(place, "--inside", "play") == 75
    assert (place / "requeued.txt").read_text() == "requeue 7\n"
    assert state(place, "play") == "running"


def _results(pool: WorkerPool) -> list[Result]:
    while not (found := pool.wait(lambda: None)):
        pass
    return found


def _make_room(argv: list[str]) -> None:
    raise Preempted("told to", requeue=True)


def test_a_worker_that_is_told_to_make_room_says_so_and_does_not_fail(tmp_path):
    with WorkerPool(2, _make_room, _make_room) as pool:
        pool.submit(Task("one", [], tmp_path / "log.txt", 1))
        with pytest.raises(Preempted, match="told to") as stop:
            _results(pool)
    assert stop.value.requeue


def test_a_stage_whose_needs_are_not_done_does_not_start(place, monkeypatch, capsys):
    as_job(monkeypatch)
    assert submit(place, "--inside", "pretrain") == 2
    assert "stage pretrain needs play, which is not done" in capsys.readouterr().err
    assert not (place / "ran.txt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "pretrian.gpus=1"], "resources of 'pretrian': there is no such stage; there are play, pretrain"),
        (["--set", "gpus=1"], "--set gpus=1: expected STAGE.OPTION=VALUE"),
        (["--resources", "nowhere.yaml"], "--resources nowhere.yaml cannot be read"),
        (["--stages.play.args.epizodes", "3"], "epizodes"),
    ],
)
def test_mistakes_are_told_before_anything_is_submitted(place, capsys, words, said):
    assert submit(place, *words) == 2
    assert said in capsys.readouterr().err
    assert asked(place) == []


def test_a_refusal_is_told(place, capsys):
    (place / "refuse.txt").touch()
    assert submit(place) == 2
    assert "sbatch refused stage play: no such partition" in capsys.readouterr().err
