"""A world without a game engine, and without torch: a process of its own is up in no time."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lit_align.envs import WorldFailed
from lit_align.spaces import gamepad_space

SIZE = 32


class LightWorld(gymnasium.Env):
    """A lamp of a random colour: pixels that follow from (seed, step, last action).

    It ends after a number of steps that the seed decides, with the outcome `left` if the first button was pressed more
    often than not. It may show a vector beside the pixels, or in their place (size 0).
    """

    metadata = {"render_modes": [], "render_fps": 10.0}

    def __init__(self, size: int = SIZE, dies_at: tuple[int, ...] = (), vector: int = 0):
        parts: dict[str, spaces.Space[Any]] = {}
        if size:
            parts["pixels"] = spaces.Box(0, 255, (size, size, 3), np.uint8)
        if vector:
            parts["vector"] = spaces.Box(-np.inf, np.inf, (vector,), np.float64)
        self.observation_space = spaces.Dict(parts) if len(parts) > 1 else next(iter(parts.values()))
        self.action_space = gamepad_space()
        self.size, self.vector = size, vector
        self.dies_at = list(dies_at)
        self.played = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.rng = np.random.default_rng(seed)
        self.left = int(self.rng.integers(5, 14))
        self.pressed, self.total = 0, 0
        return self._frame(0), self._info("none", "")

    def _frame(self, action):
        pixels = self.rng.integers(0, 256 - action, (self.size, self.size, 3), dtype=np.uint8)
        if not self.vector:
            return pixels
        vector = action + self.rng.normal(size=self.vector)
        return {"pixels": pixels, "vector": vector} if self.size else vector

    def _info(self, outcome, reason):
        return {"position": np.array([self.total, self.pressed, 0], np.float32), "outcome": outcome, "reason": reason}

    def step(self, action):
        self.played += 1
        if self.played in self.dies_at:
            raise WorldFailed("the lamp went out")
        pressed = int(action["buttons"][0])
        self.pressed, self.total, self.left = self.pressed + pressed, self.total + 1, self.left - 1
        over = self.left == 0
        outcome = ("left" if 2 * self.pressed > self.total else "right") if over else "none"
        return self._frame(pressed), float(over), over, False, self._info(outcome, "reached" if over else "")
