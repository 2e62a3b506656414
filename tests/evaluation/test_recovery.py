"""Passing a pad and coming back, by hand-made paths and by geometry worked out another way."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.envs.jumppads.terrain import PAD_RADIUS, PADS, SPAWN
from lit_align.errors import UserError
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.intervals import wilson
from lit_align.evaluation.paired import BAND, GAP, Seat, chosen, side_by_side, without_frames
from lit_align.evaluation.recovery import check_target, gates, gates_of, missed_at, recovery, tally
from tests.helpers import made_up

ISLAND = "LitAlign/Jumppads-v0"
GATES = gates_of(ISLAND)


def walk(*points: tuple[float, float], step: float = 45.0) -> np.ndarray:
    """A path (T + 1, 3) along straight lines between points, at a player's pace, ending on the last one."""
    path = [points[0]]
    for begin, end in zip(points, points[1:], strict=False):
        pieces = max(1, math.ceil(math.dist(begin, end) / step))
        path += [
            (begin[0] + (end[0] - begin[0]) * k / pieces, begin[1] + (end[1] - begin[1]) * k / pieces)
            for k in range(1, pieces + 1)
        ]
    return np.array([(x, y, 0.0) for x, y in path], np.float32)


def beyond(x: float, y: float, name: str) -> bool:
    """Whether a place is past a pad, in angles: the pad's bearing from the yard, and the place's from the same."""
    px, py = PADS[name]
    to_pad, to_place = math.atan2(py - SPAWN[1], px - SPAWN[0]), math.atan2(y - SPAWN[1], x - SPAWN[0])
    away, turned = math.hypot(x - SPAWN[0], y - SPAWN[1]), to_place - to_pad
    nearest = min(math.dist(PADS[name], other) for pad, other in PADS.items() if pad != name)
    past = away * math.cos(turned) > math.dist(SPAWN, PADS[name]) + PAD_RADIUS
    return past and away * abs(math.sin(turned)) <= nearest / 2


def on_pad(x: float, y: float) -> str:
    return next((name for name, pad in PADS.items() if math.dist((x, y), pad) <= PAD_RADIUS), "none")


@pytest.mark.parametrize("name", list(PADS))
def test_walking_straight_to_a_pad_is_no_miss_of_any(name: str) -> None:
    for aside in (-110, 0, 110):  # onto its edges too
        path = walk((SPAWN[0] + aside, SPAWN[1]), PADS[name])
        reached = next(i for i, (x, y, _) in enumerate(path.tolist()) if on_pad(x, y) == name)
        for target in (None, *PADS):
            assert missed_at(path[: reached + 1], name, GATES, target) is None


@pytest.mark.parametrize("side", [-1, 1])
def test_walking_by_a_pad_and_coming_back_is_a_recovery(side: int) -> None:
    by = (side * 200.0, 1500.0)  # 80 units beside its rim, and on past it
    path = walk(SPAWN, (side * 200.0, 1100.0), by, (0.0, 1310.0))
    # Its far edge is at 1320.
    first = next(i for i, (_, y, _) in enumerate(path.tolist()) if y > 1320)
    assert missed_at(path, "middle", GATES) == missed_at(path, "middle", GATES, "middle") == first
    assert missed_at(path, "middle", GATES, "left") is None
    assert missed_at(path, "middle", GATES, "right") is None
    assert tally([(path, "middle")], GATES, "middle")["recovered"] == 1
    away = walk(SPAWN, by, (0.0, 1900.0))
    assert tally([(away, "none")], GATES) == {
        "missed": 1, "recovered": 0, "rate": wilson(0, 1)._asdict()
    }  # fmt: skip


def test_the_wrong_pad_afterwards_is_no_recovery_but_of_any() -> None:
    path = walk(SPAWN, (-1450.0, 1250.0), (-200.0, 1200.0), (-110.0, 1200.0))
    assert missed_at(path, "middle", GATES, "left") is not None
    assert tally([(path, "middle")], GATES, "left")["recovered"] == 0
    assert tally([(path, "middle")], GATES)["recovered"] == 1


def test_another_pads_ground_is_not_past_the_wanted_one() -> None:
    """Behind the middle pad, as far from the yard as the left one's far edge: but nowhere near it."""
    path = walk(SPAWN, (0.0, 1000.0), (250.0, 1200.0), (0.0, 1700.0))
    assert missed_at(path, "none", GATES, "middle") is not None
    assert missed_at(path, "none", GATES, "left") is None


def test_nobody_who_stays_south_of_the_pads_has_missed_one() -> None:
    for x in range(-1900, 1901, 100):
        for y in range(-1500, 400, 100):
            if math.hypot(x, y) < 2000:
                assert missed_at(np.array([(x, y, 0.0)]), "none", GATES) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-2100, 2100), st.floats(-2100, 2100)), min_size=1, max_size=5),
    st.sampled_from([None, *PADS]),
)
def test_counting_agrees_with_looking_at_every_step(points: list[tuple[float, float]], target: str | None) -> None:
    path = walk(SPAWN, *points)
    end = next((i for i, (x, y, _) in enumerate(path.tolist()) if on_pad(x, y) != "none"), len(path) - 1)
    path = path[: end + 1]
    outcome = on_pad(*path[-1, :2].tolist())
    wanted = list(PADS) if target is None else [target]
    past = [i for i, (x, y, _) in enumerate(path.tolist()) if any(beyond(x, y, name) for name in wanted)]
    expected = past[0] if past and not (outcome != "none" and past[0] == len(path) - 1) else None
    assert missed_at(path, outcome, GATES, target) == expected
    counted = tally([(path, outcome)] * 3, GATES, target)
    assert counted["missed"] == 3 * (expected is not None)
    assert counted["recovered"] == 3 * (expected is not None and outcome in wanted)


