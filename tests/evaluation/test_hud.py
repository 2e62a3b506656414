"""The HUD: pixels are found by their colours and held against what they stand for, wherever they were drawn."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.evaluation.drawing import BAR, CHOSEN, LINE, PAGE
from lit_align.evaluation.hud import Hud
from lit_align.evaluation.hud_heads import blocks_of
from lit_align.spaces import STICK_CENTRES, ActionCodec, gamepad_space

SIZE = (640, 360)
STICK = spaces.Dict({"stick": spaces.Box(-1.0, 1.0, (2,), np.float32)})


def where(picture: Any, colour: tuple[int, int, int]) -> Any:
    """(H, W) bool: the pixels of exactly this colour."""
    return (picture == np.array(colour, np.uint8)).all(-1)


def shares(codec: ActionCodec, **given: Any) -> Any:
    """Probabilities (heads, widest): what is given as {head: {class: p}}, and 0 elsewhere."""
    table = np.zeros((len(codec.heads), max(codec.sizes)))
    for name, row in given.items():
        for cls, p in row.items():
            table[int(name.removeprefix("h")), cls] = p
    return table


@pytest.mark.parametrize("size", [SIZE, (320, 180)])
@pytest.mark.parametrize("cls", [0, 2, 5])
def test_a_column_is_as_high_as_its_class_is_likely(size: tuple[int, int], cls: int) -> None:
    codec = ActionCodec(spaces.Discrete(6))
    hud = Hud(codec, size, picture=False)

    def height(p: float) -> int:
        return int(where(hud.draw(None, shares(codec, h0={cls: p}), [3]), BAR).sum(0).max())

    whole = height(1.0)
    assert whole > size[1] // 4
    assert height(0.0) == 0
    for p in (0.1, 0.25, 0.5, 0.8):
        assert abs(height(p) - p * whole) <= 0.5 + 1e-9


def test_of_many_classes_each_is_drawn_beside_the_likeliest() -> None:
    codec = ActionCodec(spaces.Box(-2.0, 2.0, (1,)), 101)
    hud = Hud(codec, SIZE, picture=False)

    def heights(p: float, best: float) -> list[int]:
        bars = where(hud.draw(None, shares(codec, h0={20: p, 70: best}), [0]), BAR).sum(0)
        return [int(half.max()) for half in np.split(bars, 2)]

    left, right = heights(0.01, 0.02)
    assert right > SIZE[1] // 4, "the likeliest is as high as there is room, though it comes once in fifty"
    assert abs(left - right / 2) <= 1
    assert heights(0.1, 0.4) == [round(right / 4), right]


def test_columns_stand_in_the_order_of_the_classes_and_never_overlap() -> None:
    codec = ActionCodec(spaces.Discrete(7))
    hud = Hud(codec, SIZE)
    spans = [np.flatnonzero(where(hud.draw(None, shares(codec, h0={k: 1.0}), [k]), CHOSEN).any(0)) for k in range(7)]
    for left, right in zip(spans, spans[1:], strict=False):
        assert left.max() < right.min()


def test_the_chosen_column_is_marked_even_where_it_was_unlikely() -> None:
    codec = ActionCodec(spaces.Discrete(4))
    hud = Hud(codec, SIZE)
    likely = shares(codec, h0={0: 1.0})
    pictures = [hud.draw(None, likely, [k]) for k in range(4)]
    marks = [np.flatnonzero(where(picture, CHOSEN).any(0)) for picture in pictures]
    assert all(len(mark) for mark in marks)
    assert [mark.mean() for mark in marks] == sorted(mark.mean() for mark in marks)
    assert not where(pictures[0], BAR).any(), "the one column there is was chosen"
    assert where(pictures[1], BAR).any()


@pytest.mark.parametrize("button", [0, 5, 11])
def test_a_button_is_as_long_as_it_is_likely_and_full_when_pressed(button: int) -> None:
    codec = ActionCodec(spaces.MultiBinary(12))
    hud, nothing = Hud(codec, SIZE), [0] * 12

    def length(p: float) -> int:
        row = {f"h{button}": {0: 1 - p, 1: p}}
        return int(where(hud.draw(None, shares(codec, **row), nothing), BAR).sum(1).max())

    whole = length(1.0)
    assert whole > 30
    assert [abs(length(p) - p * whole) <= 0.5 + 1e-9 for p in (0.0, 0.3, 0.5, 0.9)] == [True] * 4
    assert not where(hud.draw(None, shares(codec), nothing), CHOSEN).any()
    pressed = [int(k == button) for k in range(12)]
    assert where(hud.draw(None, shares(codec), pressed), CHOSEN).sum() > 20


@pytest.mark.parametrize("size", [SIZE, (900, 500)])
def test_the_dot_lies_where_the_centres_of_the_chosen_bins_are(size: tuple[int, int]) -> None:
    codec = ActionCodec(STICK)
    hud, nothing = Hud(codec, size), shares(codec)

    def dot(x: int, y: int) -> tuple[float, float]:
        rows, columns = np.nonzero(where(hud.draw(None, nothing, [x, y]), CHOSEN))
        return columns.mean(), rows.mean()

    (left, bottom), (right, top) = dot(0, 0), dot(10, 10)
    assert right - left > size[1] / 8
    assert right - left == pytest.approx(bottom - top, abs=1), "a stick's pad is a square"
    for x in range(11):
        for y in (4, 10) if x else range(11):
            at = dot(x, y)
            # Right and up, at the bin's own centre: they are not evenly spaced.
            assert at[0] == pytest.approx(left + (STICK_CENTRES[x] + 1) / 2 * (right - left), abs=1)
            assert at[1] == pytest.approx(bottom - (STICK_CENTRES[y] + 1) / 2 * (bottom - top), abs=1)


@pytest.mark.parametrize("head", [0, 1])
def test_the_bars_beside_a_pad_are_as_long_as_bins_are_likely(head: int) -> None:
    codec = ActionCodec(STICK)
    hud = Hud(codec, (1280, 720), joint=False)

    def length(p: float) -> int:
        found = where(hud.draw(None, shares(codec, **{f"h{head}": {5: p}}), [0, 0]), BAR)
        return int(found.sum(head).max())

    whole = length(1.0)
    assert whole > 10
    for p in (0.2, 0.5, 0.9):
        assert abs(length(p) - p * whole) <= 0.5 + 1e-9


def test_a_pad_is_shaded_by_the_joint_probability_where_heads_are_independent() -> None:
    codec = ActionCodec(STICK)
    rows = shares(codec, h0={2: 1.0}, h1={8: 1.0})
    shaded, plain = (Hud(codec, SIZE, joint=joint).draw(None, rows, [5, 5]) for joint in (True, False))
    there = np.nonzero((shaded != plain).any(-1))
    assert len(there[0]) > 20
    dot = [
        np.nonzero(where(Hud(codec, SIZE).draw(None, shares(codec), [2, 8]), CHOSEN))[axis].mean() for axis in (0, 1)
    ]
    assert there[0].min() <= dot[0] <= there[0].max()
    assert there[1].min() <= dot[1] <= there[1].max()


def test_every_step_of_the_line_is_as_high_as_its_score() -> None:
    hud = Hud(ActionCodec(spaces.Discrete(2)), SIZE, heads=False, line=True)

    def line(scores: list[float]) -> Any:
        return where(hud.draw(None, None, None, scores), LINE)

    def row(score: float) -> float:  # of a single score: a dot
        return float(np.nonzero(line([score]))[0].mean())

    top, bottom = row(2.0), row(-2.0)
    assert bottom - top > 40
    scores = np.random.default_rng(0).uniform(-2, 2, 40).tolist()
    whole = line(scores)
    radius = np.ptp(np.flatnonzero(line([0.0]).any(0))) // 2
    before = 0
    for length, score in enumerate(scores, 1):
        expected = bottom + (score + 2) / 4 * (top - bottom)
        assert row(score) == pytest.approx(expected, abs=1)
        at = int(np.flatnonzero(line(scores[:length]).any(0)).max()) - radius  # the dot ends the line
        assert at > before, "time goes to the right"
        drawn, before = np.flatnonzero(whole[:, at]), at
        assert drawn.min() - 2 <= expected <= drawn.max() + 2


def test_the_line_is_monotone_in_the_score() -> None:
    codec = ActionCodec(spaces.Discrete(2))
    hud = Hud(codec, SIZE, line=True)
    for values in (np.linspace(-3, 3, 30), np.linspace(2, -7, 45), np.linspace(0, 0.5, 50)):
        found = where(hud.draw(None, None, None, values), LINE)
        columns = np.flatnonzero(found.any(0))[:-6]  # without the dot at the end
        heights = np.array([np.flatnonzero(found[:, column]).mean() for column in columns])
        steps = np.diff(heights) * np.sign(values[-1] - values[0])
        assert (steps <= 0.75).all(), "a higher score is never drawn lower"
        assert np.ptp(heights) > 3
        # Straight: at every column as far between the ends as the column is.
        between = heights[0] + (heights[-1] - heights[0]) * (columns - columns[0]) / (columns[-1] - columns[0])
        assert np.abs(heights - between).max() <= 1.5


def test_a_score_beyond_the_axis_moves_the_axis_and_one_that_is_no_number_draws() -> None:
    codec = ActionCodec(spaces.Discrete(2))
    hud = Hud(codec, SIZE, line=True)
    ends = []
    for last in (0.0, 1.0, 2.0):
        ends.append(np.flatnonzero(where(hud.draw(None, None, None, [0.0] * 20 + [last]), LINE).any(1)).min())
    assert ends == sorted(ends, reverse=True)
    assert hud.draw(None, None, None, [0.0, float("nan"), float("inf"), 1.0]).shape == (360, 640, 3)


def test_the_picture_keeps_its_proportions_and_its_pixels() -> None:
    codec = ActionCodec(gamepad_space())
    colours = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    plain = Hud(codec, SIZE).draw(None)
    rows, columns = np.nonzero((Hud(codec, SIZE).draw(colours) != plain).any(-1))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert width / height == pytest.approx(32 / 24, rel=0.02)
    shown = Hud(codec, SIZE).draw(colours)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert {tuple(c) for c in shown.reshape(-1, 3)} == {tuple(c) for c in colours.reshape(-1, 3)}, "no blur"
    assert columns.max() < SIZE[0] * 3 // 5 + 20, "the heads have their room"
    alone = np.nonzero((Hud(codec, SIZE, heads=False).draw(colours) != PAGE).any(-1))
    assert np.ptp(alone[1]) + 1 > width


def test_the_same_arguments_give_the_same_pixels() -> None:
    codec = ActionCodec(gamepad_space())
    hud, rng = Hud(codec, SIZE, line=True), np.random.default_rng(0)
    frame = rng.integers(0, 256, (64, 64, 3), np.uint8)
    rows, chosen = rng.random((16, 11)), [0] * 16
    first = hud.draw(frame, rows, chosen, [0.5], "a")
    hud.draw(255 - frame, 1 - rows, [1] * 16, [-1.0, 2.0], "b", "c")
    assert (hud.draw(frame, rows, chosen, [0.5], "a") == first).all()
    assert (Hud(codec, SIZE, line=True).draw(frame, rows, chosen, [0.5], "a") == first).all()


def test_heads_are_drawn_together_that_belong_together() -> None:
    blocks = blocks_of(ActionCodec(gamepad_space()))
    assert [(block.kind, block.title, len(block.heads)) for block in blocks] == [
        ("buttons", "buttons", 12),
        ("pad", "left stick", 2),
        ("pad", "right stick", 2),
    ]
    mixed = spaces.Dict(
        {"arm": spaces.Box(-1, 1, (3,)), "keys": spaces.MultiDiscrete([3, 4]), "go": spaces.Discrete(5, start=-2)}
    )
    blocks = blocks_of(ActionCodec(mixed))
    assert sorted(place for block in blocks for place in block.heads) == list(range(6))
    assert {block.kind for block in blocks} == {"columns"}


leaves = st.one_of(
    st.integers(1, 256).map(spaces.Discrete),
    st.lists(st.integers(1, 30), min_size=1, max_size=5).map(spaces.MultiDiscrete),
    st.integers(1, 40).map(spaces.MultiBinary),
    st.integers(1, 7).map(lambda n: spaces.Box(-1.0, 1.0, (n,), np.float32)),
    st.integers(1, 3).map(lambda n: spaces.Box(2.0, 7.5, (n,), np.float32)),
    st.just(gamepad_space()),
)
nested = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("abcde"), inner, min_size=1, max_size=4).map(spaces.Dict),
    ),
    max_leaves=5,
)
sides = st.integers(1, 900)


@given(space=nested, width=sides, height=sides, seed=st.integers(0, 9), flags=st.tuples(*[st.booleans()] * 4))
@settings(max_examples=120, deadline=None)
def test_drawing_never_fails_and_keeps_its_size(
    space: spaces.Space[Any], width: int, height: int, seed: int, flags: tuple[bool, ...]
) -> None:
    codec, rng = ActionCodec(space), np.random.default_rng(seed)
    seen, heads, line, joint = flags
    hud = Hud(codec, (width, height), seen, heads, line, joint)
    rows = rng.dirichlet(np.ones(max(codec.sizes)), len(codec.heads))
    chosen = [int(rng.integers(n)) for n in codec.sizes]
    frame = rng.integers(0, 256, (*rng.integers(1, 90, 2), 3), np.uint8) if seen else None
    scores = rng.normal(scale=5, size=int(rng.integers(0, 200))).tolist()
    for step in (hud.draw(frame, rows, chosen, scores, "who", "where"), hud.draw(frame, None, None, scores)):
        assert step.shape == (height, width, 3)
        assert step.dtype == np.uint8


def test_what_does_not_fit_is_told() -> None:
    few = Hud(ActionCodec(spaces.MultiDiscrete([3] * 4)), SIZE)
    many = Hud(ActionCodec(spaces.MultiDiscrete([3] * 400)), SIZE)
    assert few.panel is not None
    assert few.panel.left_out == 0
    assert many.panel is not None
    assert many.panel.left_out + sum(len(block.heads) for block, _ in many.panel.places) == 400
    assert many.panel.left_out > 0
    # Where heads are many they stand side by side before any is left out.
    assert len(few.panel.places) < len(many.panel.places)


def test_no_picture_has_no_size() -> None:
    with pytest.raises(ValueError, match="1 x 1 or more"):
        Hud(ActionCodec(spaces.Discrete(2)), (0, 100))


def test_drawing_needs_pillow_and_numpy_alone() -> None:
    code = "import sys, lit_align.evaluation.hud; print({'torch', 'matplotlib', 'pygame', 'av'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
