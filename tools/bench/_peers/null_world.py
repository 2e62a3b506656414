"""A world of 64x64 pixels that costs nothing: it shows one of a few pictures that it made beforehand."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

SIZE, STEPS, ACTIONS, PICTURES = 64, 120, 8, 16


class NullWorld(gymnasium.Env):
    """Episodes of a fixed length; actions change nothing.

    Args:
        steps: Of an episode.
    """

    metadata = {"render_modes": []}

    def __init__(self, steps: int = STEPS) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)
        self.pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, SIZE, SIZE, 3), dtype=np.uint8)
        self.steps, self.at = steps, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts over."""
        super().reset(seed=seed)
        self.at = 0
        return self.pictures[0], {}

    def step(self, action: Any) -> Any:
        """The next picture."""
        self.at += 1
        return self.pictures[self.at % PICTURES], 0.0, False, self.at >= self.steps, {}
