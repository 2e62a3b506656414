"""The trunk that agents and reward models share: an encoder for each frame, then a causal transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_align.errors import UserError
from lit_align.models.config import BackboneConfig
from lit_align.models.transformer import KVCache, Transformer
from lit_align.models.vision import ConvEncoder


class Backbone(nn.Module):
    """Frames to features.

    Args:
        config: The architecture.

    Raises:
        ValueError: The config has fields that do not fit.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.vision = ConvEncoder(config)
        self.transformer = Transformer(config)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames `(B, T, H, W, 3)`, uint8, of whole sequences to features `(B, T, width)`.

        Sequences are padded on the right: nothing that comes later changes what was before.
        """
        check_frames(frames, self.config.image_size)
        out: Tensor = self.transformer(self.vision(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]))
        return out

    def step(self, frames: Tensor, cache: KVCache) -> Tensor:
        """The next frame of each world `(B, H, W, 3)`, uint8, to features `(B, width)`; moves the cache on."""
        return self.transformer.step(self.vision(frames), cache)

    def new_cache(self, worlds: int) -> KVCache:
        """An empty cache for `worlds` worlds, on this module's device."""
        weight = self.transformer.norm.weight
        assert isinstance(weight, Tensor)
        return KVCache(self.config, worlds, weight.device, weight.dtype)


def check_frames(frames: Tensor, size: int) -> None:
    """Raises ValueError unless `frames` is uint8 `(..., size, size, 3)`."""
    if frames.dtype != torch.uint8 or frames.shape[-3:] != (size, size, 3):
        raise UserError(
            f"frames are {frames.dtype} of shape {tuple(frames.shape)}; "
            f"expected uint8 of shape (..., {size}, {size}, 3)"
        )
