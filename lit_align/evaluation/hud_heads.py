"""The action heads as a panel: sticks as pads, buttons as bars, choices and single axes as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_align.evaluation.drawing import (
    BAR,
    CHOSEN,
    GRID,
    MUTED,
    PAGE,
    PANEL,
    Box,
    Picture,
    disc,
    fill,
    letters,
    outline,
    text,
)
from lit_align.spaces import ActionCodec, Head

SMALLEST = 0.5
"""Of its natural height; blocks that would be lower are left out, and their number is told."""

LARGEST = 3.0
"""Of its natural height; what is left over stays empty."""

MANY = 20
"""Classes of a head; of more than these each is drawn beside the likeliest, not beside certainty."""

Probabilities = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Block:
    """Heads that are drawn together.

    Attributes:
        kind: `pad`: two axes of one stick; `buttons`; `columns`: one head.
        title: What it is called.
        heads: Their places among the codec's heads.
    """

    kind: Literal["pad", "buttons", "columns"]
    title: str
    heads: tuple[int, ...]


def blocks_of(codec: ActionCodec) -> list[Block]:
    """The codec's heads in blocks, in their order."""
    blocks: list[Block] = []
    for (above, kind), run in groupby(enumerate(codec.heads), lambda item: (_above(item[1]), item[1].kind)):
        places, title = tuple(place for place, _ in run), above.replace("_", " ")
        if kind == "button":
            blocks.append(Block("buttons", title or "buttons", places))
        elif kind == "axis" and len(places) == 2:
            blocks.append(Block("pad", title or "stick", places))
        else:
            blocks += [Block("columns", codec.heads[p].name.replace("_", " ") or "action", (p,)) for p in places]
    return blocks


def _above(head: Head) -> str:
    return head.name.rpartition(".")[0]


