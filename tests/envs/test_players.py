"""The scripted players and the ways they know."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from lit_align.envs.gym import make
from lit_align.envs.jumppads import routes, terrain
from lit_align.envs.jumppads.map import build_wad, plan, textmap
from lit_align.envs.jumppads.players import KINDS, MIXTURE, draw_kind, make_player
from lit_align.errors import UserError
from lit_align.spaces import ActionCodec


def run(env, kind: str, seed: int, target: str | None = None) -> dict:
    """One episode, played with the classes an agent would be trained on."""
    codec = ActionCodec(env.action_space)
    player = make_player(kind, seed, env, target)
    obs, info = env.reset(seed=seed)
    steps, over = 0, False
    while not over:
        obs, _, terminated, truncated, info = env.step(codec.decode(codec.encode(player.act(obs, info))))
        over, steps = terminated or truncated, steps + 1
    return info | {"steps": steps}


@pytest.mark.parametrize("kind", KINDS)
def test_a_player_is_its_seed_and_its_actions_fit_the_space(kind: str) -> None:
    env = make("LitAlign/Jumppads-v0")
    ends = []
    try:
        for seed in (1, 1, 2):
            player = make_player(kind, seed, env)
            obs, info = env.reset(seed=0)
            for _ in range(15):
                action = player.act(obs, info)
                assert env.action_space.contains(action)
                obs, _, _, _, info = env.step(action)
            ends.append(info["position"].tolist())
    finally:
        env.close()
    assert ends[0] == ends[1] != ends[2]


def test_wrong_players_are_one_clear_error() -> None:
    with pytest.raises(UserError, match="did you mean boxer"):
        make_player("boxxer", 0)
    with pytest.raises(UserError, match="did you mean left"):
        make_player("goal", 0, target="lefft")
    other = make("CartPole-v1")
    with pytest.raises(UserError, match="Jumppads"):
        make_player("goal", 0, other)


def test_the_mixture_is_drawn_as_it_says() -> None:
    counts = Counter(draw_kind(seed) for seed in range(4000))
    assert sum(MIXTURE.values()) == pytest.approx(1.0)
    for kind, weight in MIXTURE.items():
        assert counts[kind] / 4000 == pytest.approx(weight, abs=0.03)
    assert {draw_kind(seed, {"boxer": 1.0}) for seed in range(5)} == {"boxer"}


def test_following_the_ways_leads_round_every_wall_to_the_goal() -> None:
    solids = [(*s.centre, s.radius * math.cos(math.pi / s.sides)) for s in terrain.SOLIDS]
    for goal in (terrain.PADS["left"], terrain.SIGHTS["ruin"]):
        for start in ((-1560, -320), (0, 1850), (470, 480), (1800, 500), (-1250, -1200)):
            x, y = start
            for _ in range(400):
                if math.dist((x, y), goal) < 60:
                    break
                to = routes.next_point(x, y, goal)
                away = math.dist((x, y), to) or 1.0
                x, y = x + 20 * (to[0] - x) / away, y + 20 * (to[1] - y) / away
                assert all(math.dist((x, y), (cx, cy)) > inner for cx, cy, inner in solids)
            assert math.dist((x, y), goal) < 60


def test_nothing_stands_on_the_straight_lines_to_the_pads() -> None:
    blocks = [(*s.centre, s.radius) for s in terrain.SOLIDS] + [(*tree, terrain.TREE_RADIUS) for tree in terrain.TREES]
    for px, py in terrain.PADS.values():
        for part in np.linspace(0, 1, 200):
            at = (terrain.SPAWN[0] * (1 - part) + px * part, terrain.SPAWN[1] * (1 - part) + py * part)
            assert all(math.dist(at, (x, y)) > radius + 16 for x, y, radius in blocks)


def test_the_map_is_a_wad_with_one_sector_for_each_area_and_a_fence_when_asked() -> None:
    wad = build_wad()
    assert wad[:4] == b"PWAD"
    assert int.from_bytes(wad[4:8], "little") == 5
    assert textmap().count("special=128") == 3
    blocking = textmap(True).count("blocking=true") - textmap().count("blocking=true")
    assert blocking == len(plan()["outline"])


def test_the_plan_holds_what_the_map_holds() -> None:
    drawn = plan()
    assert set(drawn["pads"]) == {"left", "middle", "right"}
    assert len(drawn["solids"]) == len(terrain.SOLIDS)
    assert all(math.hypot(*point) < terrain.SHORE for solid in drawn["solids"] for point in solid["points"])


@pytest.mark.slow
def test_recorded_play_is_middle_heavy_and_goal_players_are_sure() -> None:
    env = make("LitAlign/Jumppads-v0")
    try:
        ends = Counter(run(env, draw_kind(seed), seed)["outcome"] for seed in range(200))
        direct = [run(env, "goal", 500 + i, list(terrain.PADS)[i % 3]) for i in range(60)]
        reasons = {kind: Counter(run(env, kind, seed)["reason"] for seed in range(20)) for kind in ("stuck", "boxer")}
    finally:
        env.close()
    assert 80 <= ends["none"] <= 105
    assert ends["middle"] > 2 * max(ends["left"], ends["right"])
    assert min(ends["left"], ends["right"]) >= 5
    assert sum(info["outcome"] != "none" for info in direct) >= 58
    assert 50 <= np.mean([info["steps"] for info in direct]) <= 70
    assert reasons["boxer"]["shadow_boxing"] >= 12
    assert reasons["stuck"]["stuck"] + reasons["stuck"]["fell"] >= 10
