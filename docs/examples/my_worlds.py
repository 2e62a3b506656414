"""A world of one's own: a cook, the white square, is to reach the stove, the red one, before its time is up."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from lit_align import gamepad_space

SIZE, SPEED, NEAR, STEPS = 64, 4.0, 6.0, 60


class Kitchen(gymnasium.Env[np.ndarray, dict[str, Any]]):
    """Observations and actions are those of the recordings: frames of 64 pixels, and a gamepad."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = gamepad_space()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """The seed decides where both are."""
        super().reset(seed=seed)
        self.cook, self.stove = self.np_random.uniform(8, SIZE - 8, (2, 2))
        self.steps = 0
        return self._frame(), {}

    def step(self, action: dict[str, Any]) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """At the end of an episode `info` says how it ended."""
        right, up = action["left_stick"]
        self.cook = np.clip(self.cook + SPEED * np.array([right, -up]), 2, SIZE - 3)
        self.steps += 1
        there = bool(np.abs(self.cook - self.stove).max() < NEAR)
        late = self.steps == STEPS and not there
        info = {"outcome": "done" if there else "failed"} if there or late else {}
        return self._frame(), float(there), there, late, info

    def _frame(self) -> np.ndarray:
        frame = np.full((SIZE, SIZE, 3), 40, np.uint8)
        for (x, y), colour in ((self.stove, (200, 40, 40)), (self.cook, (255, 255, 255))):
            frame[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = colour
        return frame


gymnasium.register("Kitchen-v0", Kitchen)
