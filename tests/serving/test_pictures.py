"""Pixels from what a client sends."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lit_align.models.frames import resize
from lit_align.serving.pictures import pixels_of
from lit_align.serving.protocol import JPEG, NONE, PNG, RGB, Frame, ProtocolError

EMPTY = np.zeros(0, np.float32)


def picture(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def frame(kind, side, content):
    return Frame(0, kind, side, side, EMPTY, content)


def smooth(side):
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    return np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), -1).copy()


@pytest.mark.parametrize("side", [32, 48])
def test_raw_png_and_jpeg_agree(side):
    pixels = smooth(side)
    expected = pixels if side == 32 else resize(pixels[None], 32)[0]
    raw = pixels_of(frame(RGB, side, pixels.tobytes()), 32)
    assert np.array_equal(raw, expected)
    assert np.array_equal(pixels_of(frame(PNG, side, picture(pixels, "png")), 32), expected)
    jpeg = picture(pixels, "jpeg", quality=95)
    seen = pixels_of(frame(JPEG, side, jpeg), 32)
    decoded = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert np.array_equal(seen, decoded if side == 32 else resize(decoded[None], 32)[0])
    assert np.abs(seen.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_kinds_of_png_are_made_rgb(mode):
    image = Image.new(mode, (32, 32))
    file = io.BytesIO()
    image.save(file, "png")
    assert pixels_of(frame(PNG, 32, file.getvalue()), 32).shape == (32, 32, 3)


def bomb(side):
    """A PNG of a few kilobytes that says it is huge."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("sent", "word"),
    [
        (frame(PNG, 32, bomb(10000)), "says 32x32"),
        (frame(PNG, 32, bomb(60000)), "cannot be decoded"),
        (frame(PNG, 32, picture(smooth(33), "png")), "33x33"),
        (frame(JPEG, 32, picture(smooth(32), "png")), "JPEG cannot be decoded"),
        (frame(JPEG, 32, picture(smooth(32), "jpeg")[:300]), "JPEG cannot be decoded"),
        (frame(PNG, 32, b""), "PNG cannot be decoded"),
        (Frame(0, RGB, 32, 16, EMPTY, bytes(32 * 16 * 3)), "squares"),
        (frame(NONE, 0, b""), "no pixels"),
    ],
)
def test_what_is_no_picture_is_told_why(sent, word):
    with pytest.raises(ProtocolError, match=word) as caught:
        pixels_of(sent, 32)
    assert caught.value.code == "frame"


def test_an_agent_without_pixels_is_sent_none():
    assert pixels_of(frame(NONE, 0, b""), 0).shape == (0, 0, 3)
    with pytest.raises(ProtocolError, match="sees no pixels"):
        pixels_of(frame(RGB, 1, b"abc"), 0)


@given(st.binary(max_size=64), st.sampled_from([JPEG, PNG]), st.integers(0, 300))
def test_a_picture_that_was_hurt_is_a_picture_or_a_protocol_error(noise, kind, where):
    content = bytearray(picture(smooth(32), "jpeg" if kind == JPEG else "png"))
    content[where : where + len(noise)] = noise
    with suppress(ProtocolError):
        assert pixels_of(frame(kind, 32, bytes(content)), 32).shape == (32, 32, 3)
