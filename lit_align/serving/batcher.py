"""The thread in which the agent acts: each step takes the frames that came during the step before.

A step of twice as many frames costs far less than twice as much, so it pays to wait a moment for clients that were
answered just now and are about to send their next frame; games that take their time are not waited for (`Window`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lit_align.serving.slots import Slots, Step

_log = logging.getLogger("lit_align.serving")

Answer = tuple[NDArray[np.uint8], float]
"""Classes `(heads,)` and their joint log-probability."""
_Waiting = list[tuple[Step, asyncio.Future[Answer]]]

SHORTEST, LONGEST = 2e-4, 0.02
"""Seconds that a step waits at least, where somebody is missing at all, and at most."""


class Window:
    """How long a step waits for the clients of the last two steps: longer where they came, shorter where they did not.

    A lone client is never waited for, and those that take their time cost `SHORTEST`.
    """

    def __init__(self) -> None:
        self.seconds = SHORTEST
        self._steps: list[frozenset[int]] = [frozenset(), frozenset()]
        self._longest = SHORTEST

    def missing(self, here: frozenset[int]) -> int:
        """How many clients of the last two steps have no frame here."""
        return len((self._steps[0] | self._steps[1]) - here)

    def waited(self, missing: int, came: int) -> None:
        """Learns from a wait: how many were missing, and how many frames came."""
        grown = self.seconds * 2 if 2 * came >= missing else self.seconds / 2
        self.seconds = max(SHORTEST, min(grown, self._longest))

    def stepped(self, rows: frozenset[int], seconds: float) -> None:
        """Learns from a step: whose it was, and how long it took; no wait is longer than a step."""
        self._steps = [self._steps[1], rows]
        self._longest = min(seconds, LONGEST)


class Batcher:
    """Acts on frames in batches, in a thread of its own.

    Args:
        slots: The clients' places; from here on the thread's alone, but for `take` and `give_back`.

    Attributes:
        sizes: How many steps had 1, 2, ... frames.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.sizes = [0] * (len(slots.cache.steps) + 1)
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._waiting: _Waiting = []
        self._wanted, self._closed = 1, False
        self._window = Window()
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()

    def act(self, step: Step) -> asyncio.Future[Answer]:
        """Acts on one frame; a slot has one frame waiting at most."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        with self._changed:
            self._waiting.append((step, future))
            if len(self._waiting) >= self._wanted:
                self._changed.notify()
        return future

    async def close(self) -> None:
        """Ends the thread, after what is waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while batch := self._take():
            steps, futures = zip(*batch, strict=True)
            begun = time.perf_counter()
            try:
                classes, log_probs = self.slots.act(steps)
            except Exception as error:  # whatever it is, the clients are told and the server goes on
                _log.exception("a step of %d frames failed", len(steps))
                self._tell(_fail, futures, error)
                continue
            self.sizes[len(steps)] += 1
            self._tell(_answer, futures, classes, log_probs.tolist())
            self._window.stepped(frozenset(step.row for step in steps), time.perf_counter() - begun)

    def _take(self) -> _Waiting:
        """Waits for frames and takes all that are there; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            before = len(self._waiting)
            missing = self._window.missing(frozenset(step.row for step, _ in self._waiting))
            if missing and not self._closed:
                self._wanted = before + missing
                self._changed.wait_for(lambda: len(self._waiting) >= self._wanted or self._closed, self._window.seconds)
                self._window.waited(missing, len(self._waiting) - before)
                self._wanted = 1
            batch, self._waiting = self._waiting, []
            return batch

    def _tell(self, how: object, *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(how, *args)  # type: ignore[arg-type]
        except RuntimeError:  # the loop has ended, and nobody waits
            return


def _answer(futures: Sequence[asyncio.Future[Answer]], classes: NDArray[np.uint8], log_probs: list[float]) -> None:
    for future, row, log_prob in zip(futures, classes, log_probs, strict=True):
        if not future.done():
            future.set_result((row, log_prob))


def _fail(futures: Sequence[asyncio.Future[Answer]], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
