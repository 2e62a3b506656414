"""`episodes.npz`: where each episode went and how it ended; small, without frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lit_align.data.trajectory import ENDED


class Ended(Protocol):
    """What is read of a trajectory."""

    @property
    def id(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def outcome(self) -> str: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def positions(self) -> NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True)
class Slim:
    """A trajectory without its frames and actions."""

    id: int
    seed: int
    outcome: str
    reason: str
    positions: NDArray[np.float32]

    @classmethod
    def of(cls, trajectory: Ended) -> Slim:
        """Leave the frames behind."""
        return cls(
            trajectory.id, trajectory.seed, trajectory.outcome or ENDED, trajectory.reason, trajectory.positions.copy()
        )


@dataclass
class Episodes:
    """N episodes as columns.

    Attributes:
        ids: (N,) int64.
        seeds: (N,) int64, what each was reset with.
        outcomes: (N,) text.
        reasons: (N,) text.
        positions: N arrays (T+1, 3) float32, in the world's units.
    """

    ids: NDArray[np.int64]
    seeds: NDArray[np.int64]
    outcomes: list[str]
    reasons: list[str]
    positions: Sequence[NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) steps of each episode."""
        return np.array([len(path) - 1 for path in self.positions], dtype=np.int64)

    def count(self) -> dict[str, int]:
        """Return `{outcome: episodes}` in order of first appearance."""
        return {name: self.outcomes.count(name) for name in dict.fromkeys(self.outcomes)}

    @classmethod
    def of(cls, trajectories: Iterable[Ended]) -> Episodes:
        """Take the columns of trajectories."""
        rows = list(trajectories)
        return cls(
            np.array([t.id for t in rows], dtype=np.int64),
            np.array([t.seed for t in rows], dtype=np.int64),
            [t.outcome for t in rows],
            [t.reason for t in rows],
            [np.asarray(t.positions, dtype=np.float32) for t in rows],
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one compressed npz without pickles, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                id=self.ids,
                seed=self.seeds,
                outcome=np.array(self.outcomes, dtype=np.str_),
                reason=np.array(self.reasons, dtype=np.str_),
                length=self.lengths,
                positions=np.concatenate([*self.positions, np.zeros((0, 3), np.float32)]),
            )
        os.replace(partial, target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Episodes:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in ("id", "seed", "outcome", "reason", "length", "positions")}
        ends = np.cumsum(columns["length"] + 1)
        if len(columns["positions"]) != (ends[-1] if len(ends) else 0):
            raise ValueError(
                f"{path}: found {len(columns['positions'])} positions, expected {ends[-1:]}; write it again"
            )
        return cls(
            columns["id"],
            columns["seed"],
            [str(text) for text in columns["outcome"]],
            [str(text) for text in columns["reason"]],
            np.split(columns["positions"], ends[:-1]) if len(ends) else [],
        )
