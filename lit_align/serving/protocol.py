"""The messages between a game and the server, as bytes; docs/serving.md is their description.

A message that begins with `{` is JSON in UTF-8; any other is binary, and its first byte says which. The same messages
travel over every transport. Nothing here needs more than NumPy.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Of the protocol: raised when an old client would no longer be understood."""

TEXT_LIMIT = 1 << 16
"""Bytes that a JSON message may have."""
MAX_SIDE = 4096
"""Pixels that no picture's side may exceed, whatever the server allows."""

FRAME, ACTION = 1, 2
"""First bytes of the binary messages."""
NONE, RGB, JPEG, PNG = range(4)
"""How the pixels of a frame are encoded."""

_FRAME = struct.Struct("<BBHIHH")
_ACTION = struct.Struct("<BBHIf")
FRAME_HEADER, ACTION_HEADER = _FRAME.size, _ACTION.size

FATAL = ("version", "token", "full", "order", "malformed", "too_large", "idle", "half", "slow", "stopping", "internal")
"""Codes of errors after which the connection ends."""
MILD = ("frame", "vector", "step", "not_finite")
"""Codes of errors after which the client may go on. The message had no effect, but that `not_finite` took a step."""

Data = bytes | bytearray | memoryview | str


class ProtocolError(Exception):
    """A message that is not one, or that may not be sent now.

    Args:
        code: One of `FATAL` or `MILD`.
        message: A sentence for the client's author.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def fatal(self) -> bool:
        """Whether the connection ends."""
        return self.code in FATAL


@dataclass(frozen=True)
class Hello:
    """What a client says first.

    Attributes:
        protocol: Version that the client speaks.
        token: The server's secret, where it has one.
        seed: Seed of the choices.
        episode: Number of the first episode.
        world_seed: Seed of the first episode's world; it is part of the noise's key, as for the sampler.
        temperature: Divides the logits; None takes the server's.
        top_p: None takes the server's.
        frame_size: Height and width of the frames to come; None leaves it to each frame.
        answer: `json` or `classes`: how actions are told.
    """

    protocol: int = VERSION
    token: str | None = None
    seed: int = 0
    episode: int = 0
    world_seed: int = 0
    temperature: float | None = None
    top_p: float | None = None
    frame_size: int | None = None
    answer: str = "json"


@dataclass(frozen=True)
class Reset:
    """A new episode begins.

    Attributes:
        episode: Its number; None takes the next.
        world_seed: Seed of its world.
    """

    episode: int | None = None
    world_seed: int = 0


@dataclass(frozen=True)
class Stats:
    """The server's statistics are asked for."""


@dataclass(slots=True)
class Frame:
    """What the game shows.

    Attributes:
        step: Frames before it in the episode.
        encoding: `NONE`, `RGB`, `JPEG` or `PNG`.
        width: Pixels; 0 where there are none.
        height: Pixels; 0 where there are none.
        vector: Numbers that the agent sees `(V,)`, float32.
        pixels: RGB row by row from the top left, or the JPEG or PNG file.
    """

    step: int
    encoding: int
    width: int
    height: int
    vector: NDArray[np.float32]
    pixels: bytes | memoryview

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and encode_frame(self) == encode_frame(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Action:
    """What the agent does, as classes.

    Attributes:
        step: Of the frame.
        log_prob: Joint log-probability of the classes under what they were drawn from.
        classes: One of each head, in the order of the welcome's `heads`.
    """

    step: int
    log_prob: float
    classes: bytes


Message = Hello | Reset | Stats | Frame
_Json = Hello | Reset | Stats
_KINDS: dict[str, type[Hello] | type[Reset] | type[Stats]] = {"hello": Hello, "reset": Reset, "stats": Stats}


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


_WHOLE = "a whole number from 0 to 2^63 - 1"
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "protocol": (_whole, _WHOLE),
    "token": (lambda value: isinstance(value, str), "a string"),
    "seed": (_whole, _WHOLE),
    "episode": (_whole, _WHOLE),
    "world_seed": (_whole, _WHOLE),
    "temperature": (lambda value: _number(value) and value >= 0, "a number of 0 or more"),
    "top_p": (lambda value: _number(value) and 0 < value <= 1, "a number above 0 and up to 1"),
    "frame_size": (lambda value: _whole(value) and 0 < value <= MAX_SIDE, f"a whole number from 1 to {MAX_SIDE}"),
    "answer": (lambda value: value in ("json", "classes"), 'either "json" or "classes"'),
}


def encode(message: Message) -> bytes:
    """A client's message as bytes."""
    if isinstance(message, Frame):
        return encode_frame(message)
    kind = next(name for name, each in _KINDS.items() if isinstance(message, each))
    told = {key: value for key, value in asdict(message).items() if value is not None}
    return json.dumps({"type": kind, **told}).encode()


def decode(data: Data, max_side: int = MAX_SIDE) -> Message:
    """A client's message from bytes.

    Args:
        data: What came; a string is the same as its bytes.
        max_side: Pixels that a frame's side may have.

    Raises:
        ProtocolError: It is no message.
    """
    if isinstance(data, str) or data[:1] == b"{":
        return _decode_json(data)
    if len(data) and data[0] == FRAME:
        return _decode_frame(bytes(data), max_side)
    begin = f"begins with byte {data[0]}" if len(data) else "is empty"
    raise ProtocolError("malformed", f"the message {begin}; expected {{ (JSON) or byte {FRAME} (a frame)")


