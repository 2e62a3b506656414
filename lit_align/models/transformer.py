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
        pairs: `(layers, 2, B, heads, context, head_width)`, keys and values; slot `t % context` holds frame `t`, its
            key rotated to its absolute position.
        steps: Frames seen by each world since its reset `(B,)`, int64.
        rows: The worlds' numbers `(B,)`.
        ring: The slots' numbers `(context,)`.
    """

    def __init__(self, config: BackboneConfig, worlds: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.layers, 2, worlds, config.heads, config.context, config.width // config.heads)
        self.pairs = torch.zeros(shape, device=device, dtype=dtype)
        self.steps = torch.zeros(worlds, device=device, dtype=torch.int64)
        self.rows = torch.arange(worlds, device=device)
        self.ring = torch.arange(config.context, device=device)

    def to(self, device: torch.device) -> None:
        """Moves it to another device, if it is not there."""
        if self.pairs.device != device:
            for name in ("pairs", "steps", "rows", "ring"):
                setattr(self, name, getattr(self, name).to(device))

    def reset(self, worlds: Tensor | list[int] | None = None) -> None:
        """Forgets the past of some worlds (all by default).

        Nothing is copied: slots that were not written since are masked out.
        """
        if worlds is None:
            self.steps.zero_()
        else:
            self.steps[worlds] = 0


def rotary(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines `(..., head_width)` of rotary positions, as `rotate` wants them.

    Angles are in float64, exact for very long episodes.
    """
    frequencies = base ** (-torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float64) / head_width)
    angles = positions.to(torch.float64)[..., None] * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of the last axis of `x`, a and b, to `a cos - b sin` and `a sin + b cos`."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))


def sees_one_frame(config: BackboneConfig) -> bool:
    """Whether attention has nothing to choose from, so that no keys, positions or memory are needed.

    Not where queries and keys are normalised: the norms' weights would be without a gradient, which DDP does not allow.
    """
    return config.context == 1 and not config.qk_norm


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
        self.q_norm = nn.RMSNorm(head_width, eps=1e-6) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(head_width, eps=1e-6) if config.qk_norm else None

    def split(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, T, width)` to queries and keys, rotated, `(2, B, heads, T, head_width)`, and values without the 2.

        `cos` and `sin` broadcast to `(B, T, 2, heads, head_width)`.
        """
        b, t, width = x.shape
        # Split before anything else: the gradient of a split is one concatenation.
        both, values = self.qkv(x).split((2 * width, width), dim=-1)
        pairs = both.view(b, t, 2, self.heads, -1)
        if self.q_norm is not None and self.k_norm is not None:
            pairs = torch.stack((self.q_norm(pairs[:, :, 0]), self.k_norm(pairs[:, :, 1])), dim=2)
        rotated = rotate(pairs, cos, sin).permute(2, 0, 3, 1, 4)
        return rotated, values.view(b, t, self.heads, -1).transpose(1, 2)

    def alone(self, x: Tensor) -> Tensor:
        """What attention makes of frames `(B, T, width)` that see themselves alone: their one value weighs 1."""
        out: Tensor = self.out(self.qkv(x)[..., 2 * x.shape[-1] :])
        return out

    def merge(self, y: Tensor) -> Tensor:
        """`(B, heads, T, head_width)` to `(B, T, width)`, projected."""
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """Pre-norm transformer layer: attention, then MLP."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        hidden = int(config.mlp_ratio * config.width)
        self.context, self.alone = config.context, sees_one_frame(config)
        self.norm1 = make_norm(config)
        self.attention = Attention(config)
        self.norm2 = make_norm(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, config.width)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Whole sequences `(B, T, width)`; `mask` is what `window_mask` made for their length."""
        if self.alone:
            return self.after(x + self.attention.alone(self.norm1(x)))
        (q, k), v = self.attention.split(self.norm1(x), cos, sin)
        return self.after(x + self.attention.merge(window_attention(q, k, v, self.context, mask)))

    def after(self, x: Tensor) -> Tensor:
        """What follows attention `(B, T, width)`."""
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def step(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, pairs: Tensor, rows: Tensor, slots: Tensor
    ) -> Tensor:
        """One frame of each world `(B, 1, width)`.

        Writes this layer's keys and values, `pairs` `(2, B, heads, context, head_width)`, at `slots` `(B,)`.
        """
        (q, k), v = self.attention.split(self.norm1(x), cos, sin)
        pairs[:, rows, :, slots] = torch.stack((k[:, :, 0], v[:, :, 0]), dim=1).to(pairs.dtype)
        keys, values = pairs.to(q.dtype)
        return self.after(x + self.attention.merge(attend(q, keys, values, mask)))


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
        if sees_one_frame(self.config):
            mask, cos, sin = None, x, x  # not looked at
        else:
            t = torch.arange(x.shape[1], device=x.device)
            mask = window_mask(x.shape[1], self.config.context, x.device)
            cos, sin = rotary(t[:, None, None], self.config.width // self.config.heads, self.config.rope_base)
        for layer in self.layers:
            if checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, mask, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask)
        out: Tensor = self.norm(x)
        return out

    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Embeddings `(B, width)` of each world's next frame to outputs `(B, width)`; advances the cache in place."""
        if sees_one_frame(self.config):
            cache.steps += 1
            seen: Tensor = self(x[:, None])[:, 0]
            return seen
        steps = cache.steps
        slots = steps % self.config.context
        positions = steps[:, None, None, None]
        cos, sin = rotary(positions, self.config.width // self.config.heads, self.config.rope_base)
        # Once for all layers: 0 or minus infinity, what attention would make of true and false in each.
        ahead = (cache.ring[None] > steps[:, None])[:, None, None]
        # Once the ring is full every slot is in the window.
        mask = torch.zeros(ahead.shape, device=x.device).masked_fill_(ahead, -math.inf)
        x = x[:, None]
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            x = layer.step(x, cos, sin, mask, cache.pairs[i], cache.rows, slots)
        cache.steps += 1
        out: Tensor = self.norm(x[:, 0])
        return out
