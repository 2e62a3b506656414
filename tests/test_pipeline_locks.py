"""Two processes in one pipeline's folder: no stage is made by both, nor read while it is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_verbs
import pytest
import yaml

from lit_align.errors import UserError
from lit_align.locks import locked
from lit_align.pipeline import load_pipeline
from lit_align.progress import Progress
from lit_align.scheduler import run_pipeline

PROGRAM = """
import sys, fake_verbs
from lit_align.pipeline import load_pipeline
from lit_align.progress import Progress
from lit_align.scheduler import run_pipeline
if __name__ == "__main__":
    pipeline = load_pipeline([sys.argv[1]], [], fake_verbs.VERBS)
    run_pipeline(pipeline, fake_verbs.run, fake_verbs.check, lambda run: False, Progress(1, 8))
"""


def write(folder: Path, stages: dict[str, Any], jobs: int = 1, name: str = "pipeline.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump({"out": str(folder / "run"), "jobs": jobs, "stages": stages}))
    return str(folder / name)


def run(file: str, *overrides: str, only: list[str] | None = None) -> int:
    pipeline = load_pipeline([file], overrides, fake_verbs.VERBS)
    pipeline = pipeline.only(only) if only else pipeline
    progress = Progress(len(pipeline.stages), 8)
    try:
        return run_pipeline(pipeline, fake_verbs.run, fake_verbs.check, lambda run: False, progress)
    finally:
        progress.close()


@contextmanager
def another(folder: Path, file: str, sign: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs a pipeline, and is in the middle of a stage: the sign is there."""
    (folder / "program.py").write_text(PROGRAM)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent / "support")])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.Popen([sys.executable, folder / "program.py", file], env=env, **quiet)
    try:
        until(sign.exists)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_second_process_is_refused_while_the_first_works(tmp_path: Path, jobs: int) -> None:
    file = write(tmp_path, {"one": {"run": "hang"}, "two": {"run": "write", "needs": "one"}}, jobs)
    sign = tmp_path / "run" / "one" / "pids.json"
    with another(tmp_path, file, sign) as process:
        said = rf"stage one of the pipeline in {tmp_path}/run is in use by another process \(process {process.pid}\)"
        with pytest.raises(UserError, match=said):
            run(file)
        assert sign.exists()
        assert run(file, f"out={tmp_path / 'other'}", "stages.one.run=write") == 0


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    file = write(tmp_path, {"one": {"run": "hang"}}, 2)
    with another(tmp_path, file, tmp_path / "run" / "one" / "pids.json") as process:
        process.kill()
        process.wait(20)
        assert run(file, "stages.one.run=write") == 0


def test_different_stages_may_be_made_at_a_time(tmp_path: Path) -> None:
    """As the jobs of a cluster do, which read the same stages before them."""
    stages = {name: {"run": "write", "needs": "first"} for name in ("left", "right")}
    file = write(tmp_path, {"first": {"run": "write"}, **stages})
    assert run(file, only=["first"]) == 0
    state = tmp_path / "run" / ".pipeline"
    with locked(tmp_path / "run", state, ["left"], ["first"]):
        assert run(file, only=["right"]) == 0
        with pytest.raises(UserError, match="stage left .* is in use"):
            run(file, only=["left"])
        with pytest.raises(UserError, match="stage first .* is in use"):
            run(file, "stages.first.args.x=2", only=["first"])
    assert run(file) == 0


def test_a_fork_does_not_hold_what_its_killed_parent_held(tmp_path: Path) -> None:
    """Such as a loader of data that is still there for a while."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        with locked(tmp_path, tmp_path, ["one"], []):
            if os.fork() == 0:
                os.write(writer, str(os.getpid()).encode())
            time.sleep(20)
        os._exit(0)
    child = int(os.read(reader, 20))
    try:
        with pytest.raises(UserError, match=rf"\(process {parent}\)"), locked(tmp_path, tmp_path, [], ["one"]):
            pass
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        with locked(tmp_path, tmp_path, ["one"], []):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
