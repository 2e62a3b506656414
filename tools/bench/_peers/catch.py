"""A world of 64x64 pixels that is learnt within minutes: a paddle catches balls that fall one after another."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

CELLS, CELL, BALLS = 8, 8, 5
STEPS = BALLS * (CELLS - 1)
PADDLE, BALL = (90, 200, 90), (230, 120, 60)


class Catch(gymnasium.Env):
    """Eight columns, eight rows; the actions are left, stay and right, and the ball falls a row at every step.

    A ball that lands on the paddle gives a reward of 1, then the next one appears. Five balls are an episode, which
    ends by a time limit: how many fell before is not to be seen. Whoever plays well catches all of them, since a ball
    is never further away than the paddle can go while it falls.
    """

    metadata = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (CELLS * CELL, CELLS * CELL, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """The paddle somewhere, the first ball at the top."""
        super().reset(seed=seed)
        self.steps, self.row = 0, 0
        self.paddle, self.ball = (int(self.np_random.integers(CELLS)) for _ in range(2))
        return self._picture(), {}

    def step(self, action: Any) -> Any:
        """Moves the paddle, then the ball."""
        self.paddle = min(max(self.paddle + int(action) - 1, 0), CELLS - 1)
        self.row, self.steps, reward = self.row + 1, self.steps + 1, 0.0
        if self.row == CELLS - 1:
            reward = float(self.ball == self.paddle)
            self.row, self.ball = 0, int(self.np_random.integers(CELLS))
        return self._picture(), reward, False, self.steps == STEPS, {}

    def _picture(self) -> np.ndarray:
        cells = np.zeros((CELLS, CELLS, 3), np.uint8)
        cells[CELLS - 1, self.paddle] = PADDLE
        cells[self.row, self.ball] = BALL
        return cells.repeat(CELL, 0).repeat(CELL, 1)


ID = "LitAlignBench/Catch-v0"
gymnasium.register(id=ID, entry_point=Catch)
