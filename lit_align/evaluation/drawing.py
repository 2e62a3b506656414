"""Rectangles, discs and text on an RGB array, cut off where the picture ends: what the HUD is drawn with."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lit_align.evaluation.palette import DARK, OUTCOME_COLOURS

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]


def rgb(colour: str) -> Colour:
    """`#rrggbb` as three numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


PAGE, PANEL, TEXT, MUTED, GRID = (rgb(c) for c in (DARK.page, DARK.panel, DARK.text, DARK.muted, DARK.grid))
BAR, CHOSEN, LINE = rgb(OUTCOME_COLOURS["left"]), rgb(OUTCOME_COLOURS["middle"]), rgb("#30a46c")
"""A probability, the class that was chosen, the reward model's score."""


class Box(NamedTuple):
    """A rectangle in pixels; nothing is drawn in one without width or height."""

    x: int
    y: int
    w: int
    h: int

    @property
    def empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.w < 1 or self.h < 1

    def inset(self, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> Box:
        """The same without so many pixels at its sides."""
        return Box(self.x + left, self.y + top, self.w - left - right, self.h - top - bottom)


def fill(picture: Picture, box: Box, colour: Colour) -> None:
    """Fills a rectangle."""
    if not box.empty:
        picture[max(0, box.y) : max(0, box.y + box.h), max(0, box.x) : max(0, box.x + box.w)] = colour


def outline(picture: Picture, box: Box, colour: Colour) -> None:
    """Draws the outermost pixels of a rectangle."""
    for side in (
        Box(box.x, box.y, box.w, 1),
        Box(box.x, box.y + box.h - 1, box.w, 1),
        Box(box.x, box.y, 1, box.h),
        Box(box.x + box.w - 1, box.y, 1, box.h),
    ):
        fill(picture, side, colour)


def disc(picture: Picture, x: int, y: int, radius: int, colour: Colour) -> None:
    """Fills a disc around a pixel."""
    top, left = max(0, y - radius), max(0, x - radius)
    part = picture[top : max(0, y + radius + 1), left : max(0, x + radius + 1)]
    rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    part[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2 + 1] = colour


@lru_cache(32)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@lru_cache(2048)
def letters(line: str, size: int) -> NDArray[np.float32]:
    """How much of each pixel a line of text covers `(h, w)`, in [0, 1]."""
    font = _font(size)
    width = max(1, round(font.getlength(line)))
    canvas = Image.new("L", (width + 1, round(1.35 * size) + 1))
    ImageDraw.Draw(canvas).text((0, 0), line, fill=255, font=font)
    return np.divide(canvas, 255, dtype=np.float32)[..., None]


def text(picture: Picture, box: Box, line: str, size: int, colour: Colour = TEXT, right: bool = False) -> None:
    """Writes a line at the top left of a box, or at its top right; what does not fit into it is cut off."""
    if box.empty or not line:
        return
    cover = letters(line, size)[: box.h, : box.w]
    x = box.x + (box.w - cover.shape[1] if right else 0)
    part = picture[max(0, box.y) : max(0, box.y + cover.shape[0]), max(0, x) : max(0, x + cover.shape[1])]
    cover = cover[: part.shape[0], : part.shape[1]]
    part[:] = part + (np.array(colour, np.float32) - part) * cover


def fitted(picture: Picture, box: Box) -> tuple[Picture, Box]:
    """A picture made as large as its box allows, in its own proportions, and where it lies: in the middle."""
    height, width = picture.shape[:2]
    scale = min(box.w / width, box.h / height)
    w, h = max(1, min(box.w, round(width * scale))), max(1, min(box.h, round(height * scale)))
    # Small frames stay as sharp as the agent sees them.
    how = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.BOX
    large = picture if (h, w) == (height, width) else np.asarray(Image.fromarray(picture).resize((w, h), how))
    return large, Box(box.x + (box.w - w) // 2, box.y + (box.h - h) // 2, w, h)
