"""Muon for the hidden matrices and AdamW for the rest, as the one optimizer that Lightning's automatic loop takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lit_align.errors import UserError


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon on the first group of parameters, torch's AdamW on the others.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix along its orthogonalised
    momentum (0.95, Nesterov). The step is scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv
    2502.16982), so learning rates and weight decay that suit AdamW suit it too. A matrix is orthogonalised as it is
    stored: `qkv` of a layer as one.

    All groups and all state are this optimizer's own, so schedules, checkpoints and `state_dict` see one optimizer.

    Args:
        hidden: The matrices for Muon.
        rest: AdamW's groups, with their weight decay.
        lr: Learning rate of both.
        weight_decay: Of the matrices.
        betas: AdamW's.
        fused: Whether AdamW runs as one kernel.

    Raises:
        UserError: This torch has no Muon, or there is nothing for it to do.
    """

    def __init__(
        self,
        hidden: list[nn.Parameter],
        rest: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        fused: bool,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"optimizer.name is muon; torch {torch.__version__} has no torch.optim.Muon, 2.9 and later do: "
                "upgrade torch, or set optimizer.name to adamw"
            )
        if not hidden:
            raise UserError(
                "optimizer.name is muon, which trains the matrices of transformer layers; found none that trains: "
                "set optimizer.name to adamw"
            )
        self.muon = torch.optim.Muon(hidden, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(rest, lr, betas, fused=fused)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # At every step, because loading a state puts new groups and a new state in the place of the old.
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()
        return loss
