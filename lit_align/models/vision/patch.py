"""An encoder of matrix products alone: the quickest to train on a CPU."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from lit_align.models.config import BackboneConfig
from lit_align.models.vision.frames import compute_dtype

_PATCH = 8


class PatchEncoder(nn.Module):
    """Patches of 8x8 pixels, then merges of 2x2 neighbours down to a grid of 2x2, flattened and projected.

    Patches and merges do not overlap, so that each is one matrix product with no gather before it (the patches of
    Dosovitskiy et al. 2021, arXiv 2010.11929, and the merging of Liu et al. 2021, arXiv 2103.14030). A patch has
    `2 * channels` features, as many as `ConvEncoder` has at that resolution; they double at every merge.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        merges = int(math.log2(config.image_size // (2 * _PATCH)))
        widths = [2 * config.channels * 2**i for i in range(merges + 1)]
        self.stem = nn.Linear(3 * _PATCH * _PATCH, widths[0])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[:-1])
        self.merges = nn.ModuleList(nn.Linear(4 * width, 2 * width) for width in widths[:-1])
        self.norm = nn.LayerNorm(4 * widths[-1])
        self.project = nn.Linear(4 * widths[-1], config.width)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(N, H, W, 3)`, uint8, to embeddings `(N, width)`."""
        weight, bias = self.stem.weight, self.stem.bias
        pixels = merge(frames, _PATCH).to(compute_dtype(frames, weight))
        # Pixels in [-1, 1] by changing the weights, not the pixels: W (x / 127.5 - 1) + b. 0 to 255 are exact in 8 bits
        # of mantissa.
        x = F.relu(F.linear(pixels, weight / 127.5, bias - weight.sum(1)))
        for norm, linear in zip(self.norms, self.merges, strict=True):
            x = F.relu(linear(merge(norm(x), 2)))
        y: Tensor = self.project(self.norm(x.flatten(1)))
        return y


def merge(x: Tensor, side: int) -> Tensor:
    """`(N, H, W, C)` to `(N, H / side, W / side, side * side * C)`: neighbours become one."""
    n, h, w, c = x.shape
    return x.reshape(n, h // side, side, w // side, side * c).transpose(2, 3).reshape(n, h // side, w // side, -1)
