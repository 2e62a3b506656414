"""Kills what does not answer in time.

A call into the game waits for the engine, without the interpreter's lock and without a limit. One thread looks after
all engines of this process: it kills the one whose call is late, and the call then returns with an error.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN = 1.0
_PAUSE = (0.02, 0.5)  # seconds between two looks: a quarter of the shortest limit, within these bounds


class Deadline:
    """A limit to calls that follow one another.

    Args:
        kill: Ends what the calls wait for; called from another thread, and again every `AGAIN` seconds as long as the
            call does not return.

    Attributes:
        seconds: The limit of the last call.
        late: Whether a call has ever been late.
    """

    def __init__(self, kill: Callable[[], None]) -> None:
        self.seconds, self.late = math.inf, False
        self._kill = kill
        self._due = math.inf
        self._changing = threading.Lock()
        _watch(self)

    @contextmanager
    def __call__(self, seconds: float) -> Iterator[None]:
        """The block has so many seconds."""
        self.seconds = seconds
        self._due = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._changing:
                self._due = math.inf

    def look(self, now: float) -> None:
        """Kills if it is late; called by the thread."""
        with self._changing:  # else a call that returns now would leave its limit to the next one
            late = now > self._due
            if late:
                self.late, self._due = True, now + AGAIN
        if late:
            self._kill()


_watched: weakref.WeakSet[Deadline] = weakref.WeakSet()
_lock = threading.Lock()
_thread: threading.Thread | None = None


def _watch(deadline: Deadline) -> None:
    global _thread
    with _lock:
        _watched.add(deadline)
        if _thread is None or not _thread.is_alive():  # it does not come along into a forked process
            _thread = threading.Thread(target=_look, name="engine-deadlines", daemon=True)
            _thread.start()


def _look() -> None:
    while True:
        time.sleep(min(max(_look_at_all(), _PAUSE[0]), _PAUSE[1]))


def _look_at_all() -> float:
    """Seconds until the next look. A function of its own, so that nobody is kept alive by being watched."""
    with _lock:
        watched = list(_watched)
    for deadline in watched:
        deadline.look(time.monotonic())
    return min((deadline.seconds / 4 for deadline in watched), default=_PAUSE[1])
