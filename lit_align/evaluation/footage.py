"""Choosing which episodes are shown, and filming them: as the agent saw them, and larger where the world can."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_align.data.trajectory import ENDED, Trajectory
from lit_align.evaluation.video import film_strip, write_mp4
from lit_align.files import write_whole
from lit_align.spaces import ActionCodec

_log = logging.getLogger(__name__)

INDEX = "videos.json"
WORDS = 32  # characters of an outcome, or of a reason, in a file's name


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


def name_of(trajectory: Trajectory) -> str:
    """Return what an episode's files are called, without a suffix: `none-fell-0003`, whatever the world's words are."""
    words = [fit_for_a_file(word) for word in (trajectory.outcome or ENDED, trajectory.reason) if word]
    return "-".join([*filter(None, words), f"{trajectory.id:04d}"])


def fit_for_a_file(text: str) -> str:
    """Return the letters, digits, dashes and underscores of a text, not too many for the name of a file."""
    return re.sub(r"[^\w-]+", "_", text)[:WORDS].strip("-_")


def film(
    trajectories: Iterable[Trajectory],
    folder: str | os.PathLike[str],
    fps: float,
    codec: ActionCodec,
    larger: Callable[[], gymnasium.Env[Any, Any]] | None = None,
) -> list[Film]:
    """Write an MP4 and a film strip of each episode, and an index of them.

    An episode that cannot be filmed is a warning: it is counted already, and a film is not worth the numbers.

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
            try:
                films.append(_film(one, target, fps, codec, world))
            # Whatever an encoder, a disk or a renderer raises.
            except Exception as error:
                _log.warning("episode %d is not filmed: %s: %s", one.id, type(error).__name__, error)
        write_whole(target / INDEX, json.dumps([asdict(item) for item in films], indent=2) + "\n")
    finally:
        if world is not None:
            world.close()
    return films


def _film(one: Trajectory, folder: Path, fps: float, codec: ActionCodec, world: gymnasium.Env[Any, Any] | None) -> Film:
    again = None if world is None else replay(one, world, codec)
    name = name_of(one)
    write_mp4(folder / f"{name}.mp4", one.frames if again is None else again, fps, height=320, crf=27)
    film_strip(folder / f"{name}.png", [one.frames])
    return Film(f"{name}.mp4", f"{name}.png", one.outcome, one.reason, one.seed, len(one), again is not None)


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
        # A copy: some worlds draw every picture into the same array.
        frames.append(picture.astype(np.uint8))
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
