"""Axes cut into other than eleven bins, from recordings to an agent that is aligned and evaluated in the world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from lit_align.cli import main
from lit_align.data.trajectories import TrajectoryDataset, TrajectoryWriter
from lit_align.data.trajectory import Trajectory
from lit_align.models.agent import Agent
from lit_align.spaces import ActionCodec
from tests.stages.runs import BACKBONE, CPU

BINS, WORLD = 31, "Pendulum-v1"
SEES = [word for word in BACKBONE if "image_size" not in word and "vector_size" not in word]


def swing(codec: ActionCodec, number: int) -> Trajectory:
    """Thirty steps of somebody who pushes against the swing, at every strength between the ends."""
    world = gymnasium.make(WORLD)
    seen, _ = world.reset(seed=number)
    vectors, actions, rewards = [seen], [], []
    for _ in range(30):
        action = np.clip(-0.7 * seen[2:3], -2.0, 2.0).astype(np.float32)
        classes = codec.encode(action)
        seen, reward, _, _, _ = world.step(codec.decode(classes))
        vectors.append(seen)
        actions.append(classes)
        rewards.append(float(reward))
    frames = np.zeros((31, 0, 0, 3), np.uint8)
    return Trajectory(
        frames=frames,
        actions=np.stack(actions),
        id=number,
        vectors=np.stack(vectors),
        rewards=np.array(rewards, np.float32),
        truncated=True,
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bins")
    codec = ActionCodec(spaces.Box(-2.0, 2.0, (1,), np.float32), BINS)
    with TrajectoryWriter(folder / "play", codec, fps=20, env=WORLD) as writer:
        for number in range(6):
            writer.write(swing(codec, number))
    data = [f"--data.trajectories=[{folder / 'play'}]", "--data.batch_size=2", "--data.window=16"]
    sees = ["--model.backbone.image_size=0", "--model.backbone.vector_size=3", *SEES]
    argv = ["pretrain", "fit", f"--out={folder / 'base'}", *data, *sees, *CPU, "--trainer.max_epochs=1"]
    assert main(argv) == 0
    return folder


def test_an_agent_takes_the_bins_of_its_recordings(pretrained: Path) -> None:
    agent = Agent.load(pretrained / "base" / "agent")
    assert agent.codec.sizes == (BINS,)
    assert json.loads((pretrained / "base" / "agent" / "config.json").read_text())["actions"]["bins"] == BINS
    play = TrajectoryDataset(pretrained / "play")
    assert len(np.unique(np.concatenate([play[at].actions for at in range(len(play))]))) > 11
    card = " ".join((pretrained / "base" / "agent" / "README.md").read_text().split())
    assert f"| axis | 1 | {BINS} | -2 to 2 in even steps |" in card


def test_it_plays_and_is_aligned_and_evaluated_with_them(pretrained: Path) -> None:
    base, out = pretrained / "base" / "agent", pretrained / "rollouts"
    short = "{max_episode_steps: 20}"
    collect = ["collect", f"--agent={base}", f"--out={out}", f"--env={WORLD}", f"--env_args={short}"]
    assert main([*collect, "--episodes=4", "--worlds=2"]) == 0
    played = TrajectoryDataset(out)
    assert played.codec == Agent.load(base).codec
    assert max(int(played[at].actions.max()) for at in range(len(played))) > 11
    align = ["align", "fit", f"--out={pretrained / 'aligned'}", f"--init_from={base}", *CPU, "--trainer.max_epochs=1"]
    align += [f"--data.env={WORLD}", f"--data.env_args={short}", "--data.worlds=2", "--data.episodes=4"]
    align += ["--data.minibatches=2", "--model.reward_model=env", "--trainer.limit_val_batches=0"]
    assert main([*align, "--dry_run"]) == 0
    assert main(align) == 0
    assert Agent.load(pretrained / "aligned" / "agent").codec.sizes == (BINS,)
    told = pretrained / "results.json"
    words = ["evaluate", str(pretrained / "aligned" / "agent"), f"--env={WORLD}", f"--env_args={short}"]
    assert main([*words, "--episodes=3", f"--json={told}"]) == 0
    (entry,) = json.loads(told.read_text())["agents"].values()
    assert entry["return"]["mean"] < 0


def test_recordings_of_other_bins_do_not_mix(pretrained: Path, capsys: Any) -> None:
    codec = ActionCodec(spaces.Box(-2.0, 2.0, (1,), np.float32))
    with TrajectoryWriter(pretrained / "coarse", codec, fps=20, env=WORLD) as writer:
        writer.write(swing(codec, 0))
    data = f"--data.trajectories=[{pretrained / 'play'},{pretrained / 'coarse'}]"
    argv = ["finetune", "fit", f"--init_from={pretrained / 'base' / 'agent'}", f"--out={pretrained / 'no'}", data, *CPU]
    assert main(argv) == 2
    told = capsys.readouterr().err
    assert "1 x 11 classes" in told
    assert "1 x 31 classes" in told


def test_scripted_players_are_recorded_with_as_many_bins_as_are_asked_for(tmp_path: Path, capsys: Any) -> None:
    argv = ["collect", f"--out={tmp_path / 'play'}", "--episodes=2", "--env_args={size: 32}", "--workers=1"]
    assert main([*argv, "--players={goal: 1}", "--bins=5"]) == 0
    played = TrajectoryDataset(tmp_path / "play")
    assert played.codec.sizes == (2,) * 12 + (5,) * 4
    assert main(["collect", "--agent=somebody", f"--out={tmp_path / 'no'}", "--bins=5"]) == 2
    assert "an agent keeps those that it learned" in capsys.readouterr().err
    assert main(["collect", f"--out={tmp_path / 'no'}", "--bins=1"]) == 2
    assert "bins is 1; expected a whole number from 2 to 256" in capsys.readouterr().err
