"""Calibration and accuracy by gap: against brute force, torchmetrics, and two processes against one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import BinaryCalibrationError

from lit_align.evaluation.calibration import CalibrationError, GroupAccuracy, gaps_of

verdicts = st.lists(st.tuples(st.floats(0.5, 1, width=32), st.booleans()), min_size=1, max_size=80)


def by_hand(found: list[tuple[float, bool]], bins: int) -> float:
    """The definition, a bin at a time."""
    total = 0.0
    for b in range(bins):
        low, high = np.float32(b / bins), np.float32((b + 1) / bins)
        inside = [(c, r) for c, r in found if low <= np.float32(c) < high or (b == bins - 1 and c == 1)]
        if inside:
            confidence, accuracy = np.mean([c for c, _ in inside]), np.mean([r for _, r in inside])
            total += len(inside) / len(found) * abs(accuracy - confidence)
    return float(total)


def counted(found: list[tuple[float, bool]], bins: int = 15) -> CalibrationError:
    metric = CalibrationError(bins)
    metric.update(torch.tensor([c for c, _ in found]), torch.tensor([r for _, r in found]))
    return metric


@settings(max_examples=100, deadline=None)
@given(verdicts, st.sampled_from([1, 4, 15]))
def test_the_calibration_error_is_its_definition(found, bins):
    assert float(counted(found, bins).compute()) == pytest.approx(by_hand(found, bins), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(verdicts)
def test_it_is_that_of_torchmetrics(found):
    found = [(min(c, 0.9999), r) for c, r in found]  # theirs has a bin more, for 1 itself
    theirs = BinaryCalibrationError(n_bins=15)
    theirs.update(torch.tensor([c for c, _ in found]), torch.tensor([int(r) for _, r in found]))
    assert float(counted(found).compute()) == pytest.approx(float(theirs.compute()), abs=1e-6)


def test_of_sure_verdicts_it_is_how_often_they_are_wrong():
    sure = [(1.0, True)] * 7 + [(1.0, False)] * 3
    assert float(counted(sure).compute()) == pytest.approx(0.3)
    honest = [(0.7, True)] * 7 + [(0.7, False)] * 3
    assert float(counted(honest).compute()) == pytest.approx(0, abs=1e-6)


def test_accuracy_in_groups_is_a_share_in_each():
    metric = GroupAccuracy(4)
    metric.update(torch.tensor([True, False, True]), torch.tensor([0, 0, 2]))
    metric.update(torch.tensor([True, True]), torch.tensor([0, 2]))
    found = metric.compute().tolist()
    assert found[0] == pytest.approx(2 / 3)
    assert found[2] == 1
    assert np.isnan([found[1], found[3]]).all()


def test_ranks_are_groups_of_their_own_whatever_the_sign():
    gaps = gaps_of(np.array([2, -1, 1, 3, -3, 1], np.float32))
    assert gaps.names == ["1", "2", "3"]
    assert gaps.group.tolist() == [1, 0, 0, 2, 2, 0]
    assert gaps.spans == [(1, 1), (2, 2), (3, 3)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.floats(0.01, 9), st.sampled_from([0.5, 2.5])), min_size=1, max_size=60))
def test_other_margins_are_cut_into_quarters(margins):
    margins = [*margins, 0.25]  # one that is no whole number
    gaps = gaps_of(np.array(margins))
    assert set(gaps.names) <= {"1", "2", "3", "4"}
    assert set(gaps.group.tolist()) == set(range(len(gaps.names)))
    for g, (low, high) in enumerate(gaps.spans):
        inside = [m for m, place in zip(margins, gaps.group, strict=True) if place == g]
        assert (min(inside), max(inside)) == (low, high)
    for (_, high), (low, _) in zip(gaps.spans, gaps.spans[1:], strict=False):
        assert high < low  # the near ones first, equal ones together
    if len(set(margins)) == len(margins) >= 8:
        sizes = np.bincount(gaps.group)
        assert len(sizes) == 4
        assert sizes.max() - sizes.min() <= 1


def test_many_whole_margins_are_cut_into_quarters_too():
    gaps = gaps_of(np.arange(1, 101))
    assert gaps.names == ["1", "2", "3", "4"]
    assert np.bincount(gaps.group).tolist() == [25, 25, 25, 25]


def some(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + 0.5 * torch.rand(count, generator=generator)
    return confidence, torch.rand(count, generator=generator) < 0.7, torch.randint(0, 3, (count,), generator=generator)


def _count(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = slice(0, 30) if rank == 0 else slice(30, None)
    confidence, right, group = (values[part] for values in some(100))
    error, accuracy = CalibrationError(), GroupAccuracy(3)
    error.update(confidence, right)
    accuracy.update(right, group)
    torch.save((error.compute(), accuracy.compute()), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_add_up(tmp_path: Path) -> None:
    """Two processes with different numbers of verdicts: both know what one would."""
    mp.spawn(_count, args=(str(tmp_path),), nprocs=2)
    confidence, right, group = some(100)
    share = [float(right[group == g].float().mean()) for g in range(3)]
    whole = by_hand(list(zip(confidence.tolist(), right.tolist(), strict=True)), 15)
    for rank in range(2):
        error, accuracy = torch.load(tmp_path / f"{rank}.pt")
        assert float(error) == pytest.approx(whole, abs=1e-6)
        assert accuracy.tolist() == pytest.approx(share)
