"""The value head: what return to expect from here on, read off the trunk that acts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ValueHead(nn.Module):
    """A linear layer on the agent's features: `V(o_t, o_{t-1}, ...)`.

    It starts at 0 everywhere: no chance is spent on it, and the first advantages are those without a baseline.

    Args:
        width: Of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Features `(..., width)` to values `(...)`, float32 in every precision."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight.float(), self.bias.float()).squeeze(-1)
