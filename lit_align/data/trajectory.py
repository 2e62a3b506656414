"""One episode of play in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_align.errors import UserError, shortly

ENDED = "ended"
"""Outcome of an episode of a world that names none: it is over, and that is all there is to say."""

_ROUNDING = 1e-4
"""By which a sum of logarithms of 1 may miss 0."""
_FACTS: tuple[tuple[tuple[str, ...], tuple[type, ...], str], ...] = (
    (("id", "seed"), (int, np.integer), "a whole number"),
    (("outcome", "reason", "player"), (str,), "text, which may be empty"),
    (("terminated", "truncated"), (bool, np.bool_), "true or false"),
)


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
        for name, dtype in (("frames", np.uint8), ("actions", np.uint8), ("vectors", np.float32)):
            setattr(self, name, self._array(name, dtype))
        for name in ("positions", "rewards", "log_probs"):
            setattr(self, name, self._array(name, np.float32))
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

    def _array(self, name: str, dtype: type) -> NDArray[Any] | None:
        """A part as it is, or the array that lists of numbers, or numbers of another type, make."""
        value = getattr(self, name)
        if (isinstance(value, np.ndarray) and value.dtype == dtype) or (value is None and name == "log_probs"):
            return value
        whole = dtype == np.uint8
        try:
            array = np.asarray(value)
            numbers = array.ndim and array.dtype.kind in ("iu" if whole else "iuf")
            if not numbers or (whole and not ((array >= 0) & (array < 256)).all()):
                raise TypeError(f"found {f'{array.dtype} values' if isinstance(value, np.ndarray) else shortly(value)}")
            with np.errstate(over="ignore"):  # what is too large is infinite then, and refused by its name
                return array.astype(dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            wanted = "whole numbers from 0 to 255" if whole else "numbers"
            raise UserError(
                f"episode {shortly(self.id)}: {name} is a {type(value).__name__} that makes no array of "
                f"{np.dtype(dtype)} ({error}); expected {wanted}"
            ) from error

    def _check(self, name: str, array: NDArray[Any], dtype: type, shape: tuple[int | None, ...]) -> None:
        fits = array.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            wanted = "(" + ", ".join("*" if n is None else str(n) for n in shape) + ")"
            raise UserError(
                f"episode {shortly(self.id)}: {name} is {array.dtype} of shape {array.shape}, "
                f"expected {np.dtype(dtype)} of shape {wanted} for {len(self.actions)} actions"
            )
        if array.dtype == np.float32 and not np.isfinite(array).all():
            raise UserError(
                f"episode {self.id}: {name} holds a value that is not finite "
                f"(step {int(np.argwhere(~np.isfinite(array))[0][0])})"
            )

    def check_kept(self) -> None:
        """Raises UserError where a folder of trajectories would not give the episode back as it is."""
        wrong = self._wrong()
        if wrong:
            raise UserError(f"episode {shortly(self.id)}: {wrong}")

    def _wrong(self) -> str:
        """What cannot be kept of the episode; empty where all can."""
        for names, kinds, expected in _FACTS:
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                    return f"{name} is {shortly(value)}, {type(value).__name__}; expected {expected}"
        if not all(-(2**63) <= value < 2**63 for value in (self.id, self.seed)):
            return f"the id or the seed ({shortly(self.seed)}) is too large; expected numbers of 64 bits"
        if not len(self):
            return "it has no step; expected one action or more: leave it out"
        height, width = self.frames.shape[1:3]
        if height != width:
            return (
                f"frames are of shape {self.frames.shape}, {height} high and {width} wide; expected square ones: crop "
                "or resize them"
            )
        if self.log_probs is not None and self.log_probs.max() > _ROUNDING:
            at = int(self.log_probs.argmax())
            return (
                f"log_probs holds {self.log_probs[at]:g} (step {at}); expected logarithms of probabilities, 0 or less"
            )
        return ""

    def __len__(self) -> int:
        """Number of env steps, T."""
        return len(self.actions)
