"""Actions to classes and back, for the gamepad and for any Gymnasium space."""

import json
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.errors import UserError
from lit_align.spaces import STICK_CENTRES, STICK_EDGES, ActionCodec, gamepad_space

ANY = spaces.Tuple(
    (
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 200]])),
        spaces.Dict({"throttle": spaces.Box(0.0, 30.0, (2,), np.float64), "fire": spaces.MultiBinary(3)}),
    )
)


def test_the_gamepad_has_the_papers_sixteen_heads():
    codec = ActionCodec(gamepad_space())
    assert codec.sizes == (2,) * 12 + (11,) * 4
    assert [h.name for h in codec.heads[12:]] == ["left_stick.0", "left_stick.1", "right_stick.0", "right_stick.1"]


@settings(deadline=None)  # the first call imports what later ones do not
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.lists(st.booleans(), min_size=12, max_size=12))
def test_sticks_fall_into_the_papers_bins_as_digitize_says(sticks, buttons):
    codec = ActionCodec(gamepad_space())
    action = {
        "buttons": np.array(buttons, np.int8),
        "left_stick": np.array(sticks[:2]),
        "right_stick": np.array(sticks[2:]),
    }
    classes = codec.encode(action)
    assert classes.tolist() == [int(b) for b in buttons] + (np.digitize(sticks, STICK_EDGES) - 1).tolist()
    back = codec.decode(classes)
    assert gamepad_space().contains(back)
    assert np.allclose(np.concatenate([back["left_stick"], back["right_stick"]]), np.array(STICK_CENTRES)[classes[12:]])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_space_decodes_to_its_own_and_keeps_classes(seed):
    codec = ActionCodec(ANY)
    ANY.seed(seed)
    classes = codec.encode(ANY.sample())
    action = codec.decode(classes)
    assert ANY.contains(action)
    assert codec.encode(action).tolist() == classes.tolist()  # every centre lies in its own bin
    assert ActionCodec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec


@settings(deadline=None)
@given(st.integers(2, 256), st.floats(-1000, 999), st.floats(0.01, 1000), st.floats(0, 1))
def test_an_axis_is_cut_into_as_many_even_bins_as_are_asked_for(bins, low, width, where):
    high = low + width
    codec = ActionCodec(spaces.Box(low, high, (1,), np.float64), bins)
    assert codec.sizes == (bins,)
    value = min(high, low + where * width)
    (back,) = codec.decode(codec.encode(np.array([value])))
    half = (high - low) / (bins - 1) / 2
    assert abs(back - value) <= half * (1 + 1e-6) + 1e-9
    assert [codec.decode(np.array([end]))[0] for end in (0, bins - 1)] == [low, high]
    told = json.loads(json.dumps(codec.to_dict()))
    assert ("bins" in told) is (bins != 11)
    assert ActionCodec.from_dict(told) == codec
    assert codec.of(gamepad_space()).sizes == (2,) * 12 + (bins,) * 4


def test_bins_tell_codecs_apart_where_there_are_axes_alone():
    axis, buttons = spaces.Box(-2, 2, (3,)), spaces.MultiBinary(3)
    assert ActionCodec(axis, 31) != ActionCodec(axis)
    assert repr(ActionCodec(axis, 31)) == "ActionCodec(3 x 31 classes: Box(-2.0..2.0, 3))"
    assert ActionCodec(buttons, 31) == ActionCodec(buttons)
    assert ActionCodec(axis, 31).null.tolist() == [15, 15, 15], "an odd number has a bin at 0"
    assert ActionCodec(spaces.Box(-1, 1, (1,)), 3).heads[0].centres == (-1.0, 0.0, 1.0)


@pytest.mark.parametrize("bins", [0, 1, 257, -3, 11.0, "11", True, None, [11]])
def test_bins_that_are_no_number_of_classes_are_refused(bins):
    with pytest.raises(UserError, match=r"bins is .*; expected a whole number from 2 to 256"):
        ActionCodec(spaces.Box(-2, 2, (3,)), bins)
    with pytest.raises(UserError, match=r"bins is"):
        ActionCodec.from_dict({**ActionCodec(gamepad_space()).to_dict(), "bins": bins})


keys = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=5, unique=True)


@settings(deadline=None)
@given(keys, st.booleans(), st.integers(0, 2**32 - 1))
def test_parts_keep_their_order_when_a_space_is_written_and_read(names, keyword, seed):
    parts = [(name, spaces.Discrete(2 + at)) for at, name in enumerate(names)]
    space = spaces.Dict(**dict(parts)) if keyword else spaces.Dict(OrderedDict(parts))
    space.seed(seed)
    codec, action = ActionCodec(space), space.sample()
    again = ActionCodec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert [head.name for head in again.heads] == names
    assert again == codec
    assert again.decode(codec.encode(action)) == action


