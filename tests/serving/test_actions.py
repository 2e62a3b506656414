"""Actions as JSON, beside what the codec decodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence

from lit_align.serving.actions import ActionText
from lit_align.serving.client import in_space
from lit_align.spaces import ActionCodec, gamepad_space

SPACES = {
    "gamepad": gamepad_space(),
    "one choice": spaces.Discrete(5, start=-2),
    "choices": spaces.MultiDiscrete([[2, 3], [4, 256]]),
    "buttons": spaces.MultiBinary((2, 2)),
    "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Box(-3, 7, (1, 2), np.float64))),
    "whole numbers": spaces.Box(0, 255, (2,), np.uint8),
    "odd names": spaces.Dict({'100 % "sure"': spaces.Discrete(3), "ä": spaces.Dict({"x": spaces.Box(-1, 1, ())})}),
}


@pytest.mark.parametrize("name", SPACES)
def test_json_is_what_the_codec_decodes(name):
    codec = ActionCodec(SPACES[name])
    text, rng = ActionText(codec), np.random.default_rng(0)
    for _ in range(50):
        classes = rng.integers(codec.sizes).astype(np.uint8)
        told = json.loads(text(classes.tobytes()))
        assert data_equivalence(in_space(told, codec.to_dict()), codec.decode(classes), exact=True)


def test_the_heads_tell_what_their_classes_stand_for():
    codec = ActionCodec(gamepad_space())
    heads = json.loads(json.dumps(ActionText(codec).heads))
    assert [len(head["values"]) for head in heads] == list(codec.sizes)
    assert heads[0] == {"name": "buttons.0", "kind": "button", "values": [0, 1]}
    assert heads[12]["values"] == [-1.0, -0.85, -0.625, -0.375, -0.15, 0.0, 0.15, 0.375, 0.625, 0.85, 1.0]