def _decode_json(data: Data) -> _Json:
    content = read_json(data)
    kind = content.pop("type", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ProtocolError("malformed", f"the message's type is {_shown(kind)}; expected one of {', '.join(_KINDS)}")
    if kind == "hello":
        if "protocol" not in content:
            raise ProtocolError("version", f"the hello names no protocol; this server speaks {VERSION}")
        if content["protocol"] != VERSION:
            raise ProtocolError(
                "version", f"the client speaks protocol {_shown(content['protocol'])}; this server speaks {VERSION}"
            )
    return _checked(_KINDS[kind], kind, content)


def _checked(made: type[Hello] | type[Reset] | type[Stats], kind: str, content: dict[str, Any]) -> _Json:
    known = [field.name for field in fields(made)]
    for key, value in content.items():
        if key not in known:
            expected = ", ".join(known) or "none"
            raise ProtocolError("malformed", f"a {kind} has no key {_shown(key)}; known are {expected}")
        fits, expected = _CHECKS[key]
        if not fits(value):
            raise ProtocolError("malformed", f"{key} is {_shown(value)}; expected {expected}")
    return made(**content)


def read_json(data: Data) -> dict[str, Any]:
    """The object that a JSON message holds.

    Raises:
        ProtocolError: It is too long, not JSON, or not an object.
    """
    if len(data) > TEXT_LIMIT:
        raise ProtocolError("too_large", f"a JSON message of {len(data)} bytes; at most {TEXT_LIMIT} are taken")
    try:
        text = data if isinstance(data, str) else bytes(data).decode()
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("malformed", f"the message is not JSON: {_shown(str(error))}") from error
    if not isinstance(content, dict):
        raise ProtocolError("malformed", "the message is JSON, and not an object")
    return content


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _shown(value: Any) -> str:
    """A value from outside, short enough to be sent back."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def encode_frame(frame: Frame) -> bytes:
    """A frame as bytes."""
    header = _FRAME.pack(FRAME, frame.encoding, len(frame.vector), frame.step, frame.width, frame.height)
    return b"".join((header, frame.vector.astype("<f4").tobytes(), frame.pixels))


_NO_NUMBERS: NDArray[np.float32] = np.zeros(0, np.float32)


def _decode_frame(data: bytes, max_side: int) -> Frame:
    if len(data) < FRAME_HEADER:
        raise ProtocolError("malformed", f"a frame of {len(data)} bytes; its header alone has {FRAME_HEADER}")
    _, encoding, numbers, step, width, height = _FRAME.unpack_from(data)
    start = FRAME_HEADER + 4 * numbers
    if len(data) < start:
        raise ProtocolError("malformed", f"a frame of {len(data)} bytes with a vector of {numbers} numbers ends in it")
    _check_pixels(encoding, width, height, len(data) - start, max_side)
    vector = np.frombuffer(data, "<f4", numbers, FRAME_HEADER) if numbers else _NO_NUMBERS
    return Frame(step, encoding, width, height, vector, memoryview(data)[start:])


def _check_pixels(encoding: int, width: int, height: int, size: int, max_side: int) -> None:
    """Raises ProtocolError unless so many bytes can be such a picture."""
    if encoding > PNG:
        raise ProtocolError("malformed", f"the frame's encoding is {encoding}; expected 0 (none), 1, 2 or 3")
    if encoding == NONE:
        if width or height or size:
            raise ProtocolError(
                "malformed", f"a frame without pixels says {width}x{height} and holds {size} bytes of them"
            )
        return
    if not (0 < width <= max_side and 0 < height <= max_side):
        raise ProtocolError("frame", f"the frame is {width}x{height}; expected sides of 1 to {max_side} pixels")
    if encoding == RGB and size != 3 * width * height:
        raise ProtocolError(
            "malformed", f"an RGB frame of {width}x{height} holds {size} bytes of pixels; expected {3 * width * height}"
        )


def encode_action(action: Action) -> bytes:
    """An action as classes, as bytes."""
    return _ACTION.pack(ACTION, 0, len(action.classes), action.step, action.log_prob) + action.classes


def encode_json(kind: str, **content: Any) -> str:
    """A server's message in JSON.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps({"type": kind, **content}, allow_nan=False)


def encode_error(error: ProtocolError) -> str:
    """An error in JSON."""
    return encode_json("error", code=error.code, message=str(error), fatal=error.fatal)


def decode_answer(data: Data) -> dict[str, Any] | Action:
    """A server's message from bytes: an `Action`, or the JSON object with its `type`.

    Raises:
        ProtocolError: It is no message.
    """
    if isinstance(data, str) or data[:1] == b"{":
        content = read_json(data)
        if not isinstance(content.get("type"), str):
            raise ProtocolError("malformed", "the message has no type")
        return content
    if len(data) < ACTION_HEADER or data[0] != ACTION:
        raise ProtocolError("malformed", f"{len(data)} bytes that are neither JSON nor an action")
    _, _, heads, step, log_prob = _ACTION.unpack_from(data)
    classes = bytes(data[ACTION_HEADER:])
    if len(classes) != heads or math.isnan(log_prob):
        raise ProtocolError("malformed", f"an action of {heads} heads holds {len(classes)} classes")
    return Action(step, log_prob, classes)
