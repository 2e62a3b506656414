"""The reward model: Bradley-Terry against the closed form, where it starts, what it learns, how it is measured."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_align.cli import main
from lit_align.data.pairs import PreferenceDataModule
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.models.backbone import Backbone
from lit_align.models.reward import RewardModel
from lit_align.stages.reward import Reward, pairwise_loss
from tests.helpers import SIZE, made_up, record, tiny_agent
from tests.stages.runs import CPU, Process, assert_same_weights, rows

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
    stage, table = a_stage(label_smoothing=smoothing, bootstrap=1.0), Table(rewards)
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
        stage = a_stage(label_smoothing=smoothing, bootstrap=1.0)
        stage.reward_model = Table([[gap], [0.0]])  # type: ignore[assignment]
        one = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1]), "tie": torch.tensor([tie])}
        return float(stage.training_step({**NOTHING, **one}, 0).detach())

    gaps = np.linspace(-6, 6, 121)
    assert gaps[np.argmin([loss_at(g, True) for g in gaps])] == pytest.approx(0, abs=1e-9)
    assert np.argmin([loss_at(g, False) for g in gaps]) == len(gaps) - 1  # the further apart the better
    best = gaps[np.argmin([loss_at(g, False, 0.1) for g in gaps])]
    assert best == pytest.approx(math.log(0.9 / 0.1), abs=0.051)  # the gap at which P is 0.9


def taught(stage: Reward, count: int, heads: int, seed: int, numbers: torch.Tensor) -> np.ndarray:
    """Which of some comparisons move which head `(numbers, heads)`: each is alone in a batch, of two episodes."""
    moved = np.zeros((len(numbers), heads))
    for row, number in enumerate(numbers):
        table = Table(torch.zeros(2, heads).tolist())
        table.heads = heads  # type: ignore[assignment]
        stage.reward_model = table  # type: ignore[assignment]
        data = SimpleNamespace(seed=seed, train_pairs=range(count))
        stage.trainer = SimpleNamespace(global_step=0, log_every_n_steps=10**9, datamodule=data)  # type: ignore[assignment]
        one = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1]), "tie": torch.tensor([False])}
        stage.training_step({**NOTHING, **one, "pair": number[None]}, 0).backward()
        assert table.rewards.grad is not None
        moved[row] = table.rewards.grad[0].abs().numpy() > 0
    return moved


def test_each_head_of_an_ensemble_learns_from_comparisons_of_its_own():
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    found = taught(a_stage(), 200, 3, 4, order)
    assert np.all((found.mean(0) > 0.4) & (found.mean(0) < 0.6))  # half of 200, within 2.8 standard deviations
    both = [(found[:, a] * found[:, b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert 0.15 < min(both) <= max(both) < 0.35, "as often as two coins say so"
    again = taught(a_stage(), 200, 3, 4, torch.arange(200))
    assert np.array_equal(again[order.numpy()], found), "whatever the order, and in a run that begins anew"
    assert np.array_equal(taught(a_stage(), 50, 3, 4, torch.arange(50)), again[:50]), "fewer are the first of more"
    assert not np.array_equal(taught(a_stage(), 200, 3, 5, order), found), "another seed"
    assert taught(a_stage(bootstrap=1.0), 9, 3, 4, torch.arange(9)).all()
    assert taught(a_stage(bootstrap=0.1), 200, 3, 4, torch.arange(200)).mean() == pytest.approx(0.1, abs=0.05)


def test_a_heads_loss_is_the_mean_over_its_own_comparisons():
    rewards = torch.randn(4, 2, generator=torch.Generator().manual_seed(2), requires_grad=True)
    chosen, rejected, tie = torch.tensor([0, 1, 2]), torch.tensor([3, 2, 0]), torch.tensor([False, True, False])
    kept = torch.tensor([[True, False], [True, True], [False, False]])
    loss = pairwise_loss(rewards, chosen, rejected, tie, 0.0, kept)
    by_hand = [
        pairwise_loss(rewards[:, k : k + 1], chosen[[i]], rejected[[i]], tie[[i]], 0.0)
        for i, k in ((0, 0), (1, 0), (1, 1))
    ]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())
    assert float(pairwise_loss(rewards, chosen, rejected, tie, 0.0, torch.zeros_like(kept)).detach()) == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_smoothing": 0.5}, r"label_smoothing is 0\.5; expected 0 or more, and below 0\.5"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"bootstrap": 0.0}, r"bootstrap is 0\.0; expected a fraction above 0"),
        ({"bootstrap": 1.5}, "bootstrap is 1.5"),
    ],
)
def test_fractions_that_are_none_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        a_stage(**options)


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


def judged(tmp_path, test: Preferences, rewards: dict[int, list[float]], provenance: dict[str, Any] | None = None):
    """A stage that has validated rewards that were written down, and what it logged."""
    play = record(tmp_path / "play", [made_up(i, 2) for i in range(12)])
    splits = {"train": Preferences(np.array([0]), np.array([1])), "test": test}
    meta = PreferenceMeta(play, provenance=provenance or {})
    write_preferences(tmp_path / "pairs", splits, meta, "today")
    data = PreferenceDataModule(str(tmp_path / "pairs"))
    stage, logged = a_stage(), {}
    stage.trainer = SimpleNamespace(sanity_checking=False, datamodule=data)  # type: ignore[assignment]
    stage.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign]
    for part in (list(rewards)[::2], list(rewards)[1::2]):
        stage.reward_model = Table([rewards[i] for i in part])  # type: ignore[assignment]
        with torch.no_grad():
            stage.validation_step({**NOTHING, "ids": torch.tensor(part)}, 0)
    stage.on_validation_epoch_end()
    return stage, logged


def test_accuracy_counts_untied_pairs_only_and_an_equal_score_as_wrong(tmp_path):
    table = {2: [1.0], 3: [0.5], 4: [0.5], 5: [-1.0], 6: [2.0], 7: [2.0]}
    test = Preferences(
        np.array([2, 3, 5, 6, 2]), np.array([3, 4, 2, 7, 5]), tie=np.array([False, False, False, True, False])
    )
    stage, logged = judged(tmp_path, test, table)
    # Right: 2 over 3, 2 over 5. Wrong: 3 against its equal 4, 5 over 2. The tie of 6 and 7 counts for nothing.
    assert stage.accuracy == logged["val/accuracy"] == 0.5
    assert logged["val/pairs"] == 4
    gaps = [0.5, 0.0, -2.0, 2.0]
    assert float(logged["val/loss"]) == pytest.approx(np.mean([math.log1p(math.exp(-g)) for g in gaps]), rel=1e-5)
    assert set(logged) == {"val/accuracy", "val/pairs", "val/loss", "val/ece", "val/accuracy_gap_1"}


def test_accuracy_by_gap_calibration_and_what_the_labels_allow(tmp_path):
    rng = np.random.default_rng(0)
    rewards = {i: rng.normal(size=3).tolist() for i in range(2, 12)}
    pairs = [(a, b) for a in range(2, 12) for b in range(2, a)]
    margin = rng.choice([-2, -1, 1, 2, 3], len(pairs)).astype(np.float32)
    tie = rng.random(len(pairs)) < 0.2
    chosen, rejected = (np.array(side) for side in zip(*pairs, strict=True))
    test = Preferences(chosen, rejected, tie, np.where(tie, 0, margin))
    stage, logged = judged(tmp_path, test, rewards, {"best_accuracy": {"train": 0.5, "test": 0.625}})
    rows = [
        (
            np.mean(rewards[a]) - np.mean(rewards[b]),
            abs(m),
            [x > y for x, y in zip(rewards[a], rewards[b], strict=True)],
        )
        for (a, b), m, t in zip(pairs, margin, tie, strict=True)
        if not t
    ]
    assert logged["val/accuracy"] == pytest.approx(np.mean([gap > 0 for gap, *_ in rows]))
    assert logged["val/best_accuracy"] == 0.625
    assert float(logged["val/head_agreement"]) == pytest.approx(np.mean([len(set(heads)) == 1 for *_, heads in rows]))
    by_gap = {}
    for rank in (1, 2, 3):
        right = [gap > 0 for gap, size, _ in rows if size == rank]
        assert logged[f"val/accuracy_gap_{rank}"] == pytest.approx(np.mean(right))
        by_gap[str(rank)] = {"accuracy": pytest.approx(np.mean(right)), "pairs": len(right), "gap": [rank, rank]}
    assert stage.measured["by_gap"] == by_gap
    bins = np.zeros((15, 3))
    for gap, *_ in rows:
        confidence = 1 / (1 + math.exp(-abs(gap)))
        bins[int(confidence * 15)] += (1, confidence, gap > 0)
    assert logged["val/ece"] == stage.measured["ece"]
    assert logged["val/ece"] == pytest.approx(np.abs(bins[:, 2] - bins[:, 1]).sum() / len(rows), abs=1e-6)


def test_comparisons_of_episodes_that_were_not_seen_do_not_count(tmp_path):
    test = Preferences(np.array([2, 4]), np.array([3, 5]))
    _, logged = judged(tmp_path, test, {2: [1.0], 3: [0.0]})
    assert (logged["val/pairs"], logged["val/accuracy"]) == (1, 1)


def test_facts_go_with_the_model_and_come_back_with_a_checkpoint(brightness):
    folder, _, test = brightness
    info = RewardModel.load(folder / "run" / "reward_model").info
    assert 0 <= info["ece"] <= 0.5
    assert info["by_gap"] == {"1": {"accuracy": info["accuracy"], "pairs": len(test), "gap": [1, 1]}}
    assert "best_accuracy" not in info  # these comparisons do not tell
    checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["lit_align"]["measured"]["by_gap"] == info["by_gap"]


FROZEN = ["--model.train.parameters=heads", "--model.optimizer.schedule=constant", "--model.optimizer.lr=0.01"]


def fit(folder: Path, out: Path, *more: str) -> Path:
    argv = ["reward", "fit", f"--out={out}", f"--init_from={folder / 'base' / 'agent'}", *CPU, *FROZEN]
    assert main([*argv, f"--data.preferences={folder / 'pairs'}", "--trainer.max_epochs=1", *more]) == 0
    return out


@pytest.mark.parametrize(
    "more",
    [
        ["--model.readout=last", "--data.batch=trajectories", "--data.trajectories_in_batch=24"],
        ["--model.readout=sum", "--model.heads=3", "--data.pairs=100", "--model.label_smoothing=0.1"],
    ],
    ids=["last", "sum"],
)
def test_a_frozen_trunk_sees_each_trajectory_once_and_learns_the_same(brightness, tmp_path, monkeypatch, more):
    folder, _, _ = brightness
    seen = []
    forward = Backbone.forward

    def counted(self, frames, vectors=None):
        seen.append(0 if frames.is_meta or "Fake" in type(frames).__name__ else len(frames))
        return forward(self, frames, vectors)

    monkeypatch.setattr(Backbone, "forward", counted)
    kept = fit(folder, tmp_path / "kept", *more)
    assert sum(seen) == 260  # training, validation and normalisation together
    monkeypatch.setattr(Reward, "keeps_features", False)
    fresh = fit(folder, tmp_path / "fresh", *more)
    assert sum(seen) - 260 > 260 + 40  # normalisation and validation see so many, training more
    a, b = (RewardModel.load(run / "reward_model") for run in (kept, fresh))
    start = RewardModel.from_agent(tiny_agent()).backbone.state_dict()
    for name, weight in a.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(weight, start[name.removeprefix("backbone.")])
        elif a.readout == "sum" or name not in ("head.bias", "mean"):
            torch.testing.assert_close(weight, b.state_dict()[name], atol=1e-6, rtol=1e-5)
    # A bias that all rewards share cancels in every gap: its gradient is rounding, and the mean takes it out again.
    shift = [float((model.mean - model.head.bias.detach()).mean()) for model in (a, b)]
    assert a.readout == "sum" or shift[0] == pytest.approx(shift[1], abs=1e-6)
    losses = [[float(row["train/loss"]) for row in rows(run, "train/loss")] for run in (kept, fresh)]
    assert len(losses[0]) > 5
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert a.info["accuracy"] == pytest.approx(b.info["accuracy"], abs=0.01)
    assert a.info["train_frames"] == b.info["train_frames"]


def test_kept_features_are_there_again_after_a_kill(brightness, tmp_path):
    folder, _, _ = brightness
    more = ["--data.batch=trajectories", "--model.heads=2"]
    whole = fit(folder, tmp_path / "whole", *more, "--trainer.max_epochs=3")
    parts = fit(folder, tmp_path / "parts", *more)
    fit(folder, parts, *more, "--trainer.max_epochs=3", "--resume=last")
    assert_same_weights(whole / "reward_model", parts / "reward_model")
    assert rows(whole, "train/loss") == rows(parts, "train/loss")
    first = RewardModel.load(whole / "reward_model")
    fit(folder, whole, *more, "--trainer.max_epochs=3", "--resume=last")  # nothing is left but to export
    again = RewardModel.load(whole / "reward_model")
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert first.info["by_gap"] == again.info["by_gap"]


def test_a_run_from_a_reward_model_keeps_its_heads_or_says_that_it_would_not(brightness, tmp_path, capsys):
    folder, _, _ = brightness
    start = tmp_path / "start" / "reward_model"
    RewardModel.from_agent(tiny_agent(), heads=3, readout="sum").save(start)
    argv = ["reward", "fit", f"--init_from={start}", *CPU, *FROZEN, f"--data.preferences={folder / 'pairs'}"]
    argv += ["--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    assert main([*argv, f"--out={tmp_path / 'other'}", "--model.heads=1", "--model.readout=last"]) == 2
    said = capsys.readouterr().err
    assert f"model.heads is 1, and the reward model of '{start}', which this run starts from, has 3" in said
    assert "model.readout is last" in said
    assert "set --model.readout to sum or null" in said
    for name, more in (("same", ["--model.heads=3"]), ("silent", [])):
        assert main([*argv, f"--out={tmp_path / name}", *more]) == 0
        model = RewardModel.load(tmp_path / name / "reward_model")
        assert (model.heads, model.readout) == (3, "sum")


def test_a_trunk_that_trains_sees_every_batch(brightness, tmp_path):
    folder, _, _ = brightness
    argv = ["--model.train.parameters=last_layers", "--trainer.max_steps=3", "--trainer.limit_val_batches=0"]
    run = fit(folder, tmp_path / "run", *argv)
    before = tiny_agent().backbone.state_dict()
    after = RewardModel.load(run / "reward_model").backbone.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_two_processes_measure_what_one_would(brightness, tmp_path):
    folder, _, test = brightness
    out = tmp_path / "two"
    argv = ["reward", "fit", f"--out={out}", f"--init_from={folder / 'base' / 'agent'}", *CPU, *FROZEN]
    argv += [f"--data.preferences={folder / 'pairs'}", "--data.batch=trajectories", "--trainer.max_epochs=2"]
    Process([*argv, "--trainer.devices=2", "--trainer.strategy=ddp"], tmp_path / "log.txt").finish()
    model = RewardModel.load(out / "reward_model").eval()
    dataset = TrajectoryDataset(folder / "play")

    @torch.no_grad()
    def reward(episode: int) -> float:
        frames = torch.from_numpy(dataset.frames(dataset.index_of(episode)))
        return float(model(frames[None], torch.tensor([len(frames)])))

    table = {int(i): reward(int(i)) for i in {*test.chosen.tolist(), *test.rejected.tolist()}}
    gaps = [table[int(c)] - table[int(r)] for c, r in zip(test.chosen, test.rejected, strict=True)]
    bins = np.zeros((15, 2))
    for gap in gaps:
        confidence = 1 / (1 + math.exp(-abs(gap)))
        bins[int(confidence * 15)] += (confidence, gap > 0)
    assert model.info["ece"] == pytest.approx(np.abs(bins[:, 1] - bins[:, 0]).sum() / len(gaps), abs=0.01)
    assert model.info["accuracy"] == pytest.approx(np.mean([gap > 0 for gap in gaps]), abs=0.01)
    assert model.info["by_gap"]["1"]["pairs"] == len(test)
    assert model.info["by_gap"]["1"]["accuracy"] == pytest.approx(model.info["accuracy"])
