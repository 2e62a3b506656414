"""How a stage takes SIGTERM and Ctrl-C: it ends cleanly at the first, and at once at the second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lit_align.errors import Terminated
from lit_align.workers import descendants, kill

CHILD_SECONDS = 5.0
"""That a process of a run has to end by itself after SIGTERM."""


class Signals:
    """The signals of one run.

    The first SIGTERM or Ctrl-C raises, so that worlds are closed, loggers finished and the run's state is written; what
    was saved before stays. Another one, where that takes long, ends the process and all that it started.

    Args:
        at_once: called before the process ends at once, to write down what must not be lost; quick.
    """

    def __init__(self, at_once: Callable[[], None] = lambda: None) -> None:
        self.at_once = at_once
        self.terminated = False

    def take_terminations(self) -> None:
        """Takes SIGTERM; Lightning takes it too, when a fit begins, and would end at a batch's end only."""
        _set(signal.SIGTERM, self._on_sigterm)

    def take_next_interrupt(self) -> None:
        """Takes the next Ctrl-C; Lightning ignores all after the first."""
        _set(signal.SIGINT, lambda *_: self._end(130))

    def _on_sigterm(self, *_: Any) -> None:
        if self.terminated:
            self._end(143)
        self.terminated = True
        raise Terminated

    def _end(self, code: int) -> None:
        with suppress(Exception):
            self.at_once()
        sys.stderr.write("ended at once\n")
        sys.stderr.flush()
        kill(descendants(os.getpid()))
        os._exit(code)


@contextmanager
def handlers_put_back() -> Iterator[None]:
    """Lightning leaves its signal handlers behind; after this those of before are there again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            _set(number, handler)


def end_processes(trainer: Any) -> None:
    """Ends the other processes of a run that this one started; those of torchrun or Slurm are not ours to end."""
    launcher = getattr(trainer.strategy, "launcher", None)
    processes: list[subprocess.Popen[bytes]] = getattr(launcher, "procs", None) or []
    for process in processes:
        with suppress(Exception):
            process.terminate()
    for process in processes:
        try:
            process.wait(CHILD_SECONDS)
        except (subprocess.TimeoutExpired, OSError):
            with suppress(Exception):
                process.kill()


def _set(number: int, handler: Any) -> None:
    with suppress(ValueError, TypeError):  # not the main thread, or a handler from outside Python
        signal.signal(number, handler)
