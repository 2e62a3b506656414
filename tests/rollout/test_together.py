"""Two processes of which one's worlds fail for good: both stop, with one error, and nobody waits in a collective."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lit_align.workers import descendants
from tests.stages.runs import Process, align, inputs
from tests.support.faulty_world import ID

REWARD = "tests.support.faulty_world:reward_refused_by_one"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def run(tmp_path: Path, more: list[str], rank: int, times: int = 99) -> tuple[int, str]:
    """Exit code and output of an `align` on two processes, one of which has lamps that raise at the third step."""
    (tmp_path / "marks").mkdir()
    world = {"faults": {-1: ["raise", 3]}, "marks": str(tmp_path / "marks"), "times": times, "rank": rank}
    argv = [*align(inputs(tmp_path), tmp_path / "out"), f"--data.env={ID}", f"--data.env_args={world}"]
    argv += ["--trainer.devices=2", "--trainer.strategy=ddp", *more]
    before = descendants(os.getpid())
    process = Process(argv, tmp_path / "log.txt")
    code = process.process.wait(timeout=600)
    assert not descendants(os.getpid()) - before
    return code, process.log.read_text()


def assert_one_error(code: int, told: str, rank: int) -> None:
    assert code == 1, told[-3000:]
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, told[-3000:]
    assert f"error: process {rank} of 2 cannot go on, and all have stopped: a world failed 5 times" in errors[0]
    assert "(LitAlign-test/Faulty-v0), seed " in errors[0]
    assert "at step 3: raised ZeroDivisionError: no lamp" in errors[0]
    assert "Gloo" not in told
    assert "zombies" not in told


@pytest.mark.slow
def test_worlds_that_fail_for_good_in_one_process_stop_both_with_one_error(tmp_path):
    assert_one_error(*run(tmp_path, [], rank=1), rank=1)


@pytest.mark.slow
def test_a_reward_that_one_process_refuses_stops_both_with_one_error(tmp_path):
    code, told = run(tmp_path, [f"--model.reward_model={REWARD}"], rank=9)
    assert code == 1, told[-3000:]
    (error,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: process 1 of 2 cannot go on, and all have stopped: the reward {REWARD} gave")
    assert "a reward that is nan at step 0; expected finite numbers" in error


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_they_stop_both_where_processes_meet_in_the_middle_of_play_too(rank, tmp_path):
    assert_one_error(*run(tmp_path, ["--data.steps=60"], rank), rank)


@pytest.mark.faults
def test_they_stop_both_in_validation_too(tmp_path):
    more = [
        "--trainer.limit_val_batches=1",
        "--data.validation_episodes=4",
        "--trainer.num_sanity_val_steps=1",
    ]  # which comes first
    assert_one_error(*run(tmp_path, more, rank=1), rank=1)


@pytest.mark.faults
def test_failures_are_counted_over_both_processes(tmp_path):
    code, told = run(tmp_path, [], rank=1, times=1)  # it plays 4 episodes of each of the two iterations
    assert code == 0, told[-3000:]
    rows = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("rollout/failures")
    assert [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]] == [4.0, 4.0]
