"""How far a reward model's verdicts can be trusted: calibration, and accuracy by the size of the gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

BINS = 15
GROUPS = 8
_ONE = 2**30
"""A confidence of 1 as a whole number: sums of these are exact in any order, on one process or many."""


class CalibrationError(Metric):
    """Expected calibration error: how far confidence is from accuracy, on average over verdicts.

    Verdicts fall into bins of equal width by confidence; each bin's accuracy is compared with its mean confidence (Guo
    et al. 2017, arXiv 1706.04599). The counts of all ranks add up.

    Args:
        bins: Number of bins over [0, 1].
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    confidence: Tensor
    right: Tensor
    count: Tensor

    def __init__(self, bins: int = BINS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("confidence", "right", "count"):
            self.add_state(name, default=torch.zeros(bins, dtype=torch.long), dist_reduce_fx="sum")
        self.bins = bins

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Counts verdicts.

        Args:
            confidence: How sure each is `(n,)`, in [0, 1].
            right: Whether it is right `(n,)`, bool.
        """
        edges = torch.linspace(0, 1, self.bins + 1, dtype=confidence.dtype, device=confidence.device)
        places = torch.bucketize(confidence, edges[1:-1], right=True)  # 1 itself is in the last bin
        self.confidence.index_add_(0, places, (confidence * _ONE).round().long())
        self.right.index_add_(0, places, right.long())
        self.count.index_add_(0, places, torch.ones_like(places))

    def compute(self) -> Tensor:
        """The error, in [0, 1]; not a number before the first verdict."""
        off = (self.right - self.confidence.double() / _ONE).abs().sum()
        return (off / self.count.sum()).float()


class GroupAccuracy(Metric):
    """Accuracy in each of a few groups; the counts of all ranks add up.

    Args:
        groups: Number of groups.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    right: Tensor
    count: Tensor

    def __init__(self, groups: int = GROUPS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("right", "count"):
            self.add_state(name, default=torch.zeros(groups, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, right: Tensor, group: Tensor) -> None:
        """Counts verdicts.

        Args:
            right: Whether each is right `(n,)`, bool.
            group: Its group `(n,)`, int64.
        """
        self.right.index_add_(0, group, right.long())
        self.count.index_add_(0, group, torch.ones_like(group))

    def compute(self) -> Tensor:
        """The accuracy in each group `(groups,)`, in [0, 1]; not a number where there is nothing."""
        return self.right / self.count


@dataclass(frozen=True)
class Gaps:
    """Comparisons in groups by how far apart their episodes are.

    Attributes:
        group: The group of each `(pairs,)`, int64.
        names: Of the groups: the gap itself, or the number of the quartile from 1, the nearest pairs.
        spans: The smallest and the largest gap of each.
    """

    group: NDArray[np.int64]
    names: list[str]
    spans: list[tuple[float, float]]


def gaps_of(margins: NDArray[np.floating[Any]]) -> Gaps:
    """Groups comparisons by the size of their margin `(pairs,)`, whatever its sign.

    A few whole numbers, such as ranks, are groups of their own. Others are cut into four groups of like size; equal
    margins stay together, so that there may be fewer.
    """
    sizes = np.abs(np.asarray(margins, np.float64))
    values, group = np.unique(sizes, return_inverse=True)
    names = [f"{value:.0f}" for value in values]
    if len(values) > GROUPS or (values != np.round(values)).any():
        quartile = np.searchsorted(np.quantile(sizes, [0.25, 0.5, 0.75]), sizes, side="left")
        present, group = np.unique(quartile, return_inverse=True)
        names = [str(q + 1) for q in present]
    parts = [sizes[group == g] for g in range(len(names))]
    return Gaps(group.astype(np.int64), names, [(float(part.min()), float(part.max())) for part in parts])
