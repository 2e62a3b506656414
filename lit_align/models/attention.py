"""Causal attention over the last `context` frames, with what each device is quickest at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKS = 8
"""From this many contexts on a sequence is cut into blocks: measured on a CPU, at 8 contexts of 32 both ways cost the
same, at 32 contexts blocks are nearly five times as quick."""


def window_mask(steps: int, context: int, device: torch.device) -> Tensor | None:
    """The mask that `window_attention` wants for sequences of `steps` frames; made once for all layers.

    None where causality alone does it; `(T, T)` for short sequences; `(blocks, context, 2 * context)` for long ones,
    where a block of `context` queries sees its own keys and the block before it, which is all that the window reaches.
    """
    if steps <= context:
        return None
    if steps < BLOCKS * context:
        t = torch.arange(steps, device=device)
        age = t[:, None] - t[None, :]
        return (age >= 0) & (age < context)
    blocks = -(-steps // context)
    age = torch.arange(context, device=device)[:, None] + context - torch.arange(2 * context, device=device)[None, :]
    mask = ((age >= 0) & (age < context)).repeat(blocks, 1, 1)
    mask[0, :, :context] = False  # nothing comes before the first block
    return mask


def window_attention(q: Tensor, k: Tensor, v: Tensor, context: int, mask: Tensor | None) -> Tensor:
    """Attention of whole sequences: frame t attends to frames t - context + 1 to t.

    Args:
        q: Queries `(B, heads, T, head_width)`, rotated.
        k: Keys, the same shape, rotated.
        v: Values, the same shape.
        context: The window in frames.
        mask: What `window_mask` made for T.

    Returns:
        `(B, heads, T, head_width)`.
    """
    if mask is None or mask.ndim == 2:
        return attend(q, k, v, mask)
    b, heads, steps, width = q.shape
    blocks = len(mask)
    q, k, v = (F.pad(x, (0, 0, 0, blocks * context - steps)) for x in (q, k, v))

    def with_before(x: Tensor) -> Tensor:
        """Each block behind the one before it: `(B, heads * blocks, 2 * context, head_width)`."""
        x = F.pad(x, (0, 0, context, 0)).view(b, heads, blocks + 1, context, width)
        return torch.cat((x[:, :, :-1], x[:, :, 1:]), dim=3).flatten(1, 2)

    queries = q.reshape(b, heads * blocks, context, width)
    y = attend(queries, with_before(k), with_before(v), mask.repeat(heads, 1, 1)[None])
    return y.view(b, heads, blocks * context, width)[:, :, :steps]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention; without a mask it is causal, which lets a GPU take its flash kernel.

    A mask holds true where attention goes, or numbers that are added to the scores.
    On a CPU it runs in float32 whatever the rest runs in: the backward pass in bfloat16 took three times as long.
    """
    if q.device.type != "cpu":
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    with torch.autocast("cpu", enabled=False):
        y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=mask is None)
        return y.to(q.dtype)