def test_nothing_missed_has_no_rate_and_a_rate_has_its_interval() -> None:
    straight, by = walk(SPAWN, (0, 1090)), walk(SPAWN, (200, 1100), (200, 1500), (0, 1310))
    assert tally([(straight, "middle")] * 4, GATES) == {"missed": 0, "recovered": 0, "rate": None}
    episodes = [(by, "middle")] * 3 + [(by[:-3], "none")] * 2 + [(straight, "middle")] * 5
    rows = [
        SimpleNamespace(id=i, seed=i, outcome=outcome, reason="", positions=path)
        for i, (path, outcome) in enumerate(episodes)
    ]
    found = recovery(ISLAND, Episodes.of(rows), "left")
    assert found is not None
    assert (found["missed"], found["recovered"]) == (5, 3)
    assert found["rate"] == wilson(3, 5)._asdict()
    assert found["left"] == {"missed": 0, "recovered": 0, "rate": None}
    assert set(recovery(ISLAND, Episodes.of(rows)) or {}) == {"missed", "recovered", "rate"}


def test_a_world_with_one_pad_has_no_neighbours() -> None:
    (gate,) = gates({"only": (0, 100, 10)}, (0, 0, 50)).values()
    assert gate.passed(np.array([(0, 111), (0, 109), (5000, 111), (0, -111)])).tolist() == [True, False, True, False]


def test_worlds_without_known_pads() -> None:
    assert recovery("CartPole-v1", Episodes.of([])) is None
    check_target("CartPole-v1", None)
    with pytest.raises(UserError, match="pads of CartPole-v1 are not known"):
        check_target("CartPole-v1", "left")
    with pytest.raises(UserError, match="target is 'lefft'; expected one of left, middle, right; did you mean left"):
        check_target(ISLAND, "lefft")


def test_episodes_are_chosen_in_which_one_of_the_two_missed() -> None:
    straight, by = walk(SPAWN, (0, 1090)), walk(SPAWN, (200, 1100), (200, 1500), (0, 1310))

    def seat(name: str, misses: set[int], ids: range) -> Seat:
        played = {}
        for number in ids:
            path = by if number in misses else straight
            one = made_up(number, len(path) - 1, outcome="middle")
            one.positions = path
            played[number] = without_frames(one)
        return Seat(name, played, None)  # type: ignore[arg-type]

    match = SimpleNamespace(env=ISLAND, target=None)
    left, right = seat("a", {1, 4, 9}, range(10)), seat("b", {4, 6}, range(8))
    assert list(chosen(match, left, right)) == [1, 4, 6]  # type: ignore[arg-type]
    match.target = "left"
    assert not list(chosen(match, left, right))  # type: ignore[arg-type]


def test_two_videos_stand_side_by_side_and_the_shorter_one_waits() -> None:
    short, long = np.full((3, 240, 320, 3), 200, np.uint8), np.full((7, 240, 320, 3), 80, np.uint8)
    together = side_by_side((short, long), (("a", "a: over"), ("b", "b: over")))
    assert together.shape == (7, BAND + 240, 320 + GAP + 320, 3)
    assert together[:3, BAND:, :320].min() == 200
    assert together[3:, BAND:, :320].max() == 100, "darkened when it is over"
    assert (together[:, BAND:, 320 + GAP :] == 80).all()
    left = together[:, :BAND, :320]
    assert (left[0] == left[1]).all()
    assert (left[1] != left[2]).any(), "the last frame says how it ended"
    assert (left[2] == left[6]).all()
    small = side_by_side((short[:, :60, :60], long[:, :60, :60]), (("a", "a"), ("b", "b")))
    assert small.shape == (7, BAND + 240, 240 + GAP + 240, 3)


@pytest.mark.slow
def test_on_the_island_pairs_are_filmed_and_shown(tmp_path: Path) -> None:
    """Scripted stand-ins: one walks by the middle pad and turns back, one walks on."""
    from lit_align.envs.gym import make
    from lit_align.envs.jumppads.players import make_player
    from lit_align.evaluation.match import Match
    from lit_align.evaluation.paired import film_pairs, read_index
    from lit_align.evaluation.video import read_mp4
    from lit_align.spaces import ActionCodec

    match = Match(ISLAND, {"size": 64}, 1, 0, target="middle")
    seats = []
    for name, goals in (("pretrain", [(260.0, 1500.0), PADS["middle"]]), ("scratch", [(260.0, 1500.0), (0.0, 1850.0)])):
        world = make(ISLAND, size=64)
        codec = ActionCodec(world.action_space)
        player = make_player("goal", 1, world, "middle")
        player.goals, player.arrive, player.distraction = goals, 100.0, 0.0  # type: ignore[attr-defined]
        obs, info = world.reset(seed=5)
        actions, places, over = [], [info["position"]], False
        while not over:
            actions.append(codec.encode(player.act(obs, info)))
            obs, _, terminated, truncated, info = world.step(codec.decode(actions[-1]))
            places.append(info["position"])
            over = terminated or truncated
        world.close()
        one = made_up(0, len(actions), seed=5, outcome=info["outcome"])
        one.actions, one.positions, one.reason = np.stack(actions), np.stack(places), info["reason"]
        seats.append(Seat(name, {0: without_frames(one)}, codec))
    (film,) = film_pairs(match, seats, tmp_path / "paired", 3)
    assert read_index(tmp_path / "paired") == [film]
    assert (film.left.outcome, film.right.outcome) == ("middle", "none")
    assert film.left.missed_at is not None
    assert film.right.missed_at is not None
    frames, _ = read_mp4(tmp_path / "paired" / film.file)
    assert frames.shape == (1 + max(film.left.steps, film.right.steps), 240 + BAND, 2 * 320 + GAP, 3)
