"""The race of reward models: its comparisons, its borrowed net and its stopwatch; imitation itself is not needed."""

from __future__ import annotations

from collections import Counter, OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tools.bench import _preferences, reward_pairs
from tools.bench._preferences import Borrowed, Watch, through_the_stage

VECTORS = reward_pairs.QUICK["MLP, disjoint"]


def left(path, **parts):
    """A file of parts as the peer leaves it."""
    torch.save(OrderedDict(parts), path)
    return path


@pytest.mark.parametrize("name", reward_pairs.CASES)
def test_comparisons_share_fragments_only_where_they_should_and_no_two_are_alike(name):
    case = reward_pairs.CASES[name]
    pairs = reward_pairs.comparisons(case, np.random.default_rng(0))
    uses = Counter([*pairs.chosen.tolist(), *pairs.rejected.tolist()])
    assert len(pairs) == case.pairs
    assert set(uses) <= set(range(case.fragments))
    assert (max(uses.values()) == 1) is not case.shared
    alike = {frozenset(both) for both in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)}
    assert len(alike) == case.pairs
    assert {len(both) for both in alike} == {2}
    assert 0 < pairs.tie.mean() < 0.2


def test_a_borrowed_net_sums_what_it_says_of_each_observation(tmp_path):
    line = nn.Linear(3, 1)
    net = Borrowed(left(tmp_path / "weights.pt", line=line))
    vectors, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    rewards = net(torch.zeros(2, 5, 0, 0, 3, dtype=torch.uint8), lengths, vectors)
    weight, bias = line.weight.detach().numpy()[0], float(line.bias.detach())
    expected = [(vectors[i, :n].numpy() @ weight + bias).sum() for i, n in enumerate(lengths.tolist())]
    assert rewards.shape == (2, 1)
    assert rewards[:, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_borrowed_net_sees_pixels_as_planes_from_0_to_1(tmp_path):
    net = Borrowed(left(tmp_path / "weights.pt", pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), red=nn.Linear(3, 1)))
    with torch.no_grad():
        net.body.red.weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        net.body.red.bias.zero_()
    frames = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
    frames[0, :, :, :, 0] = 51
    assert float(net(frames, torch.tensor([2]))) == pytest.approx(2 * 0.2)


def test_the_watch_counts_the_pairs_of_the_batches_that_it_times(monkeypatch):
    done = []
    clock = SimpleNamespace(perf_counter=lambda: len(done), process_time=lambda: 2 * len(done))
    monkeypatch.setattr(_preferences, "time", clock)
    watch = Watch([{"chosen": [0] * n} for n in (1, 10, 100)], warm_up=2, steps=3)  # type: ignore[arg-type]
    for batch in watch:
        done.append(len(batch["chosen"]))
    assert done == [1, 10, 100, 1, 10, 100]  # the second pass is the next epoch
    assert Watch.last == {"wall": 3, "cpu": 6, "pairs": 111}


@pytest.mark.slow
def test_the_stage_trains_a_borrowed_net_and_its_loss_is_the_textbooks(tmp_path):
    places = reward_pairs.write(VECTORS, tmp_path, seed=0)
    net = nn.Sequential(nn.Linear(reward_pairs.VECTOR, 8), nn.ReLU(), nn.Linear(8, 1))
    left(places["weights.pt"], **{f"part{i}": part for i, part in enumerate(net)})
    data = np.load(places["data.npz"])
    with torch.no_grad():
        rewards = net(torch.from_numpy(data["seen"])).sum((1, 2)).double().numpy()
    first = slice(0, reward_pairs.PROBE)
    gap = rewards[data["chosen"][first]] - rewards[data["rejected"][first]]
    p, wanted = 1 / (1 + np.exp(-gap)), np.where(data["tie"][first], 0.5, 1.0)
    expected = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).mean()
    assert reward_pairs.our_loss(places) == pytest.approx(expected, rel=1e-4)

    seen = {"preferences": str(places["preferences"]), "warm_up": 1, "steps": 3, "pairs": 32}
    told = through_the_stage(places["weights.pt"], places["agent"], seen, lr=1e-3, seed=0)
    assert told["pairs"] == 3 * 32
    assert told["wall"] > 0
