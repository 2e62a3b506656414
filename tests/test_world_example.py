"""The example of a world of one's own: Gymnasium takes it, and so do the verbs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lit_align.cli import main
from lit_align.envs.gym import make
from tests.helpers import tiny_agent

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
WORLD = "my_worlds:Kitchen-v0"


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(EXAMPLES)


def test_gymnasium_takes_it_and_its_episodes_end_as_it_says():
    world = make(WORLD).unwrapped
    check_env(world, skip_render_check=True)
    for seed in range(20):
        world.reset(seed=seed)
        over, info, steps = False, {}, 0
        while not over:
            way = np.clip((world.stove - world.cook) / 4, -1, 1) if seed % 2 else np.zeros(2)
            action = world.action_space.sample() | {"left_stick": np.array([way[0], -way[1]], np.float32)}
            _, _, terminated, truncated, info = world.step(action)
            over, steps = terminated or truncated, steps + 1
        assert info["outcome"] == ("done" if seed % 2 else "failed") or steps == 1
        assert steps <= 60


def test_collect_plays_in_it(tmp_path):
    tiny_agent(image_size=64).save(tmp_path / "agent")
    command = ["collect", "--agent", str(tmp_path / "agent"), "--env", WORLD, "--episodes", "3", "--worlds", "2"]
    assert main([*command, "--out", str(tmp_path / "rollouts")]) == 0
    meta = json.loads((tmp_path / "rollouts" / "meta.json").read_text())
    assert sum(meta["outcomes"].values()) == 3
    assert set(meta["outcomes"]) <= {"done", "failed"}


def test_an_agent_that_plays_in_another_world_than_its_own_is_told_so(tmp_path, caplog):
    agent = tiny_agent(image_size=64)
    agent.info["env"] = "some:Other-v0"
    agent.save(tmp_path / "agent")
    command = ["evaluate", str(tmp_path / "agent"), "--env", WORLD, "--episodes", "1"]
    assert main(command) == 0
    assert f"was aligned in some:Other-v0 and plays in {WORLD} here; --env some:Other-v0 takes its own" in caplog.text
    caplog.clear()
    agent.info["env"] = WORLD
    agent.save(tmp_path / "agent")
    assert main(command) == 0
    assert "was aligned in" not in caplog.text
