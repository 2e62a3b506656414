"""Runs the stages of a pipeline: what is ready, side by side, and only what is not done yet."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_align import slurm
from lit_align.errors import Preempted, UserError, raise_all
from lit_align.files import mapping_of, write_whole
from lit_align.locks import locked
from lit_align.pipeline import Pipeline, StageSpec, commands_of
from lit_align.progress import Progress
from lit_align.workers import LocalPool, Result, Runner, Task, WorkerPool, cores, is_inside

STATE = ".pipeline"


class StageState:
    """What is known of a stage between runs: `OUT/.pipeline/NAME.json`, beside its folder.

    It is not in the folder, because some commands only write to a folder that is new.

    Args:
        out: the pipeline's folder.
        name: of the stage.
        cell: whether the stage is a pipeline, which knows itself what is to be done again: its folder is never cleared.
    """

    def __init__(self, out: Path, name: str, cell: bool = False) -> None:
        self.folder, self.name, self.cell = out / name, name, cell
        self.file, self.log = out / STATE / f"{name}.json", out / STATE / f"{name}.log"

    def read(self) -> dict[str, Any]:
        """Returns fingerprint, state (`running`, `done`, `failed`) and seconds; empty if it never ran.

        A cell that is done has `inner`, too: the fingerprints of its stages as they were then.
        """
        return mapping_of(self.file)

    def write(self, fingerprint: str, state: str, seconds: float, inner: Iterable[str] = ()) -> None:
        """Replaces the file in one step; `inner` are the stages of a cell that is done."""
        content: dict[str, Any] = {"fingerprint": fingerprint, "state": state, "seconds": round(seconds, 2)}
        if inner:
            content["inner"] = {name: StageState(self.folder, name).read().get("fingerprint") for name in inner}
        write_whole(self.file, json.dumps(content) + "\n")

    def is_done(self, fingerprint: str) -> bool:
        """Whether the stage finished with the same inputs and its folder is still there, of a cell all stages' too."""
        found = self.read()
        if found.get("fingerprint") != fingerprint or found.get("state") != "done" or not self.folder.is_dir():
            return False
        # As they were left, not as they would be made: a cell that was moved with all that it reads is still done.
        inner = found.get("inner", {})
        return all(StageState(self.folder, name).is_done(left) for name, left in inner.items())

    def was_interrupted(self, fingerprint: str) -> bool:
        """Whether it began with the same inputs and did not finish."""
        found = self.read()
        return found.get("fingerprint") == fingerprint and found.get("state") in ("running", "failed")

    def check_ours(self) -> None:
        """Raises a UserError if the folder holds something that no pipeline put there."""
        if self.cell and (self.folder / STATE).is_dir():
            return
        if self.folder.is_dir() and any(self.folder.iterdir()) and not self.read():
            raise UserError(
                f"'{self.folder}' is not empty and no pipeline made it; move it away or choose another --out"
            )

    def clear(self) -> None:
        """Removes what an earlier attempt left; of a cell, its log."""
        self.check_ours()
        if self.cell:
            self.log.unlink(missing_ok=True)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for left_over in self.folder.parent.glob(
            f".{self.name}-????????"
        ):  # folders that were written aside and never renamed; names of other stages may begin alike
            shutil.rmtree(left_over, ignore_errors=True)
        self.file.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)

    def keep_log(self) -> None:
        """Moves the log into the stage's folder, now that the folder is there to stay."""
        if self.log.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.log, self.folder / "log.txt")

    def log_path(self) -> Path:
        """Where the log is at the moment."""
        kept = self.folder / "log.txt"
        return kept if kept.is_file() else self.log


def run_pipeline(
    pipeline: Pipeline,
    run: Runner,
    check: Runner,
    can_resume: Callable[[list[str]], bool],
    progress: Progress,
    prints: dict[str, str] | None = None,
) -> int:
    """Runs what is not done.

    Args:
        pipeline: what to run.
        run: runs one command line; an importable function, as it is called in other processes.
        check: raises a UserError if a command line cannot be parsed.
        can_resume: whether a stage of these words goes on where it was interrupted when `--resume auto` is added.
        progress: where a line for each stage goes.
        prints: the pipeline's fingerprints, where they were taken already.

    Raises:
        UserError: another process works on one of the stages.

    Returns:
        The exit code: 0, or 1 if a stage failed. Ctrl-C and SIGTERM raise KeyboardInterrupt, when all workers are gone;
        SIGUSR1 in a Slurm job raises Preempted.
    """
    prints = prints or pipeline.fingerprints()
    states = {name: StageState(pipeline.out, name, stage.is_cell) for name, stage in pipeline.stages.items()}
    pending = {name: stage for name, stage in pipeline.stages.items() if not states[name].is_done(prints[name])}
    finished = set(pipeline.stages) - set(pending)
    _check_folders(states[name] for name in pending)
    for name in pipeline.stages:
        if name in finished:
            progress.line(name, "same", states[name].read()["seconds"], headline(pipeline.out / name))
    if not pending:
        return 0
    # A cell has its share of the cores, and runs no more at a time than there is one for.
    jobs = min(pipeline.jobs, cores()) if is_inside() else pipeline.jobs
    with _signals_as_exceptions(), LocalPool(run, check) if jobs == 1 else WorkerPool(jobs, run, check) as pool:
        raise_all(pool.check(commands_of(pending.values())))
        with locked(pipeline.out, pipeline.out / STATE, pending, finished):
            _check_unchanged(pending, finished, states, prints)
            failed = _run_pending(pipeline, pending, finished, states, prints, pool, can_resume, progress)
    for name in pending:
        lacks = ", ".join(n for n in pending[name].needs if n not in finished)
        progress.line(name, "blocked", 0.0, f"did not run, for it needs {lacks}")
    for name in failed:
        progress.tail(states[name].log_path())
    if failed:
        progress.write(f"failed: {', '.join(failed)}. Mend that and give the same command again: what is done is kept.")
    return int(bool(failed))


