"""Optimiser and learning-rate schedule, the same for every stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass
class OptimizerConfig:
    """AdamW with weight decay on matrices only, linear warm-up, then a schedule.

    Attributes:
        lr: Peak learning rate.
        weight_decay: On weights of two dimensions or more; biases and norms have none.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        warmup_steps: Optimizer steps of linear warm-up.
        schedule: After the warm-up: `constant`, `linear` to zero, or `cosine` to a tenth of the peak.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    warmup_steps: int = 50
    schedule: Literal["constant", "linear", "cosine"] = "cosine"

    def scale(self, step: int, total: float) -> float:
        """The learning rate at an optimizer step, over the peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant" or not math.isfinite(total):
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1.0, total - self.warmup_steps))
        return 1.0 - done if self.schedule == "linear" else 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    def build(self, module: nn.Module, total: float) -> dict[str, Any]:
        """What `LightningModule.configure_optimizers` returns, for the parameters of `module` that train.

        Args:
            module: Whose parameters.
            total: Optimizer steps in the whole run; infinite when unknown.
        """
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], self.lr, (self.beta1, self.beta2))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.scale(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
