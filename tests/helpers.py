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
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec, gamepad_space
from tests.support.light_world import SIZE as SIZE
from tests.support.light_world import LightWorld as LightWorld

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
        log_probs=-np.abs(rng.normal(size=steps)).astype(np.float32),
        vectors=rng.normal(size=(steps + 1, vector)).astype(np.float32),
        terminated=True,
    )


def record(folder, trajectories, space: spaces.Space[Any] | None = None, fps: float = 10.0):
    with TrajectoryWriter(folder, ActionCodec(space or gamepad_space()), fps=fps, env="made-up") as writer:
        for trajectory in trajectories:
            writer.write(trajectory)
    return str(folder)


if "LitAlign-test/Light-v0" not in gymnasium.registry:
    gymnasium.register("LitAlign-test/Light-v0", entry_point=lambda **args: LightWorld(**args))
