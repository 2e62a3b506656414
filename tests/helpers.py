"""Small things that several tests need: a tiny agent, made-up trajectories, a world without a game engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from lit_align.data.trajectories import TrajectoryWriter
from lit_align.data.trajectory import Trajectory
from lit_align.envs import WorldFailed
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec, gamepad_space

SIZE = 32
TINY = BackboneConfig(image_size=SIZE, channels=4, blocks=0, width=32, layers=2, heads=2, context=6)


def tiny_agent(seed: int = 0, space: spaces.Space[Any] | None = None, **changes: Any) -> Agent:
    """An agent of `TINY`, with some of its fields changed."""
    torch.manual_seed(seed)
    agent = Agent(replace(TINY, **changes), ActionCodec(space or gamepad_space())).eval()
    for parameter in agent.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return agent


def made_up(
    episode: int,
    steps: int,
    seed: int = 0,
    outcome: str = "left",
    space: spaces.Space[Any] | None = None,
    size: int = SIZE,
    vector: int = 0,
) -> Trajectory:
    """A trajectory of noise, with pixels and a vector of so many numbers."""
    rng = np.random.default_rng([seed, episode])
    sizes = ActionCodec(space or gamepad_space()).sizes
    frames = rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8)
    actions = np.stack([rng.integers(0, n, steps) for n in sizes], axis=1).astype(np.uint8)
    return Trajectory(
        frames=frames,
        actions=actions,
        id=episode,
        seed=seed,
        outcome=outcome,
        player="noise",
        positions=rng.normal(size=(steps + 1, 3)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        log_probs=rng.normal(size=steps).astype(np.float32),
        vectors=rng.normal(size=(steps + 1, vector)).astype(np.float32),
        terminated=True,
    )


def record(folder, trajectories, space: spaces.Space[Any] | None = None):
    with TrajectoryWriter(folder, ActionCodec(space or gamepad_space()), fps=10.0, env="made-up") as writer:
        for trajectory in trajectories:
            writer.write(trajectory)
    return str(folder)


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


if "LitAlign-test/Light-v0" not in gymnasium.registry:
    gymnasium.register("LitAlign-test/Light-v0", entry_point=lambda **args: LightWorld(**args))
