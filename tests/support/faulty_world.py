"""The lamp of `tests.helpers`, which misbehaves in episodes of some seeds, at some step, so many times.

What it has done so far is kept in files, so that it holds whichever world, made anew or in another process, plays.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from lit_align.data.trajectory import Trajectory
from tests.support.light_world import LightWorld

ID = "tests.support.faulty_world:LitAlign-test/Faulty-v0"


class FaultyWorld(LightWorld):
    """A lamp with faults.

    Args:
        faults: Of the episodes of each seed: what goes wrong and at which step, 0 is the reset.
        marks: Folder for the files.
        times: How often each goes wrong.
        size: Of the frames.
        vector: Numbers beside them.
        rank: Misbehave in this process of several only.
    """

    def __init__(
        self,
        faults: dict[int, tuple[str, int]],
        marks: str,
        times: int = 1,
        size: int = 32,
        vector: int = 0,
        rank: int | None = None,
    ) -> None:
        super().__init__(size, vector=vector)
        self.faults, self.marks, self.times = {int(seed): fault for seed, fault in faults.items()}, marks, times
        self.right_rank = rank is None or os.environ.get("LOCAL_RANK", "0") == str(rank)
        self.fault, self.at, self.seed = "", -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seed = int(seed or 0)
        self.fault, self.at = self.faults.get(self.seed, self.faults.get(-1, ("", -1)))
        answer = super().reset(seed=seed)
        return self._spoil(answer) if self._now(0) else answer

    def step(self, action: Any) -> Any:
        answer = super().step(action)
        return self._spoil(answer) if self._now(self.total) else answer

    def _now(self, step: int) -> bool:
        if step != self.at or not self.right_rank:
            return False
        mark = Path(self.marks) / f"{self.seed}.txt"
        done = len(mark.read_text()) if mark.exists() else 0
        if done >= self.times:
            return False
        mark.write_text("x" * (done + 1))
        return True

    def _spoil(self, answer: Any) -> Any:
        seen, *rest = answer
        if self.fault in ACTS:
            ACTS[self.fault]()
        answers: dict[str, Any] = {
            "nan reward": lambda: (seen, float("nan"), *rest[1:]),
            "array reward": lambda: (seen, np.array([1.0]), *rest[1:]),
            "no reward": lambda: (seen, None, *rest[1:]),
            "nan vector": lambda: (np.full_like(seen, np.nan), *rest),
            "shape": lambda: (seen[:-1], *rest),
            "dtype": lambda: (seen.astype(np.float32), *rest),
            "nothing": lambda: None,
            "four": lambda: (seen, *rest[:-1]),
            "info": lambda: (seen, *rest[:-1], None),
            "position": lambda: (seen, *rest[:-1], {"position": (0.0, float("inf"), 0.0)}),
        }
        return answers[self.fault]()


def _raise() -> None:
    raise ZeroDivisionError("no lamp")


def _forever(pause: float) -> None:
    while True:
        time.sleep(pause)


ACTS = {
    "raise": _raise,
    "hang": lambda: _forever(60.0),
    "spin": lambda: _forever(0.0),
    "exit": lambda: os._exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


def reward_refused_by_one(trajectory: Trajectory) -> np.ndarray:
    """The rewards of a lamp, which are no numbers on the process of rank 1."""
    return trajectory.rewards * (np.nan if os.environ.get("LOCAL_RANK", "0") == "1" else 1.0)


if "LitAlign-test/Faulty-v0" not in gymnasium.registry:
    gymnasium.register("LitAlign-test/Faulty-v0", entry_point=lambda **args: FaultyWorld(**args))
