"""Which steps are trained on where doing nothing is not imitated: people at rest teach an agent to rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_align.data.cache import FrameCache
from lit_align.spaces import Classes

_CHUNK = 1 << 20  # rows that are compared at a time


@dataclass(frozen=True)
class Targets:
    """The steps of some episodes that are trained on.

    Attributes:
        steps: Steps of one episode after another, ascending in each `(targets,)`.
        first: Where each episode's begin in `steps`, and the end of the last `(episodes + 1,)`.
    """

    steps: NDArray[np.int64]
    first: NDArray[np.int64]

    @classmethod
    def join(cls, parts: Sequence[NDArray[np.int64]]) -> Targets:
        """Each episode's steps as one."""
        counts = [len(part) for part in parts]
        return cls(np.concatenate([np.zeros(0, np.int64), *parts]), np.cumsum([0, *counts]))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Targets of each episode `(episodes,)`."""
        return np.diff(self.first)

    def of(self, episode: int) -> NDArray[np.int64]:
        """One episode's steps `(targets,)`."""
        return self.steps[self.first[episode] : self.first[episode + 1]]


def acted(cache: FrameCache, null: Classes) -> Targets:
    """The steps of every episode of a cache whose action is not `null` `(heads,)`."""
    some = np.empty(len(cache.actions), bool)
    for at in range(0, len(some), _CHUNK):
        some[at : at + _CHUNK] = (cache.actions[at : at + _CHUNK] != null).any(1)
    some[cache.starts + cache.lengths] = False  # no action follows an episode's last frame
    rows = np.flatnonzero(some)
    first = np.searchsorted(rows, np.append(cache.starts, len(some)))
    return Targets(rows - np.repeat(cache.starts, np.diff(first)), first)


def onto_targets(
    episodes: NDArray[np.int64],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    lengths: NDArray[np.int64],
    targets: Targets,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Moves windows that hold no target to where they hold one, a random one at a random place in the window.

    Args:
        episodes: Episode of each window `(windows,)`.
        starts: First step of each `(windows,)`.
        sizes: Steps of each `(windows,)`.
        lengths: Env steps of each episode `(episodes,)`.
        targets: Steps that are trained on, one or more in each episode.
        generator: Draws.

    Returns:
        First step of each window `(windows,)`.
    """
    # All episodes laid end to end, so that one sorted array answers for all windows.
    offsets = np.cumsum(lengths) - lengths
    line = targets.steps + np.repeat(offsets, targets.counts)
    begins = offsets[episodes] + starts
    empty = np.searchsorted(line, begins) == np.searchsorted(line, begins + sizes)
    # Drawn for all windows, so that the draws of one do not depend on the others.
    picked = generator.integers(0, targets.counts[episodes]) + targets.first[episodes]
    moved = targets.steps[picked] - generator.integers(0, sizes)
    return np.where(empty, np.clip(moved, 0, lengths[episodes] - sizes), starts)
