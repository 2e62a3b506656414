"""`LitAlign/Jumppads-v0`: find one of three jumppads on an island, from pixels."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from lit_align.envs import WorldFailed
from lit_align.envs.jumppads.controls import controls
from lit_align.envs.jumppads.engine import RESOLUTIONS, Engine, View
from lit_align.envs.jumppads.map import SKIES
from lit_align.envs.jumppads.terrain import (
    ELSEWHERE,
    ELSEWHERE_RADIUS,
    PAD_RADIUS,
    PADS,
    SPAWN,
    SPAWN_HEADING_SPREAD,
    SPAWN_RADIUS,
    SPAWNS,
)
from lit_align.envs.jumppads.verdict import reason_for_none
from lit_align.errors import did_you_mean
from lit_align.spaces import gamepad_space

TICS = 4  # of the engine, 35 a second, for each step
STEP_TIMEOUT = 60.0  # seconds; a step takes milliseconds
WATER = -40.0  # z below which the player has left the island

OUTCOMES = ("left", "middle", "right", "none")


class JumppadsEnv(gymnasium.Env[NDArray[np.uint8], dict[str, Any]]):
    """An island with three jumppads; standing on one of them is the task.

    The player starts in a yard, facing roughly north, and has `max_steps` steps (8.75 a second). Observation:
    `(size, size, 3)` uint8 RGB. Action: `gamepad_space()`; the left stick walks, the right one turns and looks, button
    0 jumps, 1 crouches, 7 punches. Reward: 1.0 on reaching any pad, 0 otherwise. `info` holds `position` (`float32
    (3,)`, map units), `heading` (degrees, counterclockwise from east), `outcome` (`left`, `middle`, `right` or `none`)
    and `reason` (empty while running; `verdict.REASONS`).

    `spawn` and `sky` make other worlds than the one that was trained in, to see what an agent does there.

    The engine is started by the first `reset`. If it dies, or is killed since it takes longer than `step_timeout` over
    a step, `WorldFailed` is raised and the next `reset` starts another.

    Args:
        size: Side of the observation, in pixels.
        max_steps: Steps until the episode is cut off.
        resolution: What the engine draws, before it is scaled down to the observation; `render` returns this.
        fenced: Nobody can fall into the water.
        render_mode: None or `rgb_array`.
        spawn: Where the player starts: `yard`; `away`: in the yard, facing away from the pads; `elsewhere`: at other
            places of the island, facing roughly north.
        sky: `day`; `dusk` or `night`: another sky and less light. Nothing else changes.

    Attributes:
        step_timeout: Seconds that a step may take; a reset may take ten times as long.

    Raises:
        ValueError: An argument is out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8.75}

    def __init__(
        self,
        size: int = 64,
        max_steps: int = 120,
        resolution: str = "160x120",
        fenced: bool = False,
        render_mode: str | None = None,
        spawn: str = "yard",
        sky: str = "day",
    ) -> None:
        if not 8 <= size <= 600:
            raise ValueError(f"size is {size}; expected 8 to 600 pixels")
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}; expected at least 1")
        if resolution not in RESOLUTIONS:
            raise ValueError(f"resolution is {resolution!r}; expected one of {', '.join(RESOLUTIONS)}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; expected None or 'rgb_array'")
        for name, value, known in (("spawn", spawn, SPAWNS), ("sky", sky, SKIES)):
            if value not in known:
                expected = f"expected one of {', '.join(known)}{did_you_mean(str(value), known)}"
                raise ValueError(f"{name} is {value!r}; {expected}")
        self.size, self.max_steps, self.resolution, self.fenced = size, max_steps, resolution, fenced
        self.render_mode, self.spawn, self.sky = render_mode, spawn, sky
        self.step_timeout = STEP_TIMEOUT
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gamepad_space()
        # A box filter keeps thin things visible when shrinking; it only doubles rows when growing.
        self._filter = Image.Resampling.BOX if size <= int(resolution.split("x")[1]) else Image.Resampling.BILINEAR
        self._engine: Engine | None = None
        self._view: View | None = None
        self._path: list[tuple[float, float]] = []
        self._punches = 0
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Starts an episode; the seed decides where the player stands and which way it looks.

        Args:
            seed: Of the whole episode. None: goes on from the last one.
            options: Not used.

        Raises:
            WorldFailed: The engine did not start, or died.
        """
        super().reset(seed=seed)
        rng = self.np_random
        reach, angle = math.sqrt(rng.random()), 2 * math.pi * rng.random()
        heading = 90 + rng.uniform(-SPAWN_HEADING_SPREAD, SPAWN_HEADING_SPREAD)
        dice = int(rng.integers(2**31))
        if self._engine is None:
            self._engine = Engine(self.resolution, self.fenced, self.sky)
        self._engine.timeout = self.step_timeout
        centre, radius = SPAWN, SPAWN_RADIUS * reach
        if self.spawn == "away":
            heading += 180
        elif self.spawn == "elsewhere":  # drawn last, so that the other worlds' dice stay what they were
            centre, radius = ELSEWHERE[int(rng.integers(len(ELSEWHERE)))], ELSEWHERE_RADIUS * reach
        x, y = centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)
        try:
            self._view = self._engine.new_episode(dice, round(x), round(y), heading)
        except WorldFailed:
            self._lose()
            raise
        self._path = [(self._view.x, self._view.y)]
        self._punches = 0
        self._over = False
        return self._observe(self._view), self._info(self._view, "none", "")

    def step(self, action: dict[str, Any]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Holds the action for four tics of the engine.

        Args:
            action: An element of `action_space`.

        Raises:
            ValueError: The action is not one of the action space.
            gymnasium.error.ResetNeeded: The episode is over, or none was started.
            WorldFailed: The engine died; the episode is lost.
        """
        if self._over or self._engine is None:
            raise gymnasium.error.ResetNeeded("the episode is over or was never started: call reset() before step()")
        told = controls(action)
        try:
            view = self._view = self._engine.act(told, TICS)
        except WorldFailed:
            self._lose()
            raise
        self._path.append((view.x, view.y))
        self._punches += told[-1] > 0
        outcome, fell = _pad_at(view), view.z < WATER
        terminated = outcome != "none" or fell
        truncated = not terminated and len(self._path) > self.max_steps
        self._over = terminated or truncated
        reason = ""
        if self._over:
            reason = "reached" if outcome != "none" else reason_for_none(self._path, self._punches, fell)
        reward = 1.0 if outcome != "none" else 0.0
        return self._observe(view), reward, terminated, truncated, self._info(view, outcome, reason)

    def render(self) -> NDArray[np.uint8] | None:
        """The last frame as the engine drew it, `(height, width, 3)` uint8; None without a `render_mode`."""
        if self.render_mode is None:
            return None
        if self._view is None:
            raise gymnasium.error.ResetNeeded("nothing to render yet: call reset() before render()")
        return self._view.frame.copy()

    def close(self) -> None:
        """Stops the engine."""
        self._lose()

    @property
    def engine_pid(self) -> int | None:
        """Process id of the running engine, if there is one."""
        return None if self._engine is None else self._engine.pid

    def _lose(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        self._over = True

    def _observe(self, view: View) -> NDArray[np.uint8]:
        if view.frame.shape == (self.size, self.size, 3):
            return view.frame.copy()
        return np.array(Image.fromarray(view.frame).resize((self.size, self.size), self._filter))

    @staticmethod
    def _info(view: View, outcome: str, reason: str) -> dict[str, Any]:
        position = np.array((view.x, view.y, view.z), np.float32)
        return {"position": position, "heading": view.heading, "outcome": outcome, "reason": reason}


def _pad_at(view: View) -> str:
    for name, (x, y) in PADS.items():
        if (view.x - x) ** 2 + (view.y - y) ** 2 <= PAD_RADIUS**2 and view.z > 20:
            return name
    return "none"
