"""The race of PPO: its world, its intervals, and that what it calls a return is one."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tools import bench_table
from tools.bench._peers.catch import BALL, BALLS, CELL, CELLS, ID, PADDLE, STEPS
from tools.bench._race import T_QUANTILES, interval, reaches


def made():
    return gymnasium.make(f"tools.bench._peers.catch:{ID}")


def column(picture, colour):
    """Where a thing of some colour is, or None where it is hidden."""
    found = np.flatnonzero((picture[CELL // 2 :: CELL, CELL // 2 :: CELL] == colour).all(-1).any(0))
    return int(found[0]) if len(found) else None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_pixel_world_is_one_of_gymnasiums():
    check_env(made().unwrapped, skip_render_check=True)


def test_whoever_goes_where_the_ball_is_catches_every_ball_from_pixels_alone():
    world = made()
    for seed in range(50):
        picture, _ = world.reset(seed=seed)
        rewards = []
        truncated = False
        while not truncated:
            ball = column(picture, BALL)
            action = 1 + int(np.sign(ball - column(picture, PADDLE)))
            picture, reward, terminated, truncated, _ = world.step(action)
            assert not terminated
            rewards.append(reward)
        assert len(rewards) == STEPS
        assert sum(rewards) == BALLS
        assert np.flatnonzero(rewards).tolist() == list(range(CELLS - 2, STEPS, CELLS - 1))  # as each ball lands


def test_whoever_stays_catches_the_balls_above_him():
    world, caught, runs = made(), 0.0, 400
    for seed in range(runs):
        world.reset(seed=seed)
        caught += sum(world.step(1)[1] for _ in range(STEPS))
    p, balls = 1 / CELLS, runs * BALLS
    assert caught / balls == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / balls))


def test_the_quantiles_are_students():
    for df, quantile in enumerate(T_QUANTILES, start=1):
        # The density from 0 to the quantile, by the midpoint rule: half of the 95 % in the middle.
        n = 20_000
        at = (np.arange(n) + 0.5) * quantile / n
        scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
        inside = 2 * float((scale * (1 + at**2 / df) ** (-(df + 1) / 2)).sum()) * quantile / n
        assert inside == pytest.approx(0.95, abs=5e-5)


def test_the_interval_of_three_values_by_hand():
    low, high = interval([1.0, 2.0, 3.0])  # mean 2, standard deviation 1
    assert (low, high) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))


@pytest.mark.parametrize(
    ("ours", "reached"),
    [([10.0, 11.0, 12.0], True), ([100.0, 101.0, 102.0], True), ([1.0, 1.1, 1.2], False)],
    ids=["overlapping", "higher", "below"],
)
def test_a_return_is_reached_unless_it_is_surely_below(ours, reached):
    case = reaches(ours, {"a_peer": [9.0, 12.0, 15.0]}, unit="return").to_dict()
    assert case["reached"] is reached
    assert case["ratio"]["a_peer"] == pytest.approx(sum(ours) / 36)
    (row,) = bench_table.rows({"unit": "env steps/s", "cases": {"a world": case}})
    assert ("not below: reached" in row) is reached
    assert ("not below: **missed**" in row) is not reached
    assert "a peer: 12 (4.55 to 19.5)" in row  # 12 - and + 4.303 * 3 / sqrt(3)


@pytest.mark.slow
def test_a_run_stops_by_env_steps_and_its_return_is_that_of_the_greedy_agent(tmp_path):
    from lit_align.models.agent import Agent
    from lit_align.spaces import ActionCodec
    from tools.bench import _ppo, ppo

    case = ppo.CASES["CartPole-v1"]
    world = gymnasium.make(case.env)
    agent = Agent(case.backbone, ActionCodec(world.action_space))
    agent.save(tmp_path / "agent")
    settings = _ppo.PPO(n_steps=32, batch_size=64, n_epochs=2)
    told = _ppo.align(settings.config(4, 16), tmp_path / "agent", case.env, 300, 0, [3, 5])
    assert 300 <= told["steps"] < 300 + 128 + 500  # an iteration, and the longest episode
    assert told["parameters"] == sum(p.numel() for p in agent.parameters()) + case.backbone.width + 1  # the value head
    returns = []
    for seed in (3, 5):
        seen, _ = world.reset(seed=seed)
        agent.reset()
        returns.append(0.0)
        over = False
        while not over:
            seen, reward, terminated, truncated, _ = world.step(agent.act(seen, temperature=0.0))
            returns[-1] += float(reward)
            over = terminated or truncated
    assert _ppo.score(agent, case.env, [3, 5]) == pytest.approx(sum(returns) / 2)
