"""One run of a soak: its process, what is seen of it while it goes, and what it leaves behind."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lit_align.workers import descendants

SHARED_MEMORY = Path("/dev/shm")
FILE = re.compile(r"ViZDoom(?:MQCtrl|MQDoom|SM)(.+)")
"""An engine's file in shared memory, and the engine's name for itself."""
MARK = "LIT_ALIGN_SOAK"
OUTCOMES = ("left", "middle", "right", "none")
GRACE = 15.0
"""Seconds after a run's end in which what it started may still be going."""
WARM_UP = 1 / 3
"""Part of a run, from its start, in which its memory may grow: what is freed is kept for later, and not all at once."""
BLOCK = 10
"""Iterations that count as one when two runs are compared: what one learns in an iteration stays for the next."""
SHUFFLES = 20_000


def growth(held: Mapping[int, float], done: int, episodes: int) -> tuple[float | None, int]:
    """How memory grows after the warm-up, in units of `held` for 1,000 episodes, and over how many that was seen.

    A line of least squares; None with fewer than 4 iterations.

    Args:
        held: What was held in an iteration.
        done: Iterations of the run.
        episodes: Of an iteration.
    """
    kept = {at: size for at, size in held.items() if WARM_UP * done <= at < done}
    if len(kept) < 4:
        return None, len(kept) * episodes
    at = np.array(list(kept)) * episodes / 1000
    return float(np.polyfit(at, np.array(list(kept.values())), 1)[0]), len(kept) * episodes


def chance(one: Sequence[float], other: Sequence[float], seed: int = 0) -> float:
    """How likely two runs' rates, one an iteration, differ so much on average if it is chance which run is which.

    Episodes of an iteration share a policy, and iterations what came before, so whole blocks of `BLOCK` iterations
    swap sides (a paired test by random sign flips; the p-value counts what was seen as one of the flips).
    """
    both = np.array([one, other], float)
    count = both.shape[1] // BLOCK
    if not count:
        return 1.0
    gaps = (both[0] - both[1])[: count * BLOCK].reshape(count, BLOCK).mean(1)
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], (SHUFFLES, count))
    larger = np.abs(flips @ gaps) >= abs(gaps.sum()) - 1e-12
    return float((larger.sum() + 1) / (SHUFFLES + 1))


class SoakedRun:
    """`lit-align align` in a process, with all that it starts marked as its own.

    Args:
        name: Of the run.
        argv: After `python -m lit_align`.
        out: Its run folder.
        cores: That it may use; None for all.
        threads: Torch threads.
    """

    def __init__(self, name: str, argv: list[str], out: Path, cores: set[int] | None, threads: int) -> None:
        self.name, self.out = name, out
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        self._shared = set(os.listdir(SHARED_MEMORY))
        self._temporary = out.parent / f"{out.name}.tmp"
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        self.log = out.parent / f"{out.name}.log"
        name, _, value = self._mark.partition("=")
        # Engines keep their folders below TMPDIR, so that those which stay can be told from other people's.
        more = {name: value, "TMPDIR": str(self._temporary.resolve()), "OMP_NUM_THREADS": str(threads)}
        mine = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, cores or mine)
            with self.log.open("w") as file:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "lit_align", *argv], stdout=file, stderr=file, env={**os.environ, **more}
                )
        finally:
            os.sched_setaffinity(0, mine)
        self.began, self.seconds = time.monotonic(), 0.0
        self.kills: list[int] = []  # for each, how many iterations were done by then
        self._held: dict[int, list[tuple[float, float]]] = {}  # by iteration: MB resident, and anonymous of them
        self._size, self._rows = -1, list[dict[str, str]]()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        if self.process.poll() is None:
            self.seconds = time.monotonic() - self.began
            return True
        return False

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv` that tell of an iteration."""
        path = self.out / "metrics.csv"
        if path.is_file() and path.stat().st_size != self._size:
            self._size = path.stat().st_size
            with path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if row.get("rollout/failures")]
        return self._rows

    def look(self) -> None:
        """Notes its memory."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return
        wanted = ("VmRSS", "RssAnon")
        words = [line.split() for line in lines if line.startswith(wanted)]
        sizes = {word.rstrip(":"): int(size) / 1000 for word, size, _ in words}  # from kB
        if len(sizes) == len(wanted):
            self._held.setdefault(len(self.rows), []).append((sizes["VmRSS"], sizes["RssAnon"]))

    def kill_an_engine(self, rng: random.Random) -> bool:
        """Kills one of its engines that live; whether there was one."""
        engines = [pid for pid in sorted(descendants(self.process.pid)) if b"+viz_instance_id" in _words(pid)]
        if not engines:
            return False
        os.kill(rng.choice(engines), signal.SIGKILL)
        self.kills.append(len(self.rows))
        return True

    def end(self) -> None:
        """Ends it if it has not ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                try:
                    self.process.wait(30)
                except subprocess.TimeoutExpired:
                    continue

    def stray(self) -> list[str]:
        """Processes of its own that go on after its end, after some grace; each as its number and its words."""
        end = time.monotonic() + GRACE
        while True:
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._owns(pid)]
            if not found or time.monotonic() > end:
                return [f"{pid}: {_words(pid).replace(bytes(1), b' ').decode(errors='replace')[:200]}" for pid in found]
            time.sleep(0.5)

    def left_in_shared_memory(self) -> list[str]:
        """Engines' files that were not there before, and whose engine is not one that lives."""
        alive = b" ".join(_words(int(pid)) for pid in filter(str.isdigit, os.listdir("/proc")))
        fresh = {name: FILE.match(name) for name in set(os.listdir(SHARED_MEMORY)) - self._shared}
        return sorted(name for name, found in fresh.items() if found and found[1].encode() not in alive)

    def left_in_temporary(self) -> list[str]:
        """Engines' folders that stayed."""
        return sorted(path.name for path in self._temporary.iterdir() if path.name.startswith("lit-align"))

    def growth(self, anonymous: bool, episodes: int) -> tuple[float | None, int]:
        """`growth` of an iteration's median, MB resident; of them those that no file is behind.

        Pages of files, such as the libraries', come and go with what other programs need.
        """
        held = {at: float(np.median([sizes[anonymous] for sizes in seen])) for at, seen in self._held.items()}
        return growth(held, len(self.rows), episodes)

    @property
    def largest(self) -> float:
        """Most resident memory, MB."""
        return max((size for seen in self._held.values() for size, _ in seen), default=0.0)

    def rates(self, name: str, iterations: int) -> list[float]:
        """An outcome's rate in each of the first iterations."""
        return [float(row[f"outcome/{name}"]) for row in self.rows[:iterations]]

    def counts(self, iterations: int, episodes: int) -> dict[str, int]:
        """How the episodes of the first iterations ended."""
        rows = self.rows[:iterations]
        return {name: round(sum(float(row[f"outcome/{name}"]) * episodes for row in rows)) for name in OUTCOMES}

    def _owns(self, pid: int) -> bool:
        try:
            marked = self._mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
            return marked and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
