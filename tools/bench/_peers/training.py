"""One optimizer step of a block of transformer layers: the same loop for every racer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


class Training:
    """Forward, backward and AdamW on a fixed batch of embeddings and a fixed target.

    Args:
        network: Embeddings `(B, T, width)` to outputs of the same shape.
        parameters: What is trained.
        shape: `(B, T, width)`.
        steps: Optimizer steps in one run.
        seed: Of the batch, the same for all racers.
        bf16: Whether the forward pass runs under bfloat16 autocast.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        parameters: Iterable[torch.nn.Parameter],
        shape: tuple[int, int, int],
        steps: int,
        seed: int,
        bf16: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(shape, generator=generator)
        self.target = torch.randn(shape, generator=generator)
        self.network, self.steps, self.bf16 = network, steps, bf16
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def __call__(self) -> None:
        """One run."""
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = F.mse_loss(self.network(self.x).float(), self.target)
            loss.backward()
            self.optimizer.step()
