"""One line a stage on the console; what the stages print themselves goes to their logs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

COLOURS = {"done": "32", "same": "2", "failed": "31", "blocked": "33"}


class Progress:
    """Prints a line for each stage that ended, and on a terminal what is running, on a last line of its own.

    Args:
        stages: number of stages.
        width: of the longest name, in characters.
        fd: file descriptor to print to; it is duplicated, so that redirecting it later changes nothing here.
    """

    def __init__(self, stages: int, width: int, fd: int | None = None) -> None:
        sys.stdout.flush()
        self._stream = os.fdopen(os.dup(1 if fd is None else fd), "w", buffering=1)
        self.stages, self.width = stages, width
        self._terminal = self._stream.isatty()
        self._ended = 0
        self._running: dict[str, float] = {}

    def start(self, name: str) -> None:
        """A stage begins."""
        self._running[name] = time.monotonic()
        self.tick()

    def tick(self) -> None:
        """Refreshes the last line."""
        if self._terminal and self._running:
            now = time.monotonic()
            running = ", ".join(f"{name} {now - began:.0f} s" for name, began in self._running.items())
            self._stream.write(f"\r\033[K{' ' * 8}running   {running}")
            self._stream.flush()

    def line(self, name: str, state: str, seconds: float, text: str = "") -> None:
        """A stage ended: `done`, `same` (done before), `failed` or `blocked`."""
        self._running.pop(name, None)
        self._ended += 1
        word = f"{state:<8}"
        if self._terminal:
            self._stream.write("\r\033[K")
            word = f"\033[{COLOURS[state]}m{word}\033[0m"
        count = f"[{self._ended:>2}/{self.stages}]"
        line = f"{count} {word} {name:<{self.width}} {seconds:8.1f} s  {text.splitlines()[0] if text else ''}"
        self._stream.write(line.rstrip() + "\n")
        self.tick()

    def tail(self, log: Path, lines: int = 15) -> None:
        """Shows the end of a failed stage's log and where the rest is."""
        text = log.read_text(errors="replace").splitlines() if log.is_file() else []
        self._stream.write("\n" + "".join(f"    {line}\n" for line in text[-lines:]) + f"the whole log: {log}\n")

    def write(self, text: str) -> None:
        """Prints a line."""
        self._stream.write(f"{text}\n")

    def close(self) -> None:
        """Gives the descriptor back."""
        self._stream.close()
