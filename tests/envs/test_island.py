"""The island as a task and as a Gymnasium environment."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lit_align.envs.gym import make
from lit_align.envs.jumppads.players import make_player
from lit_align.envs.jumppads.terrain import PADS, SPAWN, SPAWN_RADIUS
from lit_align.errors import UserError

ISLAND = "LitAlign/Jumppads-v0"


@pytest.fixture(scope="module")
def world() -> Iterator[gymnasium.Env]:
    env = make(ISLAND)
    yield env
    env.close()


def pad(forward: float = 0.0, right: float = 0.0, turn: float = 0.0, look: float = 0.0, *buttons: int) -> dict:
    pressed = np.zeros(12, np.int8)
    pressed[list(buttons)] = 1
    left, rightstick = np.array([right, forward], np.float32), np.array([turn, look], np.float32)
    return {"buttons": pressed, "left_stick": left, "right_stick": rightstick}


def play(env: gymnasium.Env, seed: int, target: str, kind: str = "goal") -> tuple[list[dict], dict]:
    player = make_player(kind, seed, env, target)
    obs, info = env.reset(seed=seed)
    actions: list[dict] = []
    over = False
    while not over:
        actions.append(player.act(obs, info))
        obs, _, terminated, truncated, info = env.step(actions[-1])
        over = terminated or truncated
    return actions, info


def replay(env: gymnasium.Env, seed: int, actions: list[dict]) -> dict:
    _, info = env.reset(seed=seed)
    for action in actions:
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    return info


def digest(env: gymnasium.Env, seed: int) -> str:
    """Frames and positions of a fixed walk with turns, a jump and a punch, as one hash."""
    obs, info = env.reset(seed=seed)
    parts = [obs.tobytes(), info["position"].tobytes()]
    for i in range(25):
        obs, _, _, _, info = env.step(pad(1.0, 0.15, math.sin(i), 0.15, *([0] if i == 5 else [7] if i > 15 else [])))
        parts += [obs.tobytes(), info["position"].tobytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("size", [64, 128])
def test_passes_the_checker_of_gymnasium(size: int) -> None:
    env = gymnasium.make(ISLAND, size=size, render_mode="rgb_array").unwrapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_env(env)
        obs, _ = env.reset(seed=1)
        assert obs.shape == (size, size, 3)
        assert env.render().shape == (120, 160, 3)
    finally:
        env.close()


def test_same_seed_and_actions_give_the_same_frames_in_another_instance_and_another_process(world) -> None:
    other = make(ISLAND)
    first = digest(world, 5)
    try:
        # Both have a past, and a different one.
        digest(other, 99)
        assert digest(other, 5) == first
        assert digest(other, 6) != first
    finally:
        other.close()
    code = "from tests.envs.test_island import digest, ISLAND, make; e = make(ISLAND); print(digest(e, 5)); e.close()"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == first


def test_the_seed_spreads_place_and_heading_at_the_start(world) -> None:
    starts = [world.reset(seed=seed)[1] for seed in range(40)]
    headings = np.array([info["heading"] for info in starts])
    places = np.array([info["position"][:2] for info in starts])
    assert headings.min() < 50
    assert headings.max() > 130
    assert np.all(np.abs(headings - 90) <= 60.1)
    assert np.all(places.std(axis=0) > 40)
    assert np.all(np.hypot(*(places - SPAWN).T) < SPAWN_RADIUS + 2)
    assert world.reset(seed=3)[1]["heading"] == headings[3]


def test_an_idle_player_is_cut_off_at_the_cap_and_called_stuck() -> None:
    env = make(ISLAND, max_steps=35)
    try:
        env.reset(seed=0)
        for step in range(35):
            _, reward, terminated, truncated, info = env.step(pad())
            assert (reward, terminated, truncated) == (0.0, False, step == 34)
            assert info["reason"] == ("stuck" if step == 34 else "")
        assert info["outcome"] == "none"
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(pad())
    finally:
        env.close()


@pytest.mark.parametrize("target", list(PADS))
def test_a_direct_run_reaches_each_pad_in_50_to_70_steps(world, target: str) -> None:
    runs = [play(world, seed, target) for seed in range(4)]
    assert all((info["outcome"], info["reason"]) == (target, "reached") for _, info in runs)
    assert 50 <= np.mean([len(actions) for actions, _ in runs]) <= 70
    # By the map, not by the environment: it ended at that pad, on its way up.
    end = runs[0][1]["position"]
    assert math.dist(end[:2], PADS[target]) < 130
    assert end[2] > 36


def test_only_the_pad_is_worth_a_reward(world) -> None:
    actions, _ = play(world, 0, "middle")
    world.reset(seed=0)
    rewards = [world.step(action)[1] for action in actions]
    assert rewards == [0.0] * (len(actions) - 1) + [1.0]


def test_walking_into_the_sea_ends_the_episode_and_a_fence_prevents_it(world) -> None:
    def walk_south(env: gymnasium.Env) -> tuple[dict, bool]:
        _, info = env.reset(seed=1)
        terminated = truncated = False
        while not (terminated or truncated):
            south = (info["heading"] - 270 + 180) % 360 - 180  # degrees to turn right
            _, _, terminated, truncated, info = env.step(pad(1.0, 0.0, float(np.clip(south / 24, -1, 1))))
        return info, terminated

    info, terminated = walk_south(world)
    assert terminated
    assert (info["outcome"], info["reason"]) == ("none", "fell")
    fenced = make(ISLAND, fenced=True, max_steps=60)
    try:
        info, terminated = walk_south(fenced)
        assert not terminated
        assert info["reason"] != "fell"
        assert info["position"][2] > -20
    finally:
        fenced.close()


def test_sticks_and_buttons_do_what_they_say(world) -> None:
    _, before = world.reset(seed=2)
    for _ in range(10):
        _, _, _, _, info = world.step(pad(1.0))
    moved = info["position"][:2] - before["position"][:2]
    ahead = np.array([math.cos(math.radians(before["heading"])), math.sin(math.radians(before["heading"]))])
    assert moved @ ahead > 350
    _, _, _, _, turned = world.step(pad(0.0, 0.0, 1.0))
    assert (info["heading"] - turned["heading"]) % 360 == pytest.approx(24, abs=0.01)
    world.reset(seed=2)
    assert world.step(pad(0, 0, 0, 0, 0))[4]["position"][2] > before["position"][2] + 10


def test_a_diagonal_is_not_faster_than_straight_on(world) -> None:
    def speed(forward: float, right: float) -> float:
        _, start = world.reset(seed=4)
        for _ in range(12):
            _, _, _, _, info = world.step(pad(forward, right))
        return math.dist(start["position"], info["position"])

    assert speed(1.0, 1.0) < 1.03 * speed(1.0, 0.0)


def test_punching_all_the_way_is_called_shadow_boxing() -> None:
    env = make(ISLAND, max_steps=40)
    try:
        env.reset(seed=0)
        for _ in range(40):
            _, _, _, _, info = env.step(pad(0.375, 0.0, 0.15, 0.0, 7))
        assert info["reason"] == "shadow_boxing"
    finally:
        env.close()


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (pad(float("nan")), "left_stick"),
        (pad(0, 0, 1.5), "right_stick"),
        (pad() | {"buttons": np.full(12, 2)}, "buttons"),
        ({"buttons": np.zeros(12)}, "left_stick"),
        ("run", "str"),
    ],
)
def test_a_wrong_action_is_refused_and_the_episode_goes_on(world, action: object, words: str) -> None:
    world.reset(seed=0)
    with pytest.raises(ValueError, match=words):
        world.step(action)
    world.step(pad(1.0))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"size": 3}, "8 to 600"),
        ({"resolution": "1x1"}, "160x120"),
        ({"max_steps": 0}, "at least 1"),
        ({"siz": 64}, "siz"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(args: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(ISLAND, **args)


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("LitAlign/Jumpads-v0", "did you mean LitAlign/Jumppads-v0"),
        ("CartPol-v1", r"did you mean CartPole-v1\? A world that .* is written package:Name-v0"),
        ("nowhere_at_all:Foo-v0", "nowhere_at_all"),
        ("Foo/Bar-v0", r"no environment 'Foo/Bar-v0'\. A world that .* is written package:Name-v0"),
    ],
)
def test_an_unknown_world_is_one_clear_error(env_id: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(env_id)


@pytest.mark.parametrize(("seeds", "limit"), [(20, 0.2), pytest.param(200, 0.2, marks=pytest.mark.slow)])
def test_replaying_the_actions_of_a_success_elsewhere_seldom_succeeds(world, seeds: int, limit: float) -> None:
    for target in PADS:
        actions, info = play(world, 7, target)
        assert info["outcome"] == target
        assert replay(world, 7, actions)["outcome"] == target
        reached = [replay(world, 1000 + seed, actions)["outcome"] != "none" for seed in range(seeds)]
        assert np.mean(reached) <= limit
