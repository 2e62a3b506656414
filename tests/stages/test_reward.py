"""The reward model: Bradley-Terry against the closed form, where it starts, what it learns, how it is measured."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_align.cli import main
from lit_align.data.modules import PreferenceDataModule
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.trajectory import Trajectory
from lit_align.models.reward import RewardModel
from lit_align.stages.reward import Reward
from tests.helpers import SIZE, made_up, record, tiny_agent
from tests.stages.runs import CPU

NOTHING = {"frames": torch.zeros(1), "vectors": torch.zeros(1), "lengths": torch.zeros(1)}  # not looked at


class Table(nn.Module):
    """Rewards `(B, K)` that were written down."""

    def __init__(self, rewards: list[list[float]]) -> None:
        super().__init__()
        self.rewards = nn.Parameter(torch.tensor(rewards))

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return self.rewards


def a_stage(**options) -> Reward:
    stage = Reward(init_from="nowhere", **options)
    stage.trainer = SimpleNamespace(global_step=0, log_every_n_steps=10**9)  # type: ignore[assignment]
    return stage


rewards = st.lists(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=2), min_size=5, max_size=5)
pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=9)


@settings(max_examples=100, deadline=None)
@given(rewards, pairs, st.sampled_from([0.0, 0.1, 0.25]))
def test_the_loss_is_the_closed_form_of_bradley_and_terry(rewards, pairs, smoothing):
    stage, table = a_stage(label_smoothing=smoothing), Table(rewards)
    stage.reward_model = table  # type: ignore[assignment]
    chosen, rejected, tie = (torch.tensor(side) for side in zip(*pairs, strict=True))
    batch = {**NOTHING, "chosen": chosen, "rejected": rejected, "tie": tie}
    loss = stage.training_step(batch, 0)
    total, slope = 0.0, np.zeros((5, 2))
    for c, r, t in pairs:
        for head in range(2):  # each head of the ensemble has its own loss
            gap = rewards[c][head] - rewards[r][head]
            p = 1 / (1 + math.exp(-gap))  # P(chosen is better), Bradley and Terry
            right = 0.5 if t else 1 - smoothing
            # -log p, written so that it does not overflow
            total += right * math.log1p(math.exp(-gap)) + (1 - right) * (gap + math.log1p(math.exp(-gap)))
            slope[c, head] += p - right
            slope[r, head] -= p - right
    count = 2 * len(pairs)
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-4, abs=1e-5)
    loss.backward()
    assert table.rewards.grad is not None
    np.testing.assert_allclose(table.rewards.grad.numpy(), slope / count, atol=1e-5)


def test_a_tie_is_best_at_equal_rewards_and_smoothing_bounds_the_gap():
    def loss_at(gap: float, tie: bool, smoothing: float = 0.0) -> float:
        stage = a_stage(label_smoothing=smoothing)
        stage.reward_model = Table([[gap], [0.0]])  # type: ignore[assignment]
        one = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1]), "tie": torch.tensor([tie])}
        return float(stage.training_step({**NOTHING, **one}, 0).detach())

    gaps = np.linspace(-6, 6, 121)
    assert gaps[np.argmin([loss_at(g, True) for g in gaps])] == pytest.approx(0, abs=1e-9)
    assert np.argmin([loss_at(g, False) for g in gaps]) == len(gaps) - 1  # the further apart the better
    best = gaps[np.argmin([loss_at(g, False, 0.1) for g in gaps])]
    assert best == pytest.approx(math.log(0.9 / 0.1), abs=0.051)  # the gap at which P is 0.9


@torch.no_grad()
@pytest.mark.parametrize("readout", ["last", "sum"])
def test_a_reward_is_read_from_the_trajectorys_own_frames(readout):
    model = RewardModel.from_agent(tiny_agent(3), heads=3, readout=readout)
    nn.init.normal_(model.head.weight)
    episodes = [made_up(i, n) for i, n in enumerate((3, 11, 6))]
    frames = torch.randint(0, 256, (3, 15, SIZE, SIZE, 3), dtype=torch.uint8)  # noise where nothing counts
    for row, episode in enumerate(episodes):
        frames[row, : len(episode) + 1] = torch.from_numpy(episode.frames)
    found = model(frames, torch.tensor([len(e) + 1 for e in episodes]))
    assert found.shape == (3, 3)
    for row, episode in enumerate(episodes):
        scores = model.head(model.backbone(torch.from_numpy(episode.frames)[None]))[0]
        expected = scores[-1] if readout == "last" else sum(score for score in scores)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_it_starts_as_a_copy_of_the_agents_backbone():
    agent = tiny_agent(5)
    model = RewardModel.from_agent(agent, heads=2)
    for name, weight in agent.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], weight), name
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(parameter.abs().max() > 0 for parameter in agent.backbone.parameters())  # a copy, not the same


def bright(episode: int, rng: np.random.Generator) -> Trajectory:
    """An episode whose frames differ in brightness at random."""
    trajectory = made_up(episode, int(rng.integers(2, 9)))
    levels = rng.integers(0, 192, len(trajectory.frames))
    trajectory.frames[:] = trajectory.frames // 4 + levels[:, None, None, None].astype(np.uint8)
    return trajectory


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    """Preferences for the brighter last frame; 220 episodes for training, 40 held out."""
    folder = tmp_path_factory.mktemp("brightness")
    rng = np.random.default_rng(0)
    episodes = [bright(i, rng) for i in range(260)]
    level = np.array([float(e.frames[-1].mean()) for e in episodes])

    def draw(low: int, high: int, count: int) -> Preferences:
        a, b = rng.integers(low, high, (2, 4 * count))
        a, b = a[a != b][:count], b[a != b][:count]
        return Preferences(np.where(level[a] > level[b], a, b), np.where(level[a] > level[b], b, a))

    play = record(folder / "play", episodes)
    splits = {"train": draw(0, 220, 900), "test": draw(220, 260, 300)}
    write_preferences(folder / "pairs", splits, PreferenceMeta(play, {"name": "bright"}), "today")
    tiny_agent().save(folder / "base" / "agent")
    argv = ["reward", "fit", f"--out={folder / 'run'}", f"--init_from={folder / 'base' / 'agent'}", *CPU]
    argv += [f"--data.preferences={folder / 'pairs'}", "--data.pairs=8", "--trainer.max_epochs=4"]
    argv += ["--model.optimizer.lr=0.003", "--model.optimizer.warmup_steps=5"]
    assert main(argv) == 0
    return folder, level, splits["test"]


def test_it_learns_which_last_frame_is_brighter(brightness):
    folder, level, test = brightness
    model = RewardModel.load(folder / "run" / "reward_model")
    assert main(["score", str(folder / "run" / "reward_model"), f"--trajectories={folder / 'play'}",
                 f"--out={folder / 'scores'}"]) == 0  # fmt: skip
    scores = json.loads((folder / "scores" / "scores.json").read_text())["scores"]
    gaps = np.array([scores[str(c)] - scores[str(r)] for c, r in zip(test.chosen, test.rejected, strict=True)])
    accuracy = float((gaps > 0).mean())
    assert accuracy > 0.95
    assert model.info["accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert model.info["pairs"] == len(test)
    assert np.corrcoef(level, [scores[str(i)] for i in range(len(level))])[0, 1] > 0.8


def test_validate_measures_the_runs_own_weights(brightness):
    folder, _, _ = brightness
    run = folder / "run"
    assert main(["reward", "validate", f"--config={run / 'config.yaml'}", f"--out={run}"]) == 0
    measured = yaml.safe_load((run / "validate.yaml").read_text())[0]["val/accuracy"]
    assert measured == pytest.approx(RewardModel.load(run / "reward_model").info["accuracy"])


def test_rewards_are_normalised_on_the_compared_rollouts(brightness):
    folder, _, _ = brightness
    scores = json.loads((folder / "scores" / "scores.json").read_text())["scores"]
    values = np.array(list(scores.values()))
    assert values.mean() == pytest.approx(0, abs=1e-4)
    assert values.std(ddof=1) == pytest.approx(1, abs=1e-4)


def test_accuracy_counts_untied_pairs_only_and_an_equal_score_as_wrong(tmp_path):
    play = record(tmp_path / "play", [made_up(i, 2) for i in range(8)])
    table = {2: 1.0, 3: 0.5, 4: 0.5, 5: -1.0, 6: 2.0, 7: 2.0}
    test = Preferences(
        np.array([2, 3, 5, 6, 2]), np.array([3, 4, 2, 7, 5]), tie=np.array([False, False, False, True, False])
    )
    splits = {"train": Preferences(np.array([0]), np.array([1])), "test": test}
    write_preferences(tmp_path / "pairs", splits, PreferenceMeta(play), "today")
    data = PreferenceDataModule(str(tmp_path / "pairs"))
    stage, logged = a_stage(), {}
    stage.trainer = SimpleNamespace(sanity_checking=False, datamodule=data)  # type: ignore[assignment]
    stage.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
    stage.seen_ids.update(torch.tensor([float(i) for i in table]))
    stage.seen_rewards.update(torch.tensor(list(table.values())))
    stage.on_validation_epoch_end()
    # Right: 2 over 3, 2 over 5. Wrong: 3 against its equal 4, 5 over 2. The tie of 6 and 7 counts for nothing.
    assert stage.accuracy == logged["val/accuracy"] == 0.5
    assert logged["val/pairs"] == 4
    gaps = [0.5, 0.0, -2.0, 2.0]
    assert float(logged["val/loss"]) == pytest.approx(np.mean([math.log1p(math.exp(-g)) for g in gaps]), rel=1e-5)
