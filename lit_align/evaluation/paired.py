"""Two agents side by side in the same episodes, where one of them missed its pad."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lit_align.data.trajectory import Trajectory
from lit_align.envs.gym import make
from lit_align.evaluation.footage import fit_for_a_file, replay
from lit_align.evaluation.recovery import gates_of, missed_at
from lit_align.evaluation.style import DARK, agent_title
from lit_align.evaluation.video import Frames, factor_for, upscale, write_mp4
from lit_align.files import write_whole
from lit_align.spaces import ActionCodec

if TYPE_CHECKING:  # the report reads the index without loading torch
    from lit_align.evaluation.match import Match

_log = logging.getLogger(__name__)

INDEX = "paired.json"
FOLDER = "paired"
BAND, GAP = 26, 8  # pixels: the line above each picture, and the space between the two


@dataclass(frozen=True)
class Seat:
    """One agent's episodes.

    Attributes:
        name: The agent's name.
        played: Its episodes by id; frames are not needed (see `without_frames`).
        codec: Turns stored classes into the world's actions.
    """

    name: str
    played: dict[int, Trajectory]
    codec: ActionCodec


@dataclass(frozen=True)
class Side:
    """One half of a paired video: who played, how it ended, and at which step it missed (None: it did not)."""

    name: str
    outcome: str
    reason: str
    steps: int
    missed_at: int | None


@dataclass(frozen=True)
class PairedFilm:
    """A paired video on disk: its file beside the index, the world's seed, and both sides."""

    file: str
    seed: int
    left: Side
    right: Side


def without_frames(trajectory: Trajectory) -> Trajectory:
    """What is needed to play an episode again: a thousand of them are a few MB."""
    nothing = np.zeros((len(trajectory) + 1, 0, 0, 3), np.uint8)
    return dataclasses.replace(trajectory, frames=nothing, vectors=np.zeros((0, 0), np.float32))


def film_pairs(match: Match, seats: Sequence[Seat], folder: Path, count: int) -> list[PairedFilm]:
    """Films the first agent beside each of the others, in the first episodes in which one of the two missed.

    Args:
        match: How they played: the same for all. Its `target` is the pad that is wanted; None for any.
        seats: Two agents or more.
        folder: Where the MP4s and their index go.
        count: Videos of each pair.

    Returns:
        What was filmed; nothing of a world that does not render.
    """
    films: list[PairedFilm] = []
    larger = match.larger() or (lambda: make(match.env, **{**match.env_args, "render_mode": "rgb_array"}))
    try:
        with contextlib.closing(larger()) as world:
            for other in seats[1:]:
                made = 0
                for number in chosen(match, seats[0], other):
                    if made == count:
                        break
                    film = _film(match, world, (seats[0], other), number, folder)
                    films += [film] if film else []
                    made += film is not None
    # Whatever a renderer raises: the episodes are counted already, and a film is not worth their numbers.
    except Exception as error:
        _log.warning("no more paired videos of %s: %s: %s", match.env, type(error).__name__, error)
    try:
        write_whole(folder / INDEX, json.dumps([asdict(film) for film in films], indent=2) + "\n")
    except OSError as error:
        _log.warning("no index of the paired videos in %s: %s", folder, error)
    return films


def chosen(match: Match, left: Seat, right: Seat) -> Iterator[int]:
    """Yields the ids of the episodes that both played and in which one of them missed, in order."""
    for number in sorted(left.played.keys() & right.played.keys()):
        if any(_side(match, seat, number).missed_at is not None for seat in (left, right)):
            yield number


def _side(match: Match, seat: Seat, number: int) -> Side:
    one = seat.played[number]
    missed = missed_at(one.positions, one.outcome, gates_of(match.env), match.target)
    return Side(seat.name, one.outcome, one.reason, len(one), missed)


def _film(match: Match, world: Any, seats: tuple[Seat, Seat], number: int, folder: Path) -> PairedFilm | None:
    views = [replay(seat.played[number], world, seat.codec) for seat in seats]
    if views[0] is None or views[1] is None:
        return None
    sides = [_side(match, seat, number) for seat in seats]
    file = f"{number:04d}-{fit_for_a_file(sides[0].name)}-{fit_for_a_file(sides[1].name)}.mp4"
    pictures = side_by_side((views[0], views[1]), (_labels(sides[0]), _labels(sides[1])))
    write_mp4(folder / file, pictures, match.fps(), height=pictures.shape[1], crf=27)
    return PairedFilm(file, seats[0].played[number].seed, sides[0], sides[1])


def _labels(side: Side) -> tuple[str, str]:
    """What stands above a picture while its episode runs, and when it is over."""
    title = agent_title(side.name)
    reason = "" if side.reason in ("", "reached") else f", {side.reason.replace('_', ' ')}"
    return title, f"{title}: {side.outcome}{reason}"


def side_by_side(views: tuple[Frames, Frames], labels: tuple[tuple[str, str], tuple[str, str]]) -> Frames:
    """Puts two videos beside each other; the shorter one holds its last picture, darkened.

    Args:
        views: (T, H, W, 3) uint8 each; H and W are the same in both.
        labels: Of each, what stands above it while it runs, and afterwards.

    Returns:
        (longer T, height, width, 3) uint8; frames are made larger by a whole factor where they are small.
    """
    steps = max(len(view) for view in views)
    halves = []
    for view, (running, over) in zip(views, labels, strict=True):
        large = upscale(view, factor_for(view.shape[1], 240))
        held = np.repeat(large[-1:] // 2, steps - len(large), axis=0)
        bands = np.repeat(_band(running, large.shape[2])[None], steps, axis=0)
        bands[len(large) - 1 :] = _band(over, large.shape[2])
        halves.append(np.concatenate([bands, np.concatenate([large, held])], axis=1))
    gap = np.zeros((steps, halves[0].shape[1], GAP, 3), np.uint8)
    gap[:] = _rgb(DARK.page)
    return np.concatenate([halves[0], gap, halves[1]], axis=2)


def _band(text: str, width: int) -> Frames:
    """A line of text `(BAND, width, 3)`, uint8, as large as fits."""
    picture = Image.new("RGB", (width, BAND), DARK.page)
    fonts = [ImageFont.load_default(size) for size in range(14, 7, -1)]
    font = next((font for font in fonts if font.getlength(text) <= width - 12), fonts[-1])
    ImageDraw.Draw(picture).text((6, 5), text, fill=DARK.text, font=font)
    return np.asarray(picture)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def read_index(folder: Path) -> list[PairedFilm]:
    """The paired videos of a folder whose files are there."""
    index = folder / INDEX
    if not index.is_file():
        return []
    rows = json.loads(index.read_text())
    return [
        PairedFilm(row["file"], row["seed"], Side(**row["left"]), Side(**row["right"]))
        for row in rows
        if (folder / row["file"]).is_file()
    ]
