"""The value head: what return to expect from here on, read off the trunk that acts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ValueHead(nn.Module):
    """A linear layer on the agent's features times a scale: `V(o_t, o_{t-1}, ...)`.

    It starts at 0 everywhere: no chance is spent on it, and the first advantages are those without a baseline. The
    scale is a unit of reward in which the layer's outputs are small numbers, whatever the rewards are: values of 100
    are then learnt in as many steps as values of 1. It follows the returns, as in PopArt (van Hasselt et al. 2016,
    arXiv 1602.07714), whose shift of the mean is left to the bias.

    Args:
        width: Of the features.

    Attributes:
        scale: In reward, `()`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Takes another scale, above 0; the values stay."""
        change = float(self.scale) / scale
        self.weight.mul_(change)
        self.bias.mul_(change)
        self.scale.fill_(scale)

    def forward(self, features: Tensor) -> Tensor:
        """Features `(..., width)` to values `(...)`, float32 in every precision."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight.float(), self.bias.float()).squeeze(-1) * self.scale
