"""What an update of a policy is made of: the clipped surrogate, the value error, the KL controller, and their means."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

GAP = "policy/log_prob_gap"


def surrogate(change: Tensor, advantages: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """What PPO maximises at each step (Schulman et al. 2017, arXiv 1707.06347, equation 7), and its ratio, `(B, T)`.

    Args:
        change: log pi(a) - log pi_played(a) `(B, T)`.
        advantages: `(B, T)`.
        clip: Ratios are clipped to [1 - clip, 1 + clip]; None for no clipping.
    """
    ratio = change.exp()
    gain = ratio * advantages
    if clip is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return gain, ratio


def value_error(values: Tensor, before: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Squared error of values, all `(B, T)`.

    Args:
        values: Of the network as it is.
        before: Of the network before the iteration's updates.
        returns: What they should be.
        clip: A value that has moved further than this from `before` is counted as if it had stopped there, if that
            makes the error larger (as PPO's first implementation did); None for no clipping.
    """
    error = (values - returns).square()
    if clip is not None:
        stopped = before + (values - before).clamp(-clip, clip)
        error = torch.maximum(error, (stopped - returns).square())
    return error


def adapted(coefficient: float, measured: float, target: float) -> float:
    """The next coefficient of a KL penalty that steers the KL to a target.

    A proportional controller (Ziegler et al. 2019, arXiv 1909.08593, section 2.2):
    `coefficient * (1 + 0.1 * clip(measured / target - 1, -0.2, 0.2))`.
    """
    return coefficient * (1 + 0.1 * min(max(measured / target - 1, -0.2), 0.2))


class UpdateMeans(Metric):
    """Means over the steps of an iteration's updates, over all processes, and the largest gap.

    One metric for all of them: a small network's step is not longer than the bookkeeping of a few.

    Args:
        names: Of what is averaged, in the order of `update`.
    """

    full_state_update = False

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.sums: Tensor
        self.gap: Tensor
        self.add_state("sums", torch.zeros(len(names) + 1), dist_reduce_fx="sum")
        self.add_state("gap", torch.zeros(()), dist_reduce_fx="max")

    def update(self, values: list[Tensor], mask: Tensor, gap: Tensor | None = None) -> None:
        """Takes in a minibatch.

        Args:
            values: `(B, T)` for each name.
            mask: Steps that count `(B, T)`, bool.
            gap: Largest difference between log-probabilities of play and of training.
        """
        weight = mask.to(torch.float32)
        self.sums += torch.stack([*(value.detach() * weight for value in values), weight]).sum((1, 2))
        if gap is not None:
            self.gap = torch.maximum(self.gap, gap)

    def compute(self) -> dict[str, Tensor]:
        """Each mean by its name, and the gap."""
        means = self.sums[:-1] / self.sums[-1].clamp(min=1)
        return {**dict(zip(self.names, means, strict=True)), GAP: self.gap}
