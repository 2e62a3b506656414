"""MP4 videos and film strips from frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]


def upscale(frames: Frames, factor: int) -> Frames:
    """Repeat every pixel `factor` times both ways: (..., H, W, 3) -> (..., factor * H, factor * W, 3)."""
    if factor < 1:
        raise ValueError(f"found an upscaling factor of {factor}; expected a whole number of at least 1")
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2) if factor > 1 else frames


def factor_for(height: int, wanted: int = 320) -> int:
    """Return the whole number of times that brings `height` nearest to `wanted` pixels, at least 1."""
    return max(1, round(wanted / height))


def write_mp4(path: str | os.PathLike[str], frames: Frames, fps: float, height: int = 320, crf: int = 18) -> Path:
    """Write an H.264 video that every browser plays (yuv420p, index first).

    Small frames are made larger by a whole factor, so that pixels stay sharp; odd sizes are padded by a repeated edge.

    Args:
        path: The file; its folder is made. It appears whole or not at all.
        frames: (T, H, W, 3) uint8.
        fps: Frames per second.
        height: About how high the video shall be, in pixels; frames that are higher are left as they are.
        crf: H.264 quality, lower is better; 18 looks like the original.
    """
    frames = _checked(frames)
    factor = factor_for(frames.shape[1], height)
    with Mp4(path, (frames.shape[1] * factor, frames.shape[2] * factor), fps, crf) as film:
        for picture in frames:
            film.add(upscale(picture, factor))
    return film.path


class Mp4:
    """An H.264 video that is written picture by picture; it appears whole, at the end, or not at all.

    Args:
        path: The file; its folder is made.
        size: Height and width of the pictures; odd ones are padded by a repeated edge.
        fps: Frames per second.
        crf: H.264 quality, lower is better.
    """

    def __init__(self, path: str | os.PathLike[str], size: tuple[int, int], fps: float, crf: int = 18) -> None:
        self.path, self.size = Path(path), size
        self._pad = ((0, size[0] % 2), (0, size[1] % 2), (0, 0))
        rate = _rate(fps)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.with_name(self.path.name + ".part")
        self._file = av.open(str(self._partial), "w", format="mp4", options={"movflags": "faststart"})
        try:
            self._stream = self._file.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "medium"})
        except Exception:  # no such encoder in this build
            self.discard()
            raise
        self._stream.height, self._stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._stream.pix_fmt = "yuv420p"
        # Without these a player guesses the matrix and the colours shift. One thread: the same bytes every time.
        self._stream.codec_context.color_range, self._stream.codec_context.colorspace = 1, 5
        self._stream.codec_context.thread_count = 1

    def add(self, picture: Frames) -> None:
        """Append one picture (H, W, 3) uint8."""
        if picture.shape != (*self.size, 3):
            raise ValueError(f"found a picture of shape {picture.shape}; expected {(*self.size, 3)}, as of the others")
        padded = np.ascontiguousarray(np.pad(picture, self._pad, mode="edge"))
        self._file.mux(self._stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))

    def close(self) -> None:
        """Finish the file and give it its name; where that fails, as on a full disk, nothing is left."""
        try:
            self._file.mux(self._stream.encode(None))
            self._file.close()
            os.replace(self._partial, self.path)
        except Exception:
            self.discard()
            raise

    def discard(self) -> None:
        """Throw away what was written."""
        try:
            # On a full disk this fails as the writing did, and what is left goes all the same.
            with suppress(OSError):
                self._file.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Mp4:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close() if kind is None else self.discard()


def read_mp4(path: str | os.PathLike[str]) -> tuple[Frames, float]:
    """Return all frames (T, H, W, 3) uint8 of a video and its frames per second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [picture.to_ndarray(format="rgb24") for picture in container.decode(stream)]
        return np.stack(frames).astype(np.uint8), float(stream.average_rate or 0)


def film_strip(
    path: str | os.PathLike[str], episodes: Sequence[Frames], count: int = 8, height: int = 128, gap: int = 4
) -> Path:
    """Write a contact sheet as PNG: a row an episode, `count` frames evenly from its first to its last.

    Args:
        path: The file; its folder is made.
        episodes: (T, H, W, 3) uint8 each, all of one H and W.
        count: Pictures in a row.
        height: About how high each picture shall be, in pixels; whole multiples only.
        gap: Pixels between pictures, transparent.
    """
    if not episodes:
        raise ValueError("found no episodes; a film strip needs at least one")
    first = _checked(episodes[0])
    factor = factor_for(first.shape[1], height)
    tall, wide = first.shape[1] * factor, first.shape[2] * factor
    sheet = np.zeros((len(episodes) * (tall + gap) - gap, count * (wide + gap) - gap, 4), np.uint8)
    for row, frames in enumerate(episodes):
        for column, picture in enumerate(_evenly(_checked(frames), count)):
            if picture.shape != first.shape[1:]:
                raise ValueError(f"found frames {picture.shape} and {first.shape[1:]}; expected one size in a strip")
            y, x = row * (tall + gap), column * (wide + gap)
            sheet[y : y + tall, x : x + wide, :3] = upscale(picture, factor)
            sheet[y : y + tall, x : x + wide, 3] = 255
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet, "RGBA").save(target, optimize=True)
    return target


def _evenly(frames: Frames, count: int) -> Iterator[Frames]:
    """Yield `count` frames, the first and the last among them; short episodes repeat some."""
    for place in np.linspace(0, len(frames) - 1, count).round().astype(int):
        yield frames[place]


def _rate(fps: float) -> Fraction:
    if not fps > 0:
        raise ValueError(f"found {fps} frames per second; expected more than 0")
    return Fraction(fps).limit_denominator(1000)


def _checked(frames: Frames) -> Frames:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"found frames {frames.shape} {frames.dtype}; expected (T, H, W, 3) uint8 with T, H, W > 0")
    return frames
