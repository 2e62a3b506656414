"""Counting outcomes, alone and over processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_align.evaluation.intervals import wilson
from lit_align.evaluation.outcomes import OutcomeMetric


def test_counts_rates_and_reasons() -> None:
    metric = OutcomeMetric()
    metric.update(["left", "none", "left"], ["reached", "fell", "reached"])
    metric.update(["right"], ["reached"])
    assert metric.tally() == {"left": 2, "middle": 0, "right": 1, "none": 1}
    assert metric.compute() == {"left": 0.5, "middle": 0.0, "right": 0.25, "none": 0.25}
    assert metric.reason_counts() == {"reached": 3, "fell": 1}
    assert metric.intervals()["left"] == wilson(2, 4)
    metric.reset()
    assert metric.total() == 0
    assert metric.reason_counts() == {}


def test_unknown_outcome_names_itself_and_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'centre'.*'middle'"):
        OutcomeMetric().update(["centre"])


def test_one_reason_for_each_outcome() -> None:
    with pytest.raises(ValueError, match="1 reasons for 2 outcomes"):
        OutcomeMetric().update(["left", "none"], ["fell"])


def _count(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metric = OutcomeMetric()
    metric.update(
        ["left"] if rank == 0 else ["right", "none", "none"], ["reached"] if rank == 0 else ["reached", "fell", "ü"]
    )
    rates = metric.compute()
    with metric.sync_context(should_sync=True):
        torch.save((rates, metric.tally(), metric.reason_counts()), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_add_up(tmp_path: Path) -> None:
    """Two processes with different numbers of episodes and reasons: both know the sum."""
    mp.spawn(_count, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        rates, tally, reasons = torch.load(tmp_path / f"{rank}.pt")
        assert rates == {"left": 0.25, "middle": 0.0, "right": 0.25, "none": 0.5}
        assert tally == {"left": 1, "middle": 0, "right": 1, "none": 2}
        assert reasons == {"reached": 2, "fell": 1, "ü": 1}
