"""Episodes that are watched, in a window with keys, by pygame."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.evaluation.watch import Closed, Painter, Step

HOLD = 1.0
"""Seconds for which the last frame of an episode stays."""
BEAT = 0.02
"""Seconds between two looks at the keyboard, at the most."""
SMALLEST = 64
"""Pixels of a side of the window, at least."""

_INSTEAD = "leave out --window: the episodes are written as MP4s then"


def open_display() -> Any:
    """Returns pygame with its display ready.

    Raises:
        UserError: pygame is not installed, or there is no display to open a window on.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise UserError(f"a window needs pygame: pip install 'lit-align[play]'; or {_INSTEAD}") from error
    asked = os.environ.get("SDL_VIDEODRIVER")
    screens = ("DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not asked and not any(os.environ.get(name) for name in screens):
        raise UserError(f"there is no display for a window (neither DISPLAY nor WAYLAND_DISPLAY is set); {_INSTEAD}")
    try:
        pygame.display.init()
    except pygame.error as error:
        raise UserError(f"there is no display for a window ({error}); {_INSTEAD}") from error
    return pygame


class Window:
    """A screen with keys: space, `n`, `r`, `s`, `q` and Esc; see `lit-align play --help`.

    Args:
        pygame: What `open_display` returned.
        paint: Draws a step.
        size: Width and height in pixels; the window can be made larger.
        fps: Steps shown in a second.
        folder: Where pictures are saved.

    Raises:
        Closed: From `show` and `end`, when the window is closed.
    """

    def __init__(self, pygame: Any, paint: Painter, size: tuple[int, int], fps: float, folder: Path) -> None:
        self.pygame, self.paint, self.folder = pygame, paint, folder
        self.seconds = 1 / fps
        self.paused = False
        self._once = False  # one step of a paused episode
        self._skip = self._again = False
        self._note = ""
        self._due = 0.0
        self._step: Step | None = None
        try:
            self._surface = pygame.display.set_mode(size, pygame.RESIZABLE)
        except pygame.error as error:
            raise UserError(f"the window cannot be opened ({error}); {_INSTEAD}") from error
        pygame.display.set_caption(paint.title)

    @property
    def wanted(self) -> bool:
        """Whether nobody asked for another episode."""
        return not (self._skip or self._again)

    def again(self) -> bool:
        """Whether `r` was pressed in the episode before."""
        again, self._again, self._skip = self._again, False, False
        return again

    def show(self, step: Step) -> None:
        """Shows a step for as long as the speed says, or until a key goes on where the episode is paused."""
        self._step, self._note = step, ""
        self._draw()
        self._wait(self.seconds)

    def end(self, step: Step, trajectory: Trajectory) -> None:
        """Shows the last frame a little longer."""
        self._step, self._note = step, ""
        if self.wanted:
            self._draw()
            self._wait(max(HOLD, self.seconds))

    def close(self) -> None:
        """Closes the window."""
        self.pygame.display.quit()

    def _draw(self) -> None:
        if self._step is None:
            return
        note = self._note or ("paused" if self.paused else "")
        picture = self.paint(self._step, self._surface.get_size(), note)
        self.pygame.surfarray.blit_array(self._surface, picture.swapaxes(0, 1))
        self.pygame.display.flip()

    def _wait(self, seconds: float) -> None:
        """Listens to the keys until it is time for the next step."""
        # Counted from when the last step was due, so that the time to choose and to draw is no pause of its own.
        self._due = max(self._due + seconds, time.monotonic())
        self._once = False
        while True:
            for event in self.pygame.event.get():
                self._handle(event)
            left = self._due - time.monotonic()
            if not self.wanted or self._once or (left <= 0 and not self.paused):
                break
            time.sleep(BEAT if self.paused else min(BEAT, max(left, 0.0)))
        self._due = min(self._due, time.monotonic())

    def _handle(self, event: Any) -> None:
        pygame = self.pygame
        if event.type == pygame.QUIT:
            raise Closed
        if event.type == pygame.VIDEORESIZE:
            self._surface = pygame.display.get_surface()
            if min(self._surface.get_size()) < SMALLEST:
                self._surface = pygame.display.set_mode((SMALLEST, SMALLEST), pygame.RESIZABLE)
            self._draw()
        if event.type == pygame.KEYDOWN:
            self._press(event.key)

    def _press(self, key: int) -> None:
        pygame = self.pygame
        if key in (pygame.K_q, pygame.K_ESCAPE):
            raise Closed
        if key == pygame.K_SPACE:
            self.paused = not self.paused
            self._draw()
        elif key == pygame.K_n:
            self._once, self._skip = self.paused, self._skip or not self.paused
        elif key == pygame.K_r:
            self._again = True
        elif key == pygame.K_s and self._step is not None:
            path = self.folder / f"episode-{self._step.episode:04d}-step-{self._step.number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(self.paint(self._step, self._surface.get_size()))).save(path)
            self._note = f"saved {path}"
            self._draw()
