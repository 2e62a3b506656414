"""A GPT-style causal transformer with a sliding attention window and a ring KV cache.

Training sees whole sequences (`forward`), acting sees one frame at a time (`step`); both give the same outputs, because
attention reaches back `context` frames in both and positions are relative (rotary, Su et al. 2021, arXiv 2104.09864).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_align.models.attention import attend, window_attention, window_mask
from lit_align.models.config import BackboneConfig


class KVCache:
    """Keys and values of the last `context` frames of each world, as a ring.

    Attributes:
        keys: `(layers, B, heads, context, head_width)`; slot `t % context` holds frame `t`, rotated to its
            absolute position.
        values: The same shape.
        steps: Frames seen by each world since its reset `(B,)`, int64.
    """

    def __init__(self, config: BackboneConfig, worlds: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.layers, worlds, config.heads, config.context, config.width // config.heads)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.steps = torch.zeros(worlds, device=device, dtype=torch.int64)

    def reset(self, worlds: Tensor | list[int] | None = None) -> None:
        """Forgets the past of some worlds (all by default).

        Nothing is copied: slots that were not written since are masked out.
        """
        if worlds is None:
            self.steps.zero_()
        else:
            self.steps[worlds] = 0


def rotary(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(..., head_width / 2)` of rotary positions.

    Angles are in float64, exact for very long episodes.
    """
    frequencies = base ** (-torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float64) / head_width)
    angles = positions.to(torch.float64)[..., None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of the last axis of `x` by the given angles."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def make_norm(config: BackboneConfig) -> nn.Module:
    """The normalisation layer that the config names, over `width`."""
    return nn.LayerNorm(config.width) if config.norm == "layernorm" else nn.RMSNorm(config.width, eps=1e-6)


class Attention(nn.Module):
    """Multi-head causal self-attention over the last `context` frames."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        head_width = config.width // config.heads
        self.q_norm = nn.RMSNorm(head_width, eps=1e-6) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(head_width, eps=1e-6) if config.qk_norm else nn.Identity()

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(B, T, width)` to queries, keys and values, each `(B, heads, T, head_width)`."""
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def merge(self, y: Tensor) -> Tensor:
        """`(B, heads, T, head_width)` to `(B, T, width)`, projected."""
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """Pre-norm transformer layer: attention, then MLP."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        hidden = int(config.mlp_ratio * config.width)
        self.context = config.context
        self.norm1 = make_norm(config)
        self.attention = Attention(config)
        self.norm2 = make_norm(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, config.width)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Whole sequences `(B, T, width)`; `mask` is what `window_mask` made for their length."""
        q, k, v = self.attention.split(self.norm1(x))
        x = x + self.attention.merge(window_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, self.context, mask))
        return x + self.mlp(self.norm2(x))

    def step(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, keys: Tensor, values: Tensor, slots: Tensor
    ) -> Tensor:
        """One frame of each world `(B, 1, width)`.

        Writes this layer's `keys` and `values` `(B, heads, context, head_width)` at `slots` `(B,)`.
        """
        q, k, v = self.attention.split(self.norm1(x))
        rows = torch.arange(len(slots), device=x.device)
        keys[rows, :, slots] = rotate(k, cos, sin)[:, :, 0].to(keys.dtype)
        values[rows, :, slots] = v[:, :, 0].to(values.dtype)
        y = attend(rotate(q, cos, sin), keys.to(q.dtype), values.to(q.dtype), mask)
        x = x + self.attention.merge(y)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Layers over frame embeddings, with a final norm."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = make_norm(config)
        self.apply(self._init)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, checkpointing: bool = False) -> Tensor:
        """Embeddings `(B, T, width)` of whole sequences to outputs of the same shape.

        Frame t sees frames t - context + 1 to t. `checkpointing` computes each layer again in the backward pass
        instead of keeping its activations.
        """
        t = torch.arange(x.shape[1], device=x.device)
        mask = window_mask(x.shape[1], self.config.context, x.device)
        cos, sin = rotary(t, self.config.width // self.config.heads, self.config.rope_base)
        for layer in self.layers:
            if checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, mask, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask)
        out: Tensor = self.norm(x)
        return out

    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Embeddings `(B, width)` of each world's next frame to outputs `(B, width)`; advances the cache in place."""
        steps = cache.steps
        slots = steps % self.config.context
        cos, sin = rotary(steps, self.config.width // self.config.heads, self.config.rope_base)
        cos, sin = cos[:, None, None], sin[:, None, None]
        ring = torch.arange(self.config.context, device=x.device)
        mask = (ring[None] <= steps[:, None])[:, None, None]  # once the ring is full every slot is in the window
        x = x[:, None]
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x = layer.step(x, cos, sin, mask, cache.keys[i], cache.values[i], slots)
        cache.steps += 1
        out: Tensor = self.norm(x[:, 0])
        return out
