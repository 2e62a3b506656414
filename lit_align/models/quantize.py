"""Weights of 8 bits, for acting on a CPU: a step with the KV cache is bound by reading the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale for each output; activations stay bfloat16.

    The product is PyTorch's own kernel for 8-bit weights; the rounding is to the nearest, symmetric about 0.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        # Rounded first, so that the weights are divided by what they will be multiplied by.
        scale = (weight.abs().amax(1).clamp_min(1e-12) / 127).to(torch.bfloat16)
        self.register_buffer("weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(torch.bfloat16))
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)`, bfloat16, to `(..., out)`."""
        flat = x.reshape(-1, x.shape[-1])
        y: Tensor = torch._weight_int8pack_mm(flat, self.weight, self.scale).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def quantize_linears(module: nn.Module) -> None:
    """Puts an `Int8Linear` in the place of every linear layer inside `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            quantize_linears(child)


def is_quantized(module: nn.Module) -> bool:
    """Whether `quantize_linears` was here: what is in 8 bits is for acting only."""
    return any(tensor.dtype == torch.int8 for tensor in module.buffers())
