"""Choosing which episodes are shown, and filming them: as the agent saw them, and larger where the world can."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_align.data.trajectory import Trajectory
from lit_align.evaluation.video import film_strip, write_mp4
from lit_align.spaces import ActionCodec

INDEX = "videos.json"


@dataclass(frozen=True)
class Film:
    """One video on disk.

    Attributes:
        file: The MP4's name, beside the index.
        strip: The film strip's name (PNG), beside the index.
        outcome: How the episode ended.
        reason: Why.
        seed: The world's seed.
        steps: Steps played.
        replayed: Whether it was filmed again at a larger size, from the same seed and actions.
    """

    file: str
    strip: str
    outcome: str
    reason: str
    seed: int
    steps: int
    replayed: bool = False


class Picks:
    """Keeps the first few episodes of each outcome, and one of each reason, as they come.

    Only what is kept holds memory: frames of all episodes would not fit.

    Args:
        each: Episodes kept for each outcome.
    """

    def __init__(self, each: int) -> None:
        self.each = each
        self.kept: dict[int, Trajectory] = {}

    def see(self, trajectory: Trajectory) -> None:
        """Keep the episode if it adds something; lower ids go first, in whatever order episodes end."""
        if self.each < 1:
            return
        self.kept[trajectory.id] = trajectory
        wanted: set[int] = set()
        by_outcome: dict[str, int] = {}
        reasons: set[tuple[str, str]] = set()
        for number in sorted(self.kept):
            one = self.kept[number]
            by_outcome[one.outcome] = by_outcome.get(one.outcome, 0) + 1
            if by_outcome[one.outcome] <= self.each or (one.outcome, one.reason) not in reasons:
                wanted.add(number)
            reasons.add((one.outcome, one.reason))
        self.kept = {number: self.kept[number] for number in wanted}

    def chosen(self) -> list[Trajectory]:
        """Return what was kept, by id."""
        return [self.kept[number] for number in sorted(self.kept)]


def film(
    trajectories: Iterable[Trajectory],
    folder: str | os.PathLike[str],
    fps: float,
    codec: ActionCodec,
    larger: Callable[[], gymnasium.Env[Any, Any]] | None = None,
) -> list[Film]:
    """Write an MP4 and a film strip of each episode, and an index of them.

    Args:
        trajectories: What to film.
        folder: Where it goes.
        fps: Frames per second of the videos.
        codec: Turns stored classes into the world's actions, for replaying.
        larger: Makes a world that renders larger pictures; None films what the agent saw.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    world = larger() if larger is not None else None
    films: list[Film] = []
    try:
        for one in trajectories:
            again = None if world is None else replay(one, world, codec)
            name = f"{one.outcome or 'episode'}-{one.reason or 'ended'}-{one.id:04d}".replace("/", "_").replace(
                " ", "_"
            )
            frames = one.frames if again is None else again
            write_mp4(target / f"{name}.mp4", frames, fps, height=320, crf=27)
            film_strip(target / f"{name}.png", [one.frames])
            films.append(
                Film(f"{name}.mp4", f"{name}.png", one.outcome, one.reason, one.seed, len(one), again is not None)
            )
    finally:
        if world is not None:
            world.close()
    (target / INDEX).write_text(json.dumps([asdict(item) for item in films], indent=2) + "\n")
    return films


def replay(trajectory: Trajectory, world: gymnasium.Env[Any, Any], codec: ActionCodec) -> NDArray[np.uint8] | None:
    """Play the same actions from the same seed and return what the world renders, (T+1, H, W, 3) uint8.

    None when the world goes another way: a film must show the episode that was counted.
    """
    frames: list[NDArray[np.uint8]] = []
    _, info = world.reset(seed=trajectory.seed)
    for step in range(len(trajectory) + 1):
        if not np.allclose(info.get("position", (0, 0, 0)), trajectory.positions[step], atol=1e-3):
            return None
        picture = world.render()
        if not isinstance(picture, np.ndarray):
            return None
        frames.append(picture.astype(np.uint8, copy=False))
        if step == len(trajectory):
            break
        _, _, terminated, truncated, info = world.step(codec.decode(trajectory.actions[step]))
        if (terminated or truncated) != (step == len(trajectory) - 1):
            return None
    return np.stack(frames)


def read_index(folder: str | os.PathLike[str]) -> list[Film]:
    """Return the films of a folder whose files are there; none when nothing was filmed."""
    index = Path(folder) / INDEX
    if not index.is_file():
        return []
    known = set(Film.__dataclass_fields__)
    rows = [{key: value for key, value in row.items() if key in known} for row in json.loads(index.read_text())]
    return [item for item in (Film(**row) for row in rows) if (Path(folder) / item.file).is_file()]