PAIR = [spaces.Discrete(3), spaces.Discrete(2)]
LOOK_ALIKES = [
    (spaces.Tuple(PAIR), spaces.Dict({"0": PAIR[0], "1": PAIR[1]})),
    (spaces.Box(-1, 1, (4,)), spaces.Box(-1, 1, (2, 2))),
    (spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (2,), np.int8)),
    (spaces.Box(-1, 1, (2,)), spaces.Box(-2, 2, (2,))),
    (spaces.Box(-2, np.array([2, 3], np.float32)), spaces.Box(-2, np.array([3, 2], np.float32))),
    (spaces.MultiBinary(4), spaces.MultiBinary((2, 2))),
    (spaces.MultiBinary(2), spaces.MultiDiscrete([2, 2])),
    (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([2, 3], start=[0, 1])),
    (spaces.Discrete(3), spaces.Discrete(3, start=-1)),
    (
        spaces.Dict(OrderedDict(a=spaces.Discrete(2), b=spaces.Discrete(3))),
        spaces.Dict(OrderedDict(b=spaces.Discrete(3), a=spaces.Discrete(2))),
    ),
]


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKES)
def test_spaces_whose_actions_differ_are_not_equal_and_look_so(one, other):
    codecs = ActionCodec(one), ActionCodec(other)
    assert codecs[0] != codecs[1]
    assert str(codecs[0]) != str(codecs[1])
    for codec in codecs:
        again = ActionCodec.from_dict(json.loads(json.dumps(codec.to_dict())))
        assert (again, hash(again), str(again)) == (codec, hash(codec), str(codec))


def test_a_codec_is_told_in_a_line_however_much_there_is_to_it():
    assert str(ActionCodec(gamepad_space())) == (
        "ActionCodec(12 x 2, 4 x 11 classes: Dict(buttons: MultiBinary(12), left_stick: Box(-1.0..1.0, 2), "
        "right_stick: Box(-1.0..1.0, 2)))"
    )
    assert len(str(ActionCodec(spaces.MultiDiscrete(np.arange(2, 202))))) < 700


def test_parts_that_no_text_names_are_refused():
    numbered: Any = {7: spaces.Discrete(2)}
    with pytest.raises(UserError, match="has the key 7, int; expected text"):
        ActionCodec(spaces.Dict(numbered))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"left_stick": np.array([np.nan, 0])}, r"left_stick\.0.*nan.*finite"),
        ({"right_stick": np.array([0, 1.5])}, r"right_stick\.1.*1\.5.*\[-1\.0, 1\.0\]"),
        ({"buttons": np.full(12, 2)}, r"buttons\.0.*0\.\.1"),
        ({"buttons": np.zeros(11)}, "part .buttons. of the action has 11 values; expected 12"),
        ({"left_stick": np.zeros(1), "right_stick": np.zeros(3)}, "left_stick.*1 values; expected 2"),
        ({"left_stick": ["0", "0"]}, "left_stick.*must be numbers, found ..0., .0.."),
        ({"stick": 1}, "keys"),
    ],
)
def test_an_action_that_does_not_fit_is_named(change, word):
    codec = ActionCodec(gamepad_space())
    action = {"buttons": np.zeros(12), "left_stick": np.zeros(2), "right_stick": np.zeros(2), **change}
    with pytest.raises(ValueError, match=word):
        codec.encode(action)


def test_spaces_that_cannot_be_cut_into_classes_are_refused():
    with pytest.raises(ValueError, match="bounded Box"):
        ActionCodec(spaces.Box(-np.inf, np.inf, (1,)))
    with pytest.raises(ValueError, match="Text"):
        ActionCodec(spaces.Dict({"say": spaces.Text(3)}))
    with pytest.raises(ValueError, match="unknown kind"):
        ActionCodec.from_dict({"kind": "Pickle"})
    with pytest.raises(ValueError, match="not complete"):
        ActionCodec.from_dict({"kind": "Box", "low": [0]})


def test_an_action_space_without_end_is_refused_before_it_fills_the_memory():
    many = {"kind": "MultiDiscrete", "nvec": [2] * 5000, "start": [0] * 5000}
    for description in ({"kind": "MultiBinary", "shape": [10**6, 10**6]}, many):
        with pytest.raises(UserError, match="at most 4096 are supported"):
            ActionCodec.from_dict(description)
    deep = {"kind": "Discrete", "n": 2, "start": 0}
    for _ in range(60):
        deep = {"kind": "Tuple", "spaces": [deep]}
    with pytest.raises(UserError, match="nested too deeply"):
        ActionCodec.from_dict(deep)


def test_whole_numbers_get_the_nearest_one():
    codec = ActionCodec(spaces.Box(-128, 127, (1,), np.int8))
    assert [int(codec.decode(np.array([c]))[0]) for c in (0, 1, 5, 9, 10)] == [-128, -102, 0, 102, 127]


@pytest.mark.parametrize("classes", [[0.5], [float("nan")], ["0"], [None], [-1], [3]])
def test_a_class_that_is_none_is_refused(classes):
    with pytest.raises(UserError, match="class"):
        ActionCodec(spaces.Discrete(3)).decode(classes)
