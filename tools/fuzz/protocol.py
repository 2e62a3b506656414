"""The serve protocol: whatever a client or a server sends is a message or a ProtocolError, and pictures likewise."""

from __future__ import annotations

import io
import json
import random
import struct
import warnings

import numpy as np
from PIL import Image

from lit_align.serving.pictures import pixels_of
from lit_align.serving.protocol import (
    FATAL,
    MILD,
    Action,
    Frame,
    Hello,
    Message,
    ProtocolError,
    Reset,
    Stats,
    decode,
    decode_answer,
    encode,
    encode_action,
    encode_error,
)

SIZE, MAX_SIDE = 32, 256
WORDS = ["type", "hello", "reset", "stats", "action", "error", *Hello.__dataclass_fields__, "", "\ud800", "é" * 99]


def one(rng: random.Random) -> None:
    """One case: raises only where something is wrong."""
    message = _message(rng)
    data = encode(message)
    if message != decode(data):
        raise AssertionError(f"{message} was read as {decode(data)}")
    changed = hurt(rng, data)
    read = _tried(lambda: decode(changed, MAX_SIDE))
    if isinstance(read, Frame):
        _tried(lambda: pixels_of(read, SIZE))
    _tried(lambda: decode(words(rng), MAX_SIDE))
    action = encode_action(Action(rng.getrandbits(32), -rng.random(), rng.randbytes(rng.randrange(20))))
    decode_answer(action)
    _tried(lambda: decode_answer(hurt(rng, action)))
    _tried(lambda: decode_answer(words(rng)))


def _tried(what: object) -> object:
    """What was read, or None; an error must be one that the protocol has, and can be sent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return what()  # type: ignore[operator]
    except ProtocolError as error:
        if error.code not in FATAL + MILD or len(json.loads(encode_error(error))["message"]) > 500:
            raise AssertionError(f"{error.code} is no error of the protocol, or is too long to be told") from error
        return None


def _message(rng: random.Random) -> Message:
    kind = rng.randrange(4)
    if kind == 0:
        temperature, top_p = rng.choice([None, rng.expovariate(1)]), rng.choice([None, 1 - rng.random()])
        return Hello(
            token=rng.choice([None, rng.choice(WORDS)]),
            seed=rng.getrandbits(rng.choice([1, 32, 63])),
            temperature=temperature,
            top_p=top_p,
            frame_size=rng.choice([None, 64]),
            answer=rng.choice(["json", "classes"]),
        )
    if kind == 1:
        return Reset(rng.choice([None, rng.getrandbits(63)]), rng.getrandbits(63))
    return Stats() if kind == 2 else _frame(rng)


def _frame(rng: random.Random) -> Frame:
    vector = np.array([rng.gauss(0, 1) for _ in range(rng.randrange(4))], np.float32)
    encoding, side = rng.randrange(4), rng.choice([1, SIZE, 33])
    if encoding == 0:
        return Frame(rng.getrandbits(32), 0, 0, 0, vector, b"")
    pixels = np.frombuffer(rng.randbytes(3 * side * side), np.uint8).reshape(side, side, 3)
    content = pixels.tobytes()
    if encoding > 1:
        file = io.BytesIO()
        options = {"progressive": rng.random() < 0.5} if encoding == 2 else {"compress_level": rng.randrange(10)}
        Image.fromarray(pixels).save(file, "jpeg" if encoding == 2 else "png", **options)
        content = file.getvalue()
    return Frame(rng.getrandbits(32), encoding, side, side, vector, content)


def hurt(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, dropped, doubled or put in; or nothing but noise."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(300))
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(changed) + 1) if rng.random() < 0.5 else rng.randrange(min(64, len(changed) + 1))
        piece = rng.choice(
            [
                rng.randbytes(rng.randrange(5)),
                struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1])),
                changed[at : at + 9],
            ]
        )
        changed[at : at + rng.randrange(6)] = piece
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.2 else changed)


def words(rng: random.Random) -> str:
    """A message in JSON, or what looks like one."""
    content = {rng.choice(WORDS): _value(rng, 3) for _ in range(rng.randrange(6))}
    kinds = ["hello", "reset", "stats", "error", "action"]
    text = json.dumps({"type": rng.choice(kinds), "protocol": rng.choice([1, 1, 2, None]), **content})
    return text if rng.random() < 0.7 else hurt(rng, text.encode()).decode("utf-8", "replace")


def _value(rng: random.Random, depth: int) -> object:
    if depth and rng.random() < 0.2:
        inner = [_value(rng, depth - 1) for _ in range(rng.randrange(3))]
        return inner if rng.random() < 0.5 else {rng.choice(WORDS): each for each in inner}
    return rng.choice([None, True, 0, -1, 1.5, 1e308, 2**63, 2**70, float("nan"), float("inf"), rng.choice(WORDS)])
