"""One step of an episode as a picture: what is seen, the action heads beside it, the reward model's score below.

Pillow and NumPy alone; a window and a video show the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_align.evaluation.drawing import GRID, LINE, MUTED, PAGE, PANEL, Box, Picture, disc, fill, fitted, text
from lit_align.evaluation.hud_heads import Panel, Probabilities
from lit_align.spaces import ActionCodec

SPAN = 50
"""Steps that the score's line has room for; a longer one is drawn closer."""
RANGE = 2.0
"""The score's axis goes from minus to plus this, or as far as the scores do."""


class Hud:
    """Draws steps at one size; the same arguments give the same pixels.

    Args:
        codec: The action space.
        size: Width and height in pixels, 1 or more each.
        picture: Whether there is a picture to show; without one the heads have its room.
        heads: Whether the action heads are drawn.
        line: Whether there is a score.
        joint: Whether heads are independent given what was seen; see `Panel`.
    """

    def __init__(
        self,
        codec: ActionCodec,
        size: tuple[int, int],
        picture: bool = True,
        heads: bool = True,
        line: bool = False,
        joint: bool = True,
    ) -> None:
        width, height = size
        if width < 1 or height < 1:
            raise ValueError(f"found a size of {width} x {height} pixels; expected 1 x 1 or more")
        self.size = size
        self.letter = int(np.clip(min(height / 30, width / 52), 7, 32))
        self.gap = max(2, self.letter // 2)
        rest = Box(0, 0, width, height).inset(*[self.gap] * 4)
        self.caption = rest._replace(h=round(1.5 * self.letter))
        rest = rest.inset(top=self.caption.h)
        self.panel: Panel | None = None
        if heads:
            wide = rest.w * 2 // 5 if picture else rest.w
            box = Box(rest.x + rest.w - wide, rest.y, wide, rest.h)
            if not picture and line:
                box = box.inset(bottom=rest.h // 4)
            self.panel = Panel(codec, box, self.letter, joint)
            rest = rest.inset(right=wide + 2 * self.gap) if picture else rest
        self.chart = rest.inset(top=rest.h - rest.h // 4 + self.gap) if line else None
        self.picture = rest.inset(bottom=rest.h // 4 if line else 0) if picture else None
        self.ground = np.full((height, width, 3), PAGE, np.uint8)
        if self.panel is not None:
            self.panel.back(self.ground)
        if self.chart is not None:
            fill(self.ground, self.chart, PANEL)

    def draw(
        self,
        picture: Picture | None = None,
        probabilities: Probabilities | None = None,
        chosen: Sequence[int] | NDArray[Any] | None = None,
        scores: Sequence[float] = (),
        caption: str = "",
        note: str = "",
    ) -> Picture:
        """Returns one step `(height, width, 3)`, uint8.

        Args:
            picture: What is seen `(h, w, 3)`, uint8, of any size.
            probabilities: `(heads, widest)` of every class; None where nothing is chosen any more.
            chosen: The classes that were chosen `(heads,)`.
            scores: The episode's score after each step so far.
            caption: A line above, at the left.
            note: Another one, at the right.
        """
        canvas = self.ground.copy()
        text(canvas, self.caption, caption, self.letter)
        text(canvas, self.caption, note, self.letter, MUTED, right=True)
        if picture is not None and self.picture is not None and not self.picture.empty:
            large, box = fitted(picture, self.picture)
            canvas[box.y : box.y + box.h, box.x : box.x + box.w] = large
        if self.panel is not None and probabilities is not None and chosen is not None:
            self.panel.draw(canvas, probabilities, chosen)
        if self.chart is not None and not self.chart.empty and len(scores):
            self._line(canvas, self.chart, np.clip(np.nan_to_num(np.array(scores, np.float64)), -1e9, 1e9))
        return canvas

    def _line(self, canvas: Picture, box: Box, scores: NDArray[np.float64]) -> None:
        """The score so far, from the left; its last value in words."""
        low, high = min(-RANGE, float(scores.min())), max(RANGE, float(scores.max()))
        radius = max(1, self.letter // 5)
        words = round(1.4 * self.letter) if box.h > 4 * self.letter else 0
        inner = box.inset(*[radius + 1] * 4).inset(top=words)
        if inner.empty:
            return
        x = inner.x + np.arange(len(scores)) / max(SPAN, len(scores) - 1) * (inner.w - 1)
        y = inner.y + (high - scores) / (high - low) * (inner.h - 1)
        zero = round(inner.y + high / (high - low) * (inner.h - 1))
        fill(canvas, Box(box.x, zero, box.w, 1), GRID)
        text(canvas, box.inset(left=2), f"reward {scores[-1]:+.2f}", self.letter, MUTED)
        # More points than pixels only cost time.
        kept = np.unique(np.linspace(0, len(scores) - 1, min(len(scores), 2 * inner.w)).round().astype(int))
        part = Image.fromarray(canvas[box.y : box.y + box.h, box.x : box.x + box.w])
        points = [(round(x[i]) - box.x, round(y[i]) - box.y) for i in kept]
        ImageDraw.Draw(part).line(points, fill=LINE, width=1 + self.letter // 12)
        canvas[box.y : box.y + box.h, box.x : box.x + box.w] = np.asarray(part)
        disc(canvas, round(x[-1]), round(y[-1]), radius, LINE)