class Panel:
    """All heads in a box.

    Args:
        codec: The action space.
        box: Where they go.
        size: Of the letters, in pixels.
        joint: Whether heads are independent, so that the two axes of a stick have a joint probability to shade by.
    """

    def __init__(self, codec: ActionCodec, box: Box, size: int, joint: bool = True) -> None:
        self.codec, self.box, self.size, self.joint = codec, box, size, joint
        self.line = round(1.4 * size)
        self.places: list[tuple[Block, Box]] = []
        self.left_out = 0
        self._arrange()

    def _arrange(self) -> None:
        """Gives every block its box, from the top; pads stand side by side, and single heads where room is short."""
        for beside in (1, 2, 3):
            rows = self._rows(beside)
            natural = [self._natural(row) for row in rows]
            if SMALLEST * sum(natural) <= self.box.h:
                break
        while rows and SMALLEST * sum(natural) > self.box.h - (self.line if self.left_out else 0):
            self.left_out += sum(len(block.heads) for block in rows.pop())
            natural.pop()
        room = self.box.h - (self.line if self.left_out else 0)
        scale = min(LARGEST, room / max(1, sum(natural)))
        y = self.box.y
        for row, height in zip(rows, natural, strict=True):
            h, w = int(height * scale), self.box.w // max(len(row), 2 if row[0].kind == "pad" else 1)
            for column, block in enumerate(row):
                self.places.append((block, Box(self.box.x + column * w, y, w, h).inset(right=4, bottom=4)))
            y += h

    def _rows(self, beside: int) -> list[list[Block]]:
        """The blocks in rows: two pads in one, and up to so many single heads."""
        most = {"pad": 2, "columns": beside, "buttons": 1}
        rows: list[list[Block]] = []
        for block in blocks_of(self.codec):
            if rows and rows[-1][0].kind == block.kind and len(rows[-1]) < most[block.kind]:
                rows[-1].append(block)
            else:
                rows.append([block])
        return rows

    def _natural(self, row: Sequence[Block]) -> int:
        if row[0].kind == "pad":
            return self.line + self.box.w // 2
        if row[0].kind == "buttons":
            per_row = self._columns(len(row[0].heads), self.box.w)
            return self.line + -(-len(row[0].heads) // per_row) * self.line
        return 4 * self.line

    def _columns(self, buttons: int, width: int) -> int:
        return max(1, min(4, width // max(1, 7 * self.size), buttons))

    def back(self, picture: Picture) -> None:
        """Draws what is the same at every step: titles and frames."""
        for block, box in self.places:
            text(picture, box._replace(h=min(box.h, self.line)), block.title, self.size, MUTED)
            if block.kind == "pad":
                self._back_of_pad(picture, self._pad(box)[0], block)
        if self.left_out:
            last = Box(self.box.x, self.box.y + self.box.h - self.line, self.box.w, self.line)
            text(picture, last, f"+ {self.left_out} more heads", self.size, MUTED)

    def _back_of_pad(self, picture: Picture, square: Box, block: Block) -> None:
        fill(picture, square, PANEL)
        outline(picture, square, GRID)
        if not square.empty:  # where the stick rests
            x, y = (_place(self.codec.heads[p], int(self.codec.null[p]), square.w) for p in block.heads)
            fill(picture, Box(square.x + x, square.y, 1, square.h), GRID)
            fill(picture, Box(square.x, square.y + square.h - 1 - y, square.w, 1), GRID)

    def draw(self, picture: Picture, probabilities: Probabilities, chosen: Sequence[int] | NDArray[Any]) -> None:
        """Draws one step.

        Args:
            picture: On this `(H, W, 3)`, uint8.
            probabilities: `(heads, widest)`, of every class.
            chosen: Classes `(heads,)`.
        """
        shares = np.nan_to_num(np.clip(probabilities, 0.0, 1.0))
        for block, box in self.places:
            if box.h <= self.line:
                continue
            rows = [_visible(shares[place, : self.codec.sizes[place]]) for place in block.heads]
            picked = [int(chosen[place]) for place in block.heads]
            if block.kind == "pad":
                self._draw_pad(picture, box, block, rows, picked)
            elif block.kind == "buttons":
                self._draw_buttons(picture, box.inset(top=self.line), rows, picked)
            else:
                self._draw_columns(picture, box.inset(top=self.line), block.heads[0], rows[0], picked[0])

    def _pad(self, box: Box) -> tuple[Box, int]:
        """The square of a stick, and how long the longest bars beside it may be."""
        longest = max(4, min(box.w, box.h - self.line) // 5)
        side = min(box.w, box.h - self.line) - longest - 2
        return Box(box.x, box.y + self.line, side, side), longest

    def _draw_pad(self, picture: Picture, box: Box, block: Block, rows: list[Probabilities], picked: list[int]) -> None:
        """The two axes' bins in a square, right and up; bars of x below it and of y at its right."""
        square, longest = self._pad(box)
        if square.empty:
            return
        across, up = (self.codec.heads[place] for place in block.heads)
        xs, ys = _edges(across, square.w), square.h - _edges(up, square.h)
        if self.joint:
            columns = np.repeat(rows[0], np.diff(xs))
            lines = np.repeat(rows[1], -np.diff(ys))[::-1]
            shade = np.sqrt(np.outer(lines, columns))[..., None]
            part = picture[square.y : square.y + square.h, square.x : square.x + square.w]
            shade = shade[: part.shape[0], : part.shape[1]]
            part[:] = part + (np.array(BAR, np.float32) - part) * shade
        for k, p in enumerate(rows[0]):
            bar = Box(square.x + xs[k], square.y + square.h + 2, xs[k + 1] - xs[k], round(p * longest))
            fill(picture, bar, CHOSEN if k == picked[0] else BAR)
        for k, p in enumerate(rows[1]):
            bar = Box(square.x + square.w + 2, square.y + ys[k + 1], round(p * longest), ys[k] - ys[k + 1])
            fill(picture, bar, CHOSEN if k == picked[1] else BAR)
        x, y = (_place(head, cls, square.w) for head, cls in zip((across, up), picked, strict=True))
        radius = max(1, square.w // 16)
        disc(picture, square.x + x, square.y + square.h - 1 - y, radius + 1, PAGE)
        disc(picture, square.x + x, square.y + square.h - 1 - y, radius, CHOSEN)

    def _draw_buttons(self, picture: Picture, box: Box, rows: list[Probabilities], picked: list[int]) -> None:
        """A cell a button: its number, a bar as long as it is likely to be pressed, a square that is full if it is."""
        columns = self._columns(len(rows), box.w)
        w, h = box.w // columns, box.h // -(-len(rows) // columns)
        number = letters(str(len(rows) - 1), self.size).shape[1] + 3
        for k, (row, cls) in enumerate(zip(rows, picked, strict=True)):
            cell = Box(box.x + k % columns * w, box.y + k // columns * h, w, h).inset(right=6)
            if h >= self.size:
                text(picture, cell._replace(w=number), str(k), self.size, MUTED)
            mark = Box(cell.x + number, cell.y + 1, min(h - 3, self.size), min(h - 3, self.size))
            fill(picture, mark, CHOSEN) if cls else outline(picture, mark, GRID)
            track = cell.inset(left=number + mark.w + 4, top=1)._replace(h=mark.h)
            fill(picture, track, GRID)
            fill(picture, track._replace(w=round(float(row[1]) * track.w)), CHOSEN if cls else BAR)

    def _draw_columns(self, picture: Picture, box: Box, place: int, row: Probabilities, cls: int) -> None:
        """A column a class, as high as it is likely; the chosen one in its own colour, with a mark below."""
        head = self.codec.heads[place]
        width = box.w // len(row)
        numbers = head.kind == "choice" and width >= letters(str(head.offset + len(row) - 1), self.size).shape[1] + 2
        foot = 4 + (self.line if numbers and box.h > 2 * self.line else 0)
        edges = _edges(head, box.w) if head.kind == "axis" else np.arange(len(row) + 1) * box.w // len(row)
        tall = box.h - foot
        fill(picture, Box(box.x, box.y + tall, box.w, 1), GRID)
        for k, p in enumerate(row):
            x, w = box.x + int(edges[k]), max(1, int(edges[k + 1] - edges[k]) - (width > 3))
            high = round(float(p) * tall)
            fill(picture, Box(x, box.y + tall - high, w, high), CHOSEN if k == cls else BAR)
            if k == cls:
                fill(picture, Box(x, box.y + tall + 1, w, 2), CHOSEN)
            if foot > 4:
                text(picture, Box(x, box.y + tall + 4, w, self.line), str(head.offset + k), self.size, MUTED)


def _visible(row: Probabilities) -> Probabilities:
    """Probabilities `(classes,)`; of many classes beside the likeliest one: each alone is too small to see."""
    return row / row.max() if len(row) > MANY and row.max() > 0 else row


def _place(head: Head, cls: int, length: int) -> int:
    """Where the centre of an axis' class lies on so many pixels, 0 to length - 1."""
    low, high = head.centres[0], head.centres[-1]
    return round((head.centres[cls] - low) / (high - low) * (length - 1))


def _edges(head: Head, length: int) -> NDArray[np.int64]:
    """Where the bins of an axis begin and end on so many pixels `(classes + 1,)`."""
    low, high = head.centres[0], head.centres[-1]
    inner = (np.array(head.edges) - low) / (high - low) * length
    return np.concatenate(([0], np.clip(np.rint(inner), 0, length), [length])).astype(np.int64)
