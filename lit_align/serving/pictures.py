"""Pixels of a frame as the agent takes them: decoded, square, resized as training did."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_align.models.frames import resize
from lit_align.serving.protocol import JPEG, NONE, RGB, Frame, ProtocolError

Pixels = NDArray[np.uint8]


def check_square(width: int, height: int) -> None:
    """Raises ProtocolError unless a frame is square."""
    if width != height:
        raise ProtocolError(
            "frame", f"the frame is {width}x{height}; the agent sees squares: crop or squash it before it is sent"
        )


def is_quick(frame: Frame, size: int) -> bool:
    """Whether the pixels need neither decoding nor resizing."""
    return frame.encoding == NONE or (frame.encoding == RGB and frame.width == frame.height == size)


def pixels_of(frame: Frame, size: int) -> Pixels:
    """A frame's pixels `(size, size, 3)`, uint8.

    Raises:
        ProtocolError: It is not square, is not what the agent sees, or cannot be decoded.
    """
    if (frame.encoding == NONE) != (size == 0):
        raise ProtocolError("frame", "the frame holds no pixels" if size else "the agent sees no pixels: send none")
    if frame.encoding == NONE:
        return np.zeros((0, 0, 3), np.uint8)
    check_square(frame.width, frame.height)
    if frame.encoding == RGB:
        pixels = np.frombuffer(frame.pixels, np.uint8).reshape(frame.height, frame.width, 3)
    else:
        pixels = _decoded(frame)
    return pixels if frame.width == size else resize(pixels[None], size)[0]  # by area, as in training


def _decoded(frame: Frame) -> Pixels:
    """A JPEG's or PNG's pixels; its size is looked at before anything is decompressed."""
    kind = "JPEG" if frame.encoding == JPEG else "PNG"
    try:
        with Image.open(io.BytesIO(frame.pixels), formats=(kind,)) as image:
            if image.size != (frame.width, frame.height):
                raise ProtocolError(
                    "frame",
                    f"the {kind} is {image.width}x{image.height}; the message's header says "
                    f"{frame.width}x{frame.height}",
                )
            return np.asarray(image.convert("RGB"))
    except ProtocolError:
        raise
    except Exception as error:  # bytes from outside: Pillow's decoders raise nearly every kind of error
        raise ProtocolError("frame", f"the {kind} cannot be decoded: {type(error).__name__}") from error
