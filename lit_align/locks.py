"""Locks on the stages of a pipeline: two processes may work in one folder, but not on one stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lit_align.errors import UserError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

_held: set[int] = set()
"""File descriptors of this process that hold a lock."""


@contextmanager
def locked(out: Path, state: Path, made: Iterable[str], read: Iterable[str]) -> Iterator[None]:
    """Holds the stages of a pipeline until the end; the system frees them if the process is killed.

    A stage has a lock of its own, for the jobs of a cluster work on different stages of one folder at a time.

    Args:
        out: the pipeline's folder, for the message.
        state: where the locks lie: a file `NAME.lock` for each stage, with the id of the process that makes it.
        made: stages that this process makes; nobody else may make or read them.
        read: stages that are done; others may read them, too.

    Raises:
        UserError: another process works on one of them.
    """
    mine: list[int] = []
    try:
        for names, alone in ((made, True), (read, False)):
            for name in names:
                file = state / f"{name}.lock"
                try:
                    mine += _take(file, alone)
                except BlockingIOError:
                    raise UserError(
                        f"stage {name} of the pipeline in {out} is in use by another process{_who(file)}; "
                        "expected one at a time: wait until it has ended, end it, or choose another --out"
                    ) from None
        yield
    finally:
        for number in _held.intersection(mine):  # a fork that comes here holds none
            _held.discard(number)
            fcntl.flock(number, fcntl.LOCK_UN)  # else a fork that has not yet let go holds it for a moment more
            os.close(number)


def _take(file: Path, alone: bool) -> list[int]:
    """The descriptor that holds the lock; none where the file system knows no locks, or nothing may be written."""
    if fcntl is None:
        return []
    number = -1
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)  # ends with the process, and is not for those it starts
        fcntl.flock(number, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        if alone:
            os.truncate(number, 0)
            os.write(number, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        os.close(number)
        raise
    except OSError:
        if number >= 0:
            os.close(number)
        return []
    _held.add(number)
    return [number]


def _who(file: Path) -> str:
    with suppress(OSError):
        if pid := file.read_text().strip():
            return f" (process {pid})"
    return ""


def _forget() -> None:
    """A fork that lives longer than the pipeline, such as a loader of data, must not hold its stages."""
    for number in _held:
        with suppress(OSError):
            os.close(number)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