def _run_pending(
    pipeline: Pipeline,
    pending: dict[str, StageSpec],
    finished: set[str],
    states: dict[str, StageState],
    prints: dict[str, str],
    pool: LocalPool | WorkerPool,
    can_resume: Callable[[list[str]], bool],
    progress: Progress,
) -> list[str]:
    """Runs what can run, moves it from `pending` to `finished`, and returns what failed."""
    share = cores()
    failed: list[str] = []
    while True:
        ready = [stage for stage in pending.values() if finished.issuperset(stage.needs)][: pool.free]
        # A function of the configuration alone: with other threads, sums round otherwise.
        threads = max(1, share // pipeline.jobs)
        for stage in ready:
            del pending[stage.name]
            # Two threads on one core wait for each other: a training step takes thirty times as long.
            mine = min(stage.threads or threads, share)
            pool.submit(_begin(stage, states[stage.name], prints[stage.name], can_resume, mine))
            progress.start(stage.name)
        if not pool.busy:
            return failed
        for result in pool.wait(progress.tick):
            _end(result, pipeline.stages[result.name], states[result.name], prints[result.name], progress)
            (finished.add if result.ok else failed.append)(result.name)
            write_timings(pipeline)


def _check_unchanged(
    pending: dict[str, StageSpec], finished: set[str], states: dict[str, StageState], prints: dict[str, str]
) -> None:
    """Raises a UserError if another process was at work between our look at the stages and our locks on them."""
    now = {name for name in prints if name in states and states[name].is_done(prints[name])}
    if changed := sorted((now & set(pending)) | (finished - now)):
        raise UserError(
            f"another process has just ended its work on {', '.join(changed)}; expected one at a time: give the same "
            "command again, which starts from what there is now"
        )


def headline(folder: Path) -> str:
    """The line that a stage left about its result."""
    try:
        return (folder / "headline.txt").read_text().strip().split("\n")[0]
    except OSError:
        return ""


def _begin(
    stage: StageSpec, state: StageState, fingerprint: str, can_resume: Callable[[list[str]], bool], threads: int
) -> Task:
    argv = stage.argv
    before = 0.0
    if state.was_interrupted(fingerprint) and (stage.is_cell or can_resume(stage.run)):
        argv = argv if stage.is_cell else [*argv, "--resume", "auto"]
        before = state.read().get("seconds", 0.0)
    else:
        state.clear()
    state.write(fingerprint, "running", before)
    return Task(stage.name, argv, state.log, threads)


def _end(result: Result, stage: StageSpec, state: StageState, fingerprint: str, progress: Progress) -> None:
    state.keep_log()
    seconds = state.read().get("seconds", 0.0) + result.seconds  # those of an attempt that was resumed too
    inner = stage.inner.stages if result.ok and stage.inner is not None else ()
    state.write(fingerprint, "done" if result.ok else "failed", seconds, inner)
    text = headline(state.folder) if result.ok else result.error
    progress.line(result.name, "done" if result.ok else "failed", result.seconds, text)


def write_timings(pipeline: Pipeline) -> None:
    """Writes `timings.json`: the seconds of each stage that is done, those that `--only` leaves out too."""
    found = {name: StageState(pipeline.out, name).read() for name in pipeline.names}
    seconds = {name: each["seconds"] for name, each in found.items() if each.get("state") == "done"}
    write_whole(pipeline.out / "timings.json", json.dumps(seconds, indent=2) + "\n")


def _check_folders(states: Iterator[StageState]) -> None:
    errors = []
    for state in states:
        try:
            state.check_ours()
        except UserError as error:
            errors.append(str(error))
    raise_all(errors)


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGTERM ends a pipeline as Ctrl-C does: through `finally`, so that nothing is left running.

    In a Slurm job, SIGUSR1 does too, and the job is requeued; a stage that trains in this process takes it itself.
    """

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def make_room(number: int, frame: Any) -> None:
        raise Preempted("the pipeline stopped; what is done stays done", requeue=True)

    handlers = {signal.SIGTERM: interrupt} | ({signal.SIGUSR1: make_room} if slurm.is_job() else {})
    try:
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
