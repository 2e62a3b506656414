"""Batches of online RL, and a world of numbers alone all the way from play to evaluation."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lit_align.cli import main
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.evaluation.footage import read_index
from lit_align.evaluation.video import read_mp4
from lit_align.models.agent import Agent
from lit_align.models.reward import RewardModel
from lit_align.rollout.buffer import Rollout, RolloutDataModule, pad, pad_vectors
from lit_align.rollout.sampler import Sampler
from tests.helpers import SIZE, tiny_agent

LIGHT = "tests.helpers:LitAlign-test/Light-v0"
WORLDS = {
    "pixels": (LIGHT, {}, {}),
    "both": (LIGHT, {"vector": 2}, {"vector_size": 2}),
    "vector": ("CartPole-v1", {}, {"image_size": 0, "vector_size": 4}),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_batch_holds_whole_episodes_with_what_was_seen(name):
    env, args, sees = WORLDS[name]
    data = RolloutDataModule(env, args, episodes=8, minibatches=2, epochs=1)
    assert (data.image_size, data.vector_size) == (sees.get("image_size", SIZE), sees.get("vector_size", 0))
    agent = tiny_agent(space=data.codec.space, **sees)
    with Sampler(agent, data.make_world, 3) as sampler:
        played = {t.id: t for t in sampler.play(data.deal(0))}
    size, widest = data.image_size, max(data.codec.sizes)
    data.fill(0, [Rollout(t, float(i), torch.zeros(len(t), len(data.codec.sizes), widest)) for i, t in played.items()])
    seen = []
    for batch in data.train_dataloader():
        longest = int(batch["lengths"].max())
        assert batch["frames"].shape == (4, longest, size, size, 3)
        assert batch["vectors"].shape == (4, longest, data.vector_size)
        assert batch["vectors"].dtype == torch.float32
        for row, (i, length) in enumerate(zip(batch["advantages"].tolist(), batch["lengths"].tolist(), strict=True)):
            one = played[int(i)]
            assert length == len(one)
            for part, want in (("frames", one.frames), ("vectors", one.vectors)):
                assert np.array_equal(batch[part][row, :length], want[:-1])
                assert not batch[part][row, length:].any()
            seen.append(one.id)
        # What the trainer finds is what the sampler recorded.
        with torch.no_grad():
            log_probs = agent(batch["frames"], batch["vectors"], batch["actions"])
        found = log_probs.gather(-1, batch["actions"].long().unsqueeze(-1)).squeeze(-1).sum(-1)
        kept = torch.arange(longest) < batch["lengths"][:, None]
        torch.testing.assert_close(found[kept], batch["log_probs"][kept], atol=1e-4, rtol=0)
    assert sorted(seen) == sorted(played)
    episodes = list(played.values())
    frames, lengths = pad(episodes, last=True)
    vectors = pad_vectors(episodes, last=True)
    assert frames.shape[:2] == vectors.shape[:2] == (8, int(lengths.max()))
    for row, one in enumerate(episodes):
        assert np.array_equal(frames[row, : lengths[row]], one.frames)
        assert np.array_equal(vectors[row, : lengths[row]], one.vectors)


def test_cart_pole_is_collected_scored_evaluated_and_filmed(tmp_path):
    agent = tiny_agent(space=spaces.Discrete(2), image_size=0, vector_size=4)
    agent.save(tmp_path / "base" / "agent")
    RewardModel.from_agent(agent).save(tmp_path / "judge" / "reward_model")
    base, play = str(tmp_path / "base" / "agent"), str(tmp_path / "play")
    cart = ["--env=CartPole-v1", "--worlds=2"]
    assert main(["collect", f"--out={play}", f"--agent={base}", "--episodes=5", *cart]) == 0
    dataset = TrajectoryDataset(play)
    assert (dataset.meta.image_size, dataset.meta.vector_size) == (0, 4)

    judge = RewardModel.load(tmp_path / "judge" / "reward_model").eval()
    scored = ["score", str(tmp_path / "judge" / "reward_model"), f"--trajectories={play}", f"--out={tmp_path / 's'}"]
    assert main(scored) == 0
    scores = json.loads((tmp_path / "s" / "scores.json").read_text())["scores"]
    for i in range(5):
        one = dataset[i]
        with torch.no_grad():
            want = judge(*pad([one], last=True), torch.from_numpy(one.vectors)[None])[0, 0]
        assert scores[str(one.id)] == pytest.approx(float(want), abs=1e-5)

    out = tmp_path / "eval"
    assert main(["evaluate", base, "--episodes=4", f"--out={out}", "--videos=1", *cart]) == 0
    found = json.loads((out / "results.json").read_text())["agents"]["base"]
    assert found["episodes"] == 4
    (film,) = read_index(out / "videos")  # what the world renders, since the agent sees no pixels
    pictures, fps = read_mp4(out / "videos" / film.file)
    assert (fps, len(pictures), pictures.shape[1:]) == (50, film.steps + 1, (400, 600, 3))
    assert len({picture.tobytes() for picture in pictures}) > film.steps // 2
    assert Agent.load(base).config.vector_size == 4
