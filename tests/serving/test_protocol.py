"""The codec: what is written is read again, and nothing that comes from outside raises anything but ProtocolError."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lit_align.serving.protocol import (
    FATAL,
    MAX_SIDE,
    MILD,
    TEXT_LIMIT,
    Action,
    Frame,
    Hello,
    ProtocolError,
    Reset,
    Stats,
    decode,
    decode_answer,
    encode,
    encode_action,
    encode_error,
    encode_json,
)

WHOLE = st.integers(0, 2**63 - 1)
STEPS = st.integers(0, 2**32 - 1)
VECTORS = arrays.arrays(np.float32, st.integers(0, 9), elements=st.floats(width=32))
HELLOS = st.builds(
    Hello,
    token=st.none() | st.text(),
    seed=WHOLE,
    episode=WHOLE,
    world_seed=WHOLE,
    temperature=st.none() | st.floats(0, 1e8),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    frame_size=st.none() | st.integers(1, MAX_SIDE),
    answer=st.sampled_from(["json", "classes"]),
)
PICTURES = st.builds(
    lambda step, vector, kind, width, height, content: Frame(step, kind, width, height, vector, content),
    STEPS,
    VECTORS,
    st.sampled_from([2, 3]),
    st.integers(1, MAX_SIDE),
    st.integers(1, MAX_SIDE),
    st.binary(max_size=99),
)


@st.composite
def frames(draw):
    width, height = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    pixels = draw(st.binary(min_size=3 * width * height, max_size=3 * width * height))
    return Frame(draw(STEPS), 1, width, height, draw(VECTORS), pixels)


NOTHING_SEEN = st.builds(lambda step, vector: Frame(step, 0, 0, 0, vector, b""), STEPS, VECTORS)
MESSAGES = HELLOS | st.builds(Reset, st.none() | WHOLE, WHOLE) | st.just(Stats()) | frames() | PICTURES | NOTHING_SEEN


@given(MESSAGES)
def test_what_is_written_is_read_again(message):
    data = encode(message)
    assert decode(data) == message
    if data[:1] == b"{":
        assert decode(data.decode()) == message  # as text


@given(STEPS, st.floats(width=32, allow_nan=False), st.binary(max_size=40))
def test_actions_are_read_again(step, log_prob, classes):
    assert decode_answer(encode_action(Action(step, log_prob, classes))) == Action(step, log_prob, classes)


def read(data):
    for reading in (decode, decode_answer):
        error = refused(reading, data)
        if error is not None:
            assert error.code in FATAL + MILD
            assert len(str(error)) < 500
            told = json.loads(encode_error(error))
            assert (told["code"], told["fatal"]) == (error.code, error.code in FATAL)


def refused(reading, data):
    try:
        reading(data)
    except ProtocolError as error:
        return error
    return None


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data):
    read(data)


@given(MESSAGES.map(encode), st.data())
def test_a_message_that_was_hurt_is_a_message_or_a_protocol_error(data, draw):
    hurt = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        where = draw.draw(st.integers(0, len(hurt)))
        hurt[where : where + draw.draw(st.integers(0, 3))] = draw.draw(st.binary(max_size=4))
    read(bytes(hurt))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*Hello.__dataclass_fields__, "speed"])


@given(st.dictionaries(KEYS, JSON, max_size=4), st.sampled_from(["hello", "reset", "stats", "hullo"]))
def test_json_with_any_values_is_a_message_or_a_protocol_error(content, kind):
    read(json.dumps({"protocol": 1, "type": kind, **content} if kind == "hello" else {"type": kind, **content}))


@pytest.mark.parametrize(
    ("data", "code", "word"),
    [
        (b"", "malformed", "empty"),
        (b"\x07", "malformed", "byte 7"),
        (b"[1]", "malformed", "begins with"),
        (b"{", "malformed", "JSON"),
        (b'{"type": "hello", "protocol": 1, "seed": NaN}', "malformed", "NaN"),
        (b"{" + b'"a":{' * 5000, "malformed", "JSON"),
        (b'{"type": "hello", "protocol": 1, "seed": ' + b"9" * 5000 + b"}", "malformed", "JSON"),
        (b"{" + b" " * TEXT_LIMIT, "too_large", "at most"),
        (b'{"type": "jump"}', "malformed", "'jump'"),
        (b'{"type": "hello"}', "version", "speaks 1"),
        (b'{"type": "hello", "protocol": 2, "colour": "red"}', "version", "speaks protocol 2"),
        (b'{"type": "hello", "protocol": 1, "tokn": "a"}', "malformed", "no key 'tokn'"),
        (b'{"type": "hello", "protocol": 1, "seed": -1}', "malformed", "seed is -1"),
        (b'{"type": "hello", "protocol": 1, "seed": true}', "malformed", "seed is True"),
        (b'{"type": "hello", "protocol": 1, "temperature": -0.5}', "malformed", "0 or more"),
        (b'{"type": "hello", "protocol": 1, "top_p": 0}', "malformed", "above 0"),
        (b'{"type": "hello", "protocol": 1, "answer": "xml"}', "malformed", "classes"),
        (b'{"type": "hello", "protocol": 1, "token": "\xff"}', "malformed", "JSON"),
        (struct.pack("<BBHI", 1, 1, 0, 0), "malformed", "header alone has 12"),
        (struct.pack("<BBHIHH", 1, 1, 3, 0, 1, 1) + b"123", "malformed", "ends in it"),
        (struct.pack("<BBHIHH", 1, 9, 0, 0, 1, 1), "malformed", "encoding is 9"),
        (struct.pack("<BBHIHH", 1, 1, 0, 0, 2, 2) + bytes(11), "malformed", "expected 12"),
        (struct.pack("<BBHIHH", 1, 0, 0, 0, 1, 0), "malformed", "without pixels"),
        (struct.pack("<BBHIHH", 1, 1, 0, 0, 65535, 65535), "frame", "65535x65535"),
        (struct.pack("<BBHIHH", 1, 2, 0, 0, 5000, 5000), "frame", "1 to 4096"),
    ],
)
def test_what_is_no_message_is_told_why(data, code, word):
    with pytest.raises(ProtocolError, match=word) as caught:
        decode(data)
    assert caught.value.code == code


def test_a_frame_is_laid_out_as_the_page_says():
    data = bytes.fromhex("01 01 0100 07000000 0200 0100 0000803f ff0000 00ff00")
    frame = decode(data)
    assert (frame.step, frame.encoding, frame.width, frame.height) == (7, 1, 2, 1)
    assert frame.vector.tolist() == [1.0]
    assert frame.pixels == bytes([255, 0, 0, 0, 255, 0])
    assert encode(frame) == data


def test_an_action_is_laid_out_as_the_page_says():
    data = bytes.fromhex("02 00 0300 07000000 000000bf 00 01 0a")
    assert decode_answer(data) == Action(7, -0.5, bytes([0, 1, 10]))
    assert encode_action(Action(7, -0.5, bytes([0, 1, 10]))) == data


def test_what_is_not_a_number_is_not_sent():
    with pytest.raises(ValueError, match="JSON"):
        encode_json("action", log_prob=float("nan"))
