"""Batches of online RL, and a world of numbers alone all the way from play to evaluation."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.cli import main
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError
from lit_align.evaluation.footage import read_index
from lit_align.evaluation.video import read_mp4
from lit_align.models.agent import Agent
from lit_align.models.reward import RewardModel
from lit_align.rollout.buffer import RolloutDataModule, pad, pad_vectors
from lit_align.rollout.sampler import Sampler
from lit_align.rollout.steps import Rollout, Steps
from lit_align.seeds import episode_seeds
from tests.helpers import SIZE, made_up, record, tiny_agent

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
    known = {i: torch.zeros(len(t), len(data.codec.sizes), widest) for i, t in played.items()}
    data.fill(0, [Rollout(t, torch.full((len(t),), float(i)), known[i]) for i, t in played.items()])
    seen = []
    for batch in data.train_dataloader():
        longest = int(batch["lengths"].max())
        assert batch["frames"].shape == (4, longest, size, size, 3)
        assert batch["vectors"].shape == (4, longest, data.vector_size)
        assert batch["vectors"].dtype == torch.float32
        for row, (i, length) in enumerate(
            zip(batch["advantages"][:, 0].tolist(), batch["lengths"].tolist(), strict=True)
        ):
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


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 10), st.integers(0, 12))
def test_fragments_hold_every_step_once_with_the_frames_before_it(lengths, fragment, burn_in):
    space = spaces.MultiDiscrete([3, 2])
    episodes = [made_up(i, n, space=space, size=0, vector=2) for i, n in enumerate(lengths)]
    rollouts = [Rollout(t, torch.from_numpy(t.rewards), returns=torch.arange(len(t)) * 1.0) for t in episodes]
    steps = Steps(rollouts, fragment, burn_in)
    batch = steps.batch(range(len(steps.pieces)))
    assert {len(column) for column in batch.values()} == {len(steps.pieces)}
    row = 0
    for one in episodes:
        for start in range(0, len(one), fragment):
            end, before = min(start + fragment, len(one)), min(start, burn_in)
            assert (int(batch["skip"][row]), int(batch["lengths"][row])) == (before, end - start + before)
            inside = slice(start - before, end)
            parts: dict[str, Any] = {
                "frames": one.frames,
                "vectors": one.vectors,
                "actions": one.actions,
                "log_probs": one.log_probs,
            }
            for name, values in {**parts, "advantages": one.rewards, "returns": np.arange(len(one))}.items():
                assert np.array_equal(batch[name][row, : end - start + before], values[inside]), name
                assert not batch[name][row, end - start + before :].any()
            row += 1
    assert row == len(steps.pieces)
    assert "values" not in batch
    nothing = steps.batch([])
    assert torch.equal(nothing["skip"], nothing["lengths"])


def modules(ranks: int, **options) -> list[RolloutDataModule]:
    """The data module of each process."""
    found = [RolloutDataModule("CartPole-v1", **options) for _ in range(ranks)]
    for rank, data in enumerate(found):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 2, 5]), st.sampled_from([1, 2]), st.booleans())
def test_episodes_are_dealt_once_in_groups_that_share_a_world_seed(ranks, group, minibatches, cut):
    options = {"episodes": ranks * group * minibatches * 2, "minibatches": minibatches, "group": group}
    parts = modules(ranks, fragment=8 if cut else None, **options)
    seen: list[int] = []
    seeds: dict[int, int] = {}
    for iteration in range(3):
        dealt = [data.deal(iteration) for data in parts]
        assert {len(mine) for mine in dealt} == {options["episodes"] // ranks}
        for mine in dealt:
            ids = [i for i, _ in mine]
            assert ids == sorted(ids)
            for at in range(0, len(ids), group):  # side by side, in one process
                assert ids[at : at + group] == list(range(ids[at], ids[at] + group))
                assert len({seed for _, seed in mine[at : at + group]}) == 1
            seeds.update(mine)
        together = sorted(i for mine in dealt for i, _ in mine)
        assert together == list(range(len(seen), len(seen) + len(together)))
        seen += together
    assert len(set(seeds.values())) == len(seen) // group
    assert set(seeds.values()) <= set(episode_seeds("train", 0, len(seen)))


def test_a_minibatch_without_episodes_trains_on_nothing():
    (data,) = modules(1, steps=10, minibatches=3, epochs=1)
    data.fill(0, [Rollout(made_up(i, 4, space=data.codec.space, size=0, vector=4), torch.ones(4)) for i in range(2)])
    batches = list(data.train_dataloader())
    assert [len(batch["lengths"]) for batch in batches] == [1, 1, 1]
    assert ["skip" in batch for batch in batches] == [False, False, True]
    assert torch.equal(batches[2]["skip"], batches[2]["lengths"])


def test_what_cannot_be_shared_out_is_named():
    with pytest.raises(UserError, match=r"data.episodes is 8; expected a multiple of 12, which 3 processes"):
        modules(3, episodes=8, minibatches=4)[0].setup()
    with pytest.raises(UserError, match=r"a multiple of 8, which 2 processes, data.minibatches 1 and data.group 4"):
        modules(2, episodes=4, minibatches=1, group=4)[0].setup()
    modules(2, episodes=6, minibatches=4, fragment=3, validation_episodes=2)[1].setup()  # fragments are shared out


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


@pytest.mark.parametrize(("size", "vector"), [(64, 0), (32, 3), (0, 3)])
def test_a_reward_model_that_sees_something_else_is_named_before_it_scores(tmp_path, capsys, size, vector):
    RewardModel.from_agent(tiny_agent()).save(tmp_path / "judge" / "reward_model")
    play = record(tmp_path / "play", [made_up(0, 3, size=size, vector=vector)])
    argv = ["score", str(tmp_path / "judge" / "reward_model"), f"--trajectories={play}", f"--out={tmp_path / 's'}"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "reward_model' sees frames of 32 pixels and vectors of 0 numbers; " in said
    assert f"'{play}' holds {size} and {vector}: expected the same" in said
    assert not (tmp_path / "s").exists()
