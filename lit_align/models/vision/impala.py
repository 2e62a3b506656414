"""The residual encoder of IMPALA (Espeholt et al. 2018, arXiv 1802.01561), as VPT and many game agents use it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lit_align.models.config import BackboneConfig
from lit_align.models.vision.frames import to_planes


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input goes on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same shape."""
        y: Tensor = self.second(F.relu(self.first(F.relu(x))))
        return x + y


class ImpalaEncoder(nn.Module):
    """Three stacks of convolution, max-pooling and residual blocks, then a projection.

    The stacks have `channels`, 2 and 2 times as many channels (16, 32, 32 in the paper) and `blocks` residual blocks
    each (2 in the paper; 0 leaves none). Every stack halves the image.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        widths = [config.channels, 2 * config.channels, 2 * config.channels]
        layers: list[nn.Module] = []
        before = 3
        for channels in widths:
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            layers += [ResidualBlock(channels) for _ in range(config.blocks)]
            before = channels
        self.body = nn.Sequential(*layers, nn.ReLU())
        features = before * (config.image_size // 8) ** 2
        self.norm = nn.LayerNorm(features)
        self.project = nn.Linear(features, config.width)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(N, H, W, 3)`, uint8, to embeddings `(N, width)`."""
        y: Tensor = self.project(self.norm(self.body(to_planes(frames, self.norm.weight)).flatten(1)))
        return y
