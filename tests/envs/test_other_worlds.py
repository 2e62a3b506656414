"""The island under other skies and from other starts; without arguments it is what it always was."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from lit_align.envs.gym import make
from lit_align.envs.jumppads.map import SKIES, build_wad
from lit_align.envs.jumppads.players import make_player
from lit_align.envs.jumppads.routes import CELL, SIDE, walkable
from lit_align.envs.jumppads.terrain import ELSEWHERE, PADS, SPAWN
from lit_align.errors import UserError
from tests.envs.test_island import ISLAND, pad

# Of the maps that agents were trained on before there were others: recordings and seeds refer to them.
MAPS = {
    False: "b4d316b0646d3c10e02e29ab3998c6c5b9cb8339688c5bede65036816a03de02",
    True: "1c625658df78a40dfc45e7ea9564fdb12b726fbffd26372a3e4e996add37aca2",
}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[gymnasium.Env]:
    env = make(ISLAND, spawn="elsewhere")
    yield env
    env.close()


def walk(**args: Any) -> tuple[np.ndarray, np.ndarray]:
    """Frames (26, 64, 64, 3) and (26, 4) places and headings of a fixed walk with turns, a jump and a punch."""
    env = make(ISLAND, **args)
    try:
        obs, info = env.reset(seed=5)
        frames, places = [obs], [(*info["position"], info["heading"])]
        for i in range(25):
            buttons = [0] if i == 5 else [7] if i > 15 else []
            obs, _, _, _, info = env.step(pad(1.0, 0.15, math.sin(i), 0.15, *buttons))
            frames.append(obs)
            places.append((*info["position"], info["heading"]))
        return np.stack(frames), np.array(places)
    finally:
        env.close()


@pytest.mark.parametrize("fenced", [False, True])
def test_the_map_without_arguments_is_bit_for_bit_the_one_of_old(fenced: bool) -> None:
    assert hashlib.sha256(build_wad(fenced)).hexdigest() == MAPS[fenced]


def test_another_sky_changes_what_is_seen_and_nothing_else() -> None:
    frames, places = walk()
    same, there = walk(sky="day", spawn="yard")
    np.testing.assert_array_equal(frames, same)
    np.testing.assert_array_equal(places, there)
    for sky in [name for name in SKIES if name != "day"]:
        others, there = walk(sky=sky)
        np.testing.assert_array_equal(places, there)
        changed = np.abs(frames.astype(int) - others).max(-1)
        assert (changed > 8).mean() > 0.5, "most of every picture"
        assert others[:, 44:].mean() < 0.9 * frames[:, 44:].mean(), "and less light on the ground"


def test_away_is_the_same_place_and_the_other_way_round() -> None:
    yard, away = make(ISLAND), make(ISLAND, spawn="away")
    try:
        for seed in range(25):
            first, second = yard.reset(seed=seed)[1], away.reset(seed=seed)[1]
            np.testing.assert_array_equal(first["position"], second["position"])
            # The engine keeps angles in steps of 360 / 65536 degrees.
            assert (second["heading"] - first["heading"]) % 360 == pytest.approx(180, abs=0.02)
            assert 210 - 0.1 <= second["heading"] % 360 <= 330 + 0.1
    finally:
        yard.close()
        away.close()


def starts(env: gymnasium.Env, seeds: int) -> dict[int, list[tuple[int, dict]]]:
    """Place -> (seed, info) of the episodes that begin there."""
    found: dict[int, list[tuple[int, dict]]] = {}
    for seed in range(seeds):
        info = env.reset(seed=seed)[1]
        place = min(range(len(ELSEWHERE)), key=lambda i: math.dist(ELSEWHERE[i], info["position"][:2]))
        found.setdefault(place, []).append((seed, info))
    return found


def test_elsewhere_is_open_ground_where_no_training_episode_begins(elsewhere: gymnasium.Env) -> None:
    found = starts(elsewhere, 60)
    assert len(found) == len(ELSEWHERE) >= 4
    free = walkable()
    for _, info in (one for group in found.values() for one in group):
        x, y, z = info["position"].tolist()
        assert max(abs(x - SPAWN[0]), abs(y - SPAWN[1])) > 300
        assert free[int(x / CELL + SIDE / 2), int(y / CELL + SIDE / 2)]
        assert z == 0, "the meadow"
        assert abs(info["heading"] - 90) <= 60.1
    headings = [info["heading"] for group in found.values() for _, info in group]
    assert np.std(headings) > 20
    assert len({tuple(info["position"]) for _, info in found[0]}) > 1, "not always the same spot"


@pytest.mark.parametrize("target", list(PADS))
def test_every_pad_can_be_reached_from_every_place(elsewhere: gymnasium.Env, target: str) -> None:
    for place, group in starts(elsewhere, 40).items():
        seed = group[0][0]
        player = make_player("goal", seed, elsewhere, target)
        obs, info = elsewhere.reset(seed=seed)
        over = False
        while not over:
            obs, _, terminated, truncated, info = elsewhere.step(player.act(obs, info))
            over = terminated or truncated
        assert (info["outcome"], info["reason"]) == (target, "reached"), ELSEWHERE[place]


def test_the_seed_decides_the_whole_episode_elsewhere_too(elsewhere: gymnasium.Env) -> None:
    other = make(ISLAND, spawn="elsewhere")
    try:
        other.reset(seed=1)
        for seed in (0, 7):
            one, two = elsewhere.reset(seed=seed), other.reset(seed=seed)
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1]["position"], two[1]["position"])
    finally:
        other.close()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"spawn": "awy"}, "spawn is 'awy'; expected one of yard, away, elsewhere; did you mean away"),
        ({"sky": "dusky"}, "sky is 'dusky'; expected one of day, dusk, night; did you mean dusk"),
        ({"sky": None}, "sky is None"),
    ],
)
def test_an_unknown_world_is_one_clear_error(args: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(ISLAND, **args)
