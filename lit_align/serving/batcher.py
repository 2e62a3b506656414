"""The thread in which the agent acts: each step takes the frames that came during the step before.

A step of twice as many frames costs far less than twice as much, so it pays to wait a moment for clients that were
answered just now and are about to send their next frame; games that take their time are not waited for (`Pace`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from lit_align.serving.slots import Slots, Step

_log = logging.getLogger("lit_align.serving")

Answer = tuple[NDArray[np.uint8], float]
"""Classes `(heads,)` and their joint log-probability."""
_Batch = list[tuple[Step, asyncio.Future[Answer]]]

LONGEST = 0.02
"""Seconds that a step waits at most."""


class Pace:
    """How soon each client sends its next frame, and so who is worth a wait: those whose turn is shorter than a step.

    Times are of one clock, in seconds; clients are told by their slots.
    """

    def __init__(self) -> None:
        self._answered: dict[int, float] = {}  # when, of those whose next frame is not here
        self._took: dict[int, float] = {}
        self._step = 0.0

    def arrived(self, row: int, at: float) -> None:
        """A client's frame is here."""
        if row in self._answered:
            self._took[row] = at - self._answered.pop(row)

    def stepped(self, rows: Iterable[int], at: float, seconds: float) -> None:
        """A step that took so long answers its clients."""
        self._answered.update(dict.fromkeys(rows, at))
        self._step = min(seconds, LONGEST)

    def due(self, at: float) -> tuple[set[int], float]:
        """Who is about to send a frame, and by when all of them should have: after twice the time that it took last."""
        due = {
            row: answered + 2 * took
            for row, answered in self._answered.items()
            if (took := self._took.get(row, math.inf)) <= self._step and at < answered + 2 * took
        }
        return set(due), min(max(due.values(), default=at), at + self._step)


class Batcher:
    """Acts on frames in batches, in a thread of its own; what a step takes, and when, is decided in the event loop.

    The thread does nothing but act: where both run Python, each waits for the other's turn at the interpreter.

    Args:
        slots: The clients' places; from here on the thread's alone, but for `take` and `give_back`.

    Attributes:
        sizes: How many steps had 1, 2, ... frames.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.sizes = [0] * (len(slots.cache.steps) + 1)
        self._loop = asyncio.get_running_loop()
        self._pace = Pace()
        self._waiting: _Batch = []
        self._awaited: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._acting = self._closed = False
        self._jobs: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()

    def act(self, step: Step) -> asyncio.Future[Answer]:
        """Acts on one frame; a slot has one frame waiting at most.

        Raises:
            RuntimeError: It is closed.
        """
        if self._closed:
            raise RuntimeError("the server stops: no more steps")
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.append((step, future))
        self._pace.arrived(step.row, time.perf_counter())
        if self._timer is not None:
            self._awaited.discard(step.row)
            if not self._awaited:
                self._begin()
        elif not self._acting:
            self._begin_or_wait()
        return future

    async def close(self) -> None:
        """Ends the thread, after what is waiting."""
        self._closed = True
        if self._waiting:
            self._begin()  # behind the step that goes on, if one does
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _begin_or_wait(self) -> None:
        """Frames are here: begins a step, unless others are about to come."""
        now = time.perf_counter()
        self._awaited, until = self._pace.due(now)
        if self._awaited:
            self._timer = self._loop.call_later(until - now, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting = self._waiting, []
        self._acting = True
        self._jobs.put(batch)

    def _run(self) -> None:
        while (batch := self._jobs.get()) is not None:
            begun = time.perf_counter()
            try:
                classes, log_probs = self.slots.act([step for step, _ in batch])
                answers: list[Answer] | Exception = list(zip(classes, log_probs.tolist(), strict=True))
            except Exception as error:  # whatever it is, the clients are told and the server goes on
                _log.exception("a step of %d frames failed", len(batch))
                answers = error
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._done, batch, answers, time.perf_counter() - begun)

    def _done(self, batch: _Batch, answers: list[Answer] | Exception, seconds: float) -> None:
        self._acting = False
        if isinstance(answers, Exception):
            for _, future in batch:
                if not future.done():
                    future.set_exception(answers)
        else:
            self.sizes[len(batch)] += 1
            self._pace.stepped((step.row for step, _ in batch), time.perf_counter(), seconds)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        if self._waiting:
            self._begin_or_wait()
