"""Low-rank adapters: train a small correction of a matrix, not the matrix (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRALinear(nn.Linear):
    """A frozen linear layer plus `alpha / rank * B A`, of which only A and B train; B starts at 0.

    Args:
        linear: The layer to adapt; its weights are shared, not copied.
        rank: Rows of A.
        alpha: Scale of the correction, over `rank`.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """An ordinary layer that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight + self.scale * self.lora_b @ self.lora_a)
        linear.bias = self.bias
        return linear


def add_lora(module: nn.Module, rank: int, alpha: float) -> None:
    """Adapts every linear layer inside `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and not isinstance(child, LoRALinear):
            setattr(module, name, LoRALinear(child, rank, alpha))
        else:
            add_lora(child, rank, alpha)


def merge_lora(module: nn.Module) -> None:
    """Takes the adapters of `module` into the matrices that they correct: the layers are ordinary ones again."""
    for name, child in module.named_children():
        if isinstance(child, LoRALinear):
            setattr(module, name, child.merged())
        else:
            merge_lora(child)
