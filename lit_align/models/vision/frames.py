"""What every encoder does to frames first."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(frames: Tensor, weight: Tensor) -> torch.dtype:
    """The type that convolutions and products run in: autocast's where it is on, else the weights' own."""
    device = frames.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def to_planes(frames: Tensor, weight: Tensor) -> Tensor:
    """Frames `(N, H, W, 3)`, uint8, to planes `(N, 3, H, W)` in [-1, 1].

    A permuted (N, H, W, C) tensor is channels-last in memory already, the layout that convolutions like best.
    """
    planes = frames.permute(0, 3, 1, 2).to(compute_dtype(frames, weight))
    # In place: memory that is new to a process costs a CPU as much as the sums. Every difference is exact in 16 bits.
    return planes.sub_(127.5).mul_(1 / 127.5)
