"""Processes that run one command after another, each with its output in a log, and leave nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from lit_align.errors import Preempted, Terminated, UserError, WorldFailed

Runner = Callable[[list[str]], None]
GRACE = 3.0
"""Seconds that a worker has to end by itself."""
SHARE = "LIT_ALIGN_CORES"
"""Environment variable of a stage: the cores that are its own, which a pipeline inside it shares out."""


@dataclass(frozen=True)
class Task:
    """A command to run.

    Attributes:
        name: of its stage.
        argv: the command.
        log: file that its output is added to.
        threads: CPU threads it may use.
    """

    name: str
    argv: list[str]
    log: Path
    threads: int


@dataclass(frozen=True)
class Result:
    """How a task ended: `error` is one line for a person, empty if it went well; the log has the rest."""

    name: str
    seconds: float
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it went well."""
        return not self.error


class LocalPool:
    """Runs tasks one after another in this process, so that what they import is imported once.

    Args:
        run: runs a command.
        check: raises a UserError if a command does not parse.
    """

    def __init__(self, run: Runner, check: Runner) -> None:
        self._run, self._check = run, check
        self._waiting: list[Task] = []

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()

    @property
    def free(self) -> int:
        """How many tasks may be submitted now."""
        return 1 - len(self._waiting)

    @property
    def busy(self) -> int:
        """How many tasks run."""
        return len(self._waiting)

    def check(self, commands: list[list[str]]) -> list[str]:
        """Returns what is wrong with the commands."""
        return check_all(self._check, commands)

    def submit(self, task: Task) -> None:
        """Takes a task."""
        self._waiting.append(task)

    def wait(self, tick: Callable[[], None]) -> list[Result]:
        """Runs the task and returns its result."""
        tick()
        return [run_task(self._run, self._waiting.pop())]


class WorkerPool:
    """Runs tasks side by side in processes that stay, so that each imports torch once.

    Args:
        jobs: number of processes; they start when they are needed.
        run: runs a command; importable by name.
        check: raises a UserError if a command does not parse; importable by name.
    """

    def __init__(self, jobs: int, run: Runner, check: Runner) -> None:
        self._idle: list[_Worker] = []
        self._working: dict[Connection, tuple[_Worker, str, float]] = {}
        self._jobs, self._run, self._check = jobs, run, check

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._idle, *(worker for worker, _, _ in self._working.values())]:
            worker.end()

    @property
    def free(self) -> int:
        """How many tasks may be submitted now."""
        return self._jobs - len(self._working)

    @property
    def busy(self) -> int:
        """How many tasks run."""
        return len(self._working)

    def check(self, commands: list[list[str]]) -> list[str]:
        """Returns what is wrong with the commands; a worker looks, and has imported what they need by then."""
        worker = self._take()
        worker.connection.send(commands)
        try:
            errors: list[str] = worker.connection.recv()
        except EOFError:
            return ["the process that checks the stages died"]
        self._idle.append(worker)
        return errors

    def submit(self, task: Task) -> None:
        """Starts a task."""
        worker = self._take()
        worker.connection.send(task)
        self._working[worker.connection] = (worker, task.name, time.monotonic())

    def wait(self, tick: Callable[[], None]) -> list[Result]:
        """Returns the results of tasks that ended, none if a second went by without.

        Raises:
            Preempted: a task stopped to go on later, and so do all.
        """
        tick()
        results = []
        for connection in wait(list(self._working), timeout=1.0):
            assert isinstance(connection, Connection)
            worker, name, began = self._working.pop(connection)
            try:
                answer = connection.recv()
                self._idle.append(worker)
                if isinstance(answer, Preempted):
                    raise answer
                results.append(answer)
            except (EOFError, OSError):
                code = worker.end()
                error = f"its process died (exit code {code}); -9 is often a lack of memory"
                results.append(Result(name, time.monotonic() - began, error))
        return results

    def _take(self) -> _Worker:
        return self._idle.pop() if self._idle else _Worker(self._run, self._check)


class _Worker:
    def __init__(self, run: Runner, check: Runner) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, run, check))
        self.process.start()
        theirs.close()  # else the end of the worker would not show

    def end(self) -> int | None:
        """Ends the worker and all that it started, and returns its exit code."""
        assert self.process.pid is not None
        started = descendants(self.process.pid)
        self.connection.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            if number == signal.SIGTERM:
                self.process.join(GRACE)
        kill(started)
        self.process.join()
        return self.process.exitcode


def _serve(connection: Connection, run: Runner, check: Runner) -> None:
    """The worker's process: a group of its own, so that it can be ended with all that it started."""
    with suppress(PermissionError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the scheduler, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        try:
            connection.send(run_task(run, message) if isinstance(message, Task) else check_all(check, message))
        except Terminated:  # a stage has ended cleanly, and so does its process
            return
        except Preempted as stop:  # whoever waits for the stage stops too
            connection.send(stop)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        kill(descendants(os.getpid()))
        os.killpg(os.getpgid(0), signal.SIGKILL)


def run_task(run: Runner, task: Task) -> Result:
    """Runs a task in this process, its output (that of its children too) in its log."""
    began, before = time.monotonic(), descendants(os.getpid())
    _set_threads(task.threads)
    share = os.environ.get(SHARE)
    os.environ[SHARE] = str(task.threads)
    error = "unknown"
    try:
        with output_to(task.log):
            error = _run_and_explain(run, task.argv)
    finally:
        os.environ.pop(SHARE, None)
        if share is not None:
            os.environ[SHARE] = share
        if error:  # a task that broke off may not have ended what it started
            kill(descendants(os.getpid()) - before)
    return Result(task.name, time.monotonic() - began, error)


def _run_and_explain(run: Runner, argv: list[str]) -> str:
    try:
        run(argv)
    except (UserError, WorldFailed) as error:
        sys.stderr.write(f"error: {error}\n")
        return f"error: {error}"
    except SystemExit as end:
        return f"it ended with exit code {end.code}" if end.code else ""
    except Exception as error:  # whatever it was, the other stages go on, and the log has the whole of it
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return ""


def check_all(check: Runner, commands: list[list[str]]) -> list[str]:
    """Returns a message for each command that `check` refuses."""
    errors = []
    for argv in commands:
        try:
            check(argv)
        except UserError as error:
            words = list(takewhile(lambda word: not word.startswith("-"), argv))
            folder = Path(argv[argv.index("--out") + 1])
            errors.append(f"stage {folder.name} (lit-align {' '.join(words)}, in {folder}): {error}")
    return errors


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Sends stdout and stderr of this process and its children to the end of a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr, *before):
            with suppress(ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
        for number, fd in zip((1, 2), kept, strict=True):
            os.dup2(fd, number)
            os.close(fd)


def cores() -> int:
    """CPU cores that this process may use: of a stage, its share of its pipeline's."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, int(os.environ.get(SHARE, there)))


def is_inside() -> bool:
    """Whether this process runs a stage of a pipeline."""
    return SHARE in os.environ


def descendants(pid: int) -> set[int]:
    """Ids of all processes below one, where /proc tells; Python's own helper processes are left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if b"multiprocessing.resource_tracker" in (entry / "cmdline").read_bytes():
                continue
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    fresh = {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def kill(pids: set[int]) -> None:
    """Ends processes at once; those that are gone already are no error."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _set_threads(count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)
