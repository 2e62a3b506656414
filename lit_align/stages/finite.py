"""Training that diverged: weights that hold no numbers any more, found before another stage takes them up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_align.errors import UserError

MEND = "lower model.optimizer.lr ({lr:g} here), warm up for longer (model.optimizer.warmup_steps), or clip gradients"
"""What to do about it (`lr` is the learning rate)."""


def is_finite(network: nn.Module) -> Tensor:
    """Whether the parameters that train hold finite numbers only, bool `()`; of a sharded network, this process's part.

    In a few operations, on their device: what waits for them is who asks for the answer.
    """
    here = [parameter.detach() for parameter in network.parameters() if parameter.requires_grad]
    local = [part.to_local() if hasattr(part, "to_local") else part for part in here]
    # A process may have nothing of a small parameter, and nothing has no largest number.
    return torch.nn.utils.get_total_norm([part for part in local if part.numel()], float("inf")).isfinite()


def check_left(network: nn.Module, folder: str, stage: str, lr: float) -> None:
    """Raises UserError if a network that a stage is about to leave holds a number that is not finite."""
    if name := first_spoilt(network.state_dict()):
        raise UserError(
            f"{stage} diverged: {name} of the network holds values that are not finite, and {folder} is not written; "
            f"{MEND.format(lr=lr)}"
        )


def first_spoilt(state: Mapping[str, Tensor | None]) -> str | None:
    """The name of the first tensor that holds a number that is not finite; None stands for one that is elsewhere."""
    return next((name for name, value in state.items() if value is not None and not value.isfinite().all()), None)
