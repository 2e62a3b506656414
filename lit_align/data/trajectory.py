"""One episode of play in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_align.errors import UserError

ENDED = "ended"
"""Outcome of an episode of a world that names none: it is over, and that is all there is to say."""


@dataclass
class Trajectory:
    """An episode: what was seen, what was done, how it ended.

    `frames[t]` was on the screen when `actions[t]` was chosen; `frames[T]` is the last one seen.

    Attributes:
        frames: Pixels `(T + 1, H, W, 3)`, uint8; H and W are 0 where the world shows none.
        actions: Classes of the action heads `(T, heads)`, uint8 (see `lit_align.spaces.ActionCodec`).
        id: Global episode id; preferences refer to it.
        seed: The world's seed.
        outcome: How the episode ended, a short word of the environment (`left`, `none`, ...); `ended` where
            a world names none, and empty where a recording does not tell.
        reason: A finer word for the same.
        player: Who played: a scripted player or an agent's folder.
        vectors: Numbers seen beside the pixels or in their place `(T + 1, V)`, float32; V is 0 where the world shows
            none.
        positions: Where the player was `(T + 1, 3)`, float32, in the world's units; zeros where the world does
            not tell.
        rewards: The environment's own rewards `(T,)`, float32.
        log_probs: Joint log-probability of each action under the sampling policy at its temperature `(T,)`,
            float32; None when unknown.
        terminated: The environment ended the episode.
        truncated: A time limit ended it.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.uint8]
    id: int
    seed: int = 0
    outcome: str = ""
    reason: str = ""
    player: str = ""
    vectors: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    positions: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    rewards: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    log_probs: NDArray[np.float32] | None = None
    terminated: bool = False
    truncated: bool = False

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if self.vectors.shape == (0, 0):
            self.vectors = np.zeros((steps + 1, 0), np.float32)
        if self.positions.size == 0:
            self.positions = np.zeros((steps + 1, 3), np.float32)
        if self.rewards.size == 0:
            self.rewards = np.zeros(steps, np.float32)
        self._check("frames", self.frames, np.uint8, (steps + 1, None, None, 3))
        self._check("actions", self.actions, np.uint8, (steps, None))
        self._check("vectors", self.vectors, np.float32, (steps + 1, None))
        self._check("positions", self.positions, np.float32, (steps + 1, 3))
        self._check("rewards", self.rewards, np.float32, (steps,))
        if self.log_probs is not None:
            self._check("log_probs", self.log_probs, np.float32, (steps,))

    def _check(self, name: str, array: NDArray[Any], dtype: type, shape: tuple[int | None, ...]) -> None:
        fits = array.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            wanted = "(" + ", ".join("*" if n is None else str(n) for n in shape) + ")"
            raise UserError(
                f"episode {self.id}: {name} is {array.dtype} of shape {array.shape}, "
                f"expected {np.dtype(dtype)} of shape {wanted} for {len(self.actions)} actions"
            )
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise UserError(
                f"episode {self.id}: {name} holds a value that is not finite "
                f"(step {int(np.argwhere(~np.isfinite(array))[0][0])})"
            )

    def __len__(self) -> int:
        """Number of env steps, T."""
        return len(self.actions)
