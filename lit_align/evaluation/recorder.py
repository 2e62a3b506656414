"""Episodes that are watched, as MP4s."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lit_align.data.trajectory import Trajectory
from lit_align.evaluation.footage import INDEX, Film, name_of
from lit_align.evaluation.video import Mp4, film_strip
from lit_align.evaluation.watch import Painter, Step
from lit_align.files import write_whole


class Recorder:
    """A screen that writes each episode to an MP4, with a film strip of what the agent saw, and an index of them.

    Args:
        folder: Where they go.
        paint: Draws a step.
        size: Width and height of the videos.
        fps: Their frames per second.
        said: Called with each film when it is whole, and with its last step.
    """

    wanted = True

    def __init__(
        self,
        folder: Path,
        paint: Painter,
        size: tuple[int, int],
        fps: float,
        said: Callable[[Film, Step], None] = lambda *_: None,
    ) -> None:
        self.folder, self.paint, self.size, self.fps, self.said = folder, paint, size, fps, said
        self.films: list[Film] = []
        self._film: Mp4 | None = None

    def again(self) -> bool:
        """Every episode is filmed once."""
        return False

    def show(self, step: Step) -> None:
        """Films a step; the first one begins a new film, in place of one whose world died."""
        if step.number == 0:
            self.close()
            path = self.folder / f"episode-{step.episode:04d}.mp4"
            self._film = Mp4(path, (self.size[1], self.size[0]), self.fps, crf=23)
        assert self._film is not None
        self._film.add(self.paint(step, self.size))

    def end(self, step: Step, trajectory: Trajectory) -> None:
        """Films the last frame, and names the film after how the episode ended."""
        assert self._film is not None
        self._film.add(self.paint(step, self.size))
        name = name_of(trajectory)
        self._film.path = self.folder / f"{name}.mp4"
        self._film.close()
        self._film = None
        seen = trajectory.frames.size > 0
        if seen:
            film_strip(self.folder / f"{name}.png", [trajectory.frames])
        film = Film(
            f"{name}.mp4",
            f"{name}.png" if seen else "",
            trajectory.outcome,
            trajectory.reason,
            trajectory.seed,
            len(trajectory),
        )
        self.films.append(film)
        write_whole(self.folder / INDEX, json.dumps([asdict(one) for one in self.films], indent=2) + "\n")
        self.said(film, step)

    def close(self) -> None:
        """Throws away a film that was not finished."""
        if self._film is not None:
            self._film.discard()
            self._film = None
