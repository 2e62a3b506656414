"""The trunk that agents and reward models share: encoders for each frame, then a causal transformer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_align.errors import UserError
from lit_align.models.config import BackboneConfig
from lit_align.models.room import check_room
from lit_align.models.transformer import KVCache, Transformer
from lit_align.models.vector import VectorEncoder
from lit_align.models.vision import make_encoder


class Backbone(nn.Module):
    """Observations to features. A frame's embedding is that of its pixels plus that of its vector.

    Args:
        config: The architecture.

    Attributes:
        checkpointing: Keep the inputs of the vision encoder and of each layer only for the backward pass, and compute
            the rest again: less memory for about a third more time (Chen et al. 2016, arXiv 1604.06174).

    Raises:
        ValueError: The config has fields that do not fit, or the network would not fit in this machine's memory.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        config.check()
        # Its own: an encoder may fill in what it fetched, and the caller's must not change.
        self.config = config = replace(config)
        self.checkpointing = False
        check_room(lambda: _sized(config), f"a backbone of width {config.width} and {config.layers} layers")
        self.vision = make_encoder(config) if config.image_size else None
        self.vector = VectorEncoder(config) if config.vector_size else None
        self.transformer = Transformer(config)

    def embed(self, frames: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Observations of single frames to embeddings `(N, width)`.

        Args:
            frames: `(N, H, W, 3)`, uint8; H and W are 0 where there are no pixels.
            vectors: `(N, V)`, float32; None where V is 0.
        """
        parts: list[Tensor] = []
        if self.vision is not None:
            again = self.checkpointing and torch.is_grad_enabled()
            parts.append(checkpoint(self.vision, frames, use_reentrant=False) if again else self.vision(frames))
        if self.vector is not None:
            assert vectors is not None
            parts.append(self.vector(vectors))
        return sum(parts[1:], parts[0])

    def forward(self, frames: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Observations of whole sequences to features `(B, T, width)`.

        Sequences are padded on the right: nothing that comes later changes what was before.

        Args:
            frames: `(B, T, H, W, 3)`, uint8; H and W are 0 where there are no pixels.
            vectors: `(B, T, V)`, float32; None where V is 0.
        """
        check_observations(self.config, frames, vectors)
        flat = None if vectors is None else vectors.flatten(0, 1)
        embeddings = self.embed(frames.flatten(0, 1), flat).view(*frames.shape[:2], -1)
        out: Tensor = self.transformer(embeddings, self.checkpointing)
        return out

    def step(self, frames: Tensor, cache: KVCache, vectors: Tensor | None = None) -> Tensor:
        """The next observation of each world to features `(B, width)`; moves the cache on.

        Args:
            frames: `(B, H, W, 3)`, uint8.
            cache: What the worlds saw before.
            vectors: `(B, V)`, float32; None where V is 0.
        """
        return self.transformer.step(self.embed(frames, vectors), cache)

    def new_cache(self, worlds: int) -> KVCache:
        """An empty cache for `worlds` worlds, on this module's device."""
        weight = self.transformer.norm.weight
        assert isinstance(weight, Tensor)
        return KVCache(self.config, worlds, weight.device, weight.dtype)


def _sized(config: BackboneConfig) -> nn.Module:
    """What takes the memory; a pretrained encoder, whose size is not the config's to say, is left out."""
    parts: list[nn.Module] = [Transformer(config)]
    if config.image_size and config.encoder != "pretrained":
        parts.append(make_encoder(config))
    if config.vector_size:
        parts.append(VectorEncoder(config))
    return nn.ModuleList(parts)


def check_observations(config: BackboneConfig, frames: Tensor, vectors: Tensor | None) -> None:
    """Raises ValueError unless frames `(..., S, S, 3)`, uint8, and vectors `(..., V)` are of the config's sizes."""
    size = config.image_size
    if frames.dtype != torch.uint8 or frames.shape[-3:] != (size, size, 3):
        raise UserError(
            f"frames are {frames.dtype} of shape {tuple(frames.shape)}; "
            f"expected uint8 of shape (..., {size}, {size}, 3)"
        )
    shape = frames.shape[:-3]
    found = (*shape, 0) if vectors is None else tuple(vectors.shape)
    if found != (*shape, config.vector_size):
        raise UserError(f"vectors are of shape {found}; expected {(*shape, config.vector_size)}")
