"""A ConvNeXt-style encoder, shaped like the one that the paper's lab released."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lit_align.models.config import BackboneConfig
from lit_align.models.vision.frames import to_planes


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then a pointwise MLP, with a residual connection (Liu et al. 2022, arXiv 2201.03545)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.reduce = nn.Conv2d(4 * channels, channels, 1)
        self.activation = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same shape."""
        y: Tensor = self.reduce(self.activation(self.expand(self.norm(self.depthwise(x)))))
        return x + y


class ConvEncoder(nn.Module):
    """ConvNeXt-style encoder: a stem of stride 4, then blocks and halvings down to 2x2, flattened and projected.

    The shape follows the encoder that the paper's lab released (see `docs/recipe.md`); 16 channels at 128x128
    give 2 x 2 x 256 = 1024 features.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        halvings = int(math.log2(config.image_size // 4)) - 1
        channels = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 8, stride=4, padding=2), nn.GELU(approximate="tanh")]
        for _ in range(halvings):
            layers += [ConvNeXtBlock(channels) for _ in range(config.blocks)]
            layers += [nn.GroupNorm(1, channels), nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)]
            if not config.blocks:
                layers.append(nn.GELU(approximate="tanh"))
            channels *= 2
        self.body = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(4 * channels)
        self.project = nn.Linear(4 * channels, config.width)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(N, H, W, 3)`, uint8, to embeddings `(N, width)`."""
        x = to_planes(frames, self.norm.weight)
        y: Tensor = self.project(self.norm(self.body(x).flatten(1)))
        return y
