"""How fast a stage trains: frames, model FLOPs, time spent waiting for data, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from lit_align.stages.flops import ModelFlops


class Throughput:
    """Counts from line to line.

    Args:
        clock: Seconds, always forward.

    Attributes:
        flops: The model's; None while unknown.
        peak: FLOPs a second that a process's device can do; None if unknown.
        processes: How many train together, in speed each like this one.
        total: Adds a number of frames up over the processes, each of which calls it; None takes them for equal.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.flops: ModelFlops | None = None
        self.peak: float | None = None
        self.processes = 1
        self.total: Callable[[int], int] | None = None
        self._arrived: list[Tensor] = []
        self._frames = self._frames_at_line = 0
        self._seconds = self._waited = self._work = 0.0
        self._mark = self._tick = clock()

    def start(self) -> None:
        """Training begins, or goes on after something that is not training."""
        self._tick = self._mark = self.clock()

    def wait(self) -> None:
        """From here on the loop waits for a batch."""
        self._mark = self.clock()

    def begin(self, lengths: Tensor) -> None:
        """A batch is there, of sequences of these lengths in frames `(B,)`; they stay on their device until asked."""
        self._waited += self.clock() - self._mark
        self._arrived.append(lengths)

    def end(self) -> float:
        """The batch is done with; returns the seconds since the one before."""
        now = self.clock()
        took = now - self._tick
        self._tick = self._mark = now
        self._seconds += took
        if len(self._arrived) >= 1000:
            self.settle()
        return took

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside takes no time."""
        before = self.clock()
        yield
        took = self.clock() - before
        self._tick += took
        self._mark += took

    @property
    def frames(self) -> int:
        """Frames so far, that of the batch in hand included, all processes together. On a GPU it waits for it.

        Since it was last settled, the other processes are taken to have had as many as this one.
        """
        return self._frames + sum(int(lengths.sum()) for lengths in self._arrived) * self.processes

    def settle(self) -> None:
        """Counts what arrived, over all processes; every process calls it."""
        if self._arrived:
            lengths = torch.cat(self._arrived).cpu()
            self._arrived = []
            here = int(lengths.sum())
            self._frames += self.total(here) if self.total else here * self.processes
            self._work += self.flops.of(lengths) * self.processes if self.flops else 0.0

    def line(self) -> dict[str, float]:
        """What was measured since the last line; every process calls it."""
        self.settle()
        frames, seconds = self.frames - self._frames_at_line, self._seconds
        if seconds <= 0:
            return {}
        values = {"train/frames_per_s": frames / seconds, "train/data_wait": self._waited / seconds}
        if self.flops:
            values["train/tflops"] = self._work / seconds / 1e12
            if self.peak:
                values["train/mfu"] = self._work / seconds / (self.peak * self.processes)
        self._frames_at_line = self._frames
        self._seconds = self._waited = self._work = 0.0
        return values


def forget_peak(device: torch.device) -> None:
    """From here on `peak_memory` counts anew, where the system can: an earlier stage of this process is another run."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """The most bytes that this process held: of tensors on a GPU, elsewhere all that is resident."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else resident(peak=True)


def resident(peak: bool = False) -> float:
    """Bytes of memory that this process holds, or held at the most; where that is not told, at the most."""
    with suppress(OSError):
        facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return float(facts["VmHWM" if peak else "VmRSS"].split()[0]) * 1024
    import resource  # not on every system

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
