"""Vector observations to embeddings, alone or beside pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_align.models.config import BackboneConfig


class VectorEncoder(nn.Module):
    """A small MLP over numbers of any scale.

    Numbers are first squashed to sign(x) log(1 + |x|), so that a coordinate in the thousands and a velocity below one
    both arrive at a size that a network can use (Hafner et al. 2023, arXiv 2301.04104, call it symlog).
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(config.vector_size, config.width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.width, config.width),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors `(N, V)`, float32, to embeddings `(N, width)`."""
        first = self.body[0].weight
        assert isinstance(first, Tensor)
        squashed = torch.sign(vectors) * torch.log1p(vectors.abs())
        y: Tensor = self.body(squashed.to(first.dtype))
        return y
