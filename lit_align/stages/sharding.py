"""Weights shared out over processes (FSDP2: torch's `fully_shard`), and made whole again.

Each process keeps a part of every matrix, and of its gradient and the optimizer's state; a layer is whole only while it
computes (Zhao et al. 2023, arXiv 2304.11277). All functions that say so are called by every process, or none goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

FORWARD = ("training_step", "validation_step", "test_step", "through")
"""Methods of a stage inside of which its weights compute."""


def shard(stage: nn.Module, networks: Iterable[nn.Module], mesh: Any) -> None:
    """Shards each transformer layer and the vision encoder of some networks, then what is left of the stage, in place.

    Args:
        stage: What holds the networks, and whose `FORWARD` methods use them.
        networks: Parts of it; those with a `backbone` are sharded layer by layer.
        mesh: The processes, a mesh of one dimension.
    """
    for network in networks:
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()  # fully_shard takes no other layout
        backbone: Any = getattr(network, "backbone", None)
        if backbone is None:
            continue
        for part in (*backbone.transformer.layers, *([] if backbone.vision is None else [backbone.vision])):
            fully_shard(part, mesh=mesh)
    fully_shard(stage, mesh=mesh)
    for name in FORWARD:
        register_fsdp_forward_method(stage, name)


def hollow(module: nn.Module) -> nn.Module:
    """A copy with the same buffers, whose parameters have shapes but no memory."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, empty)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a part, whole; called by every process."""
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach()


def whole_state(module: nn.Module, keep: bool = True, device: torch.device | None = None) -> dict[str, Tensor]:
    """The `state_dict` of a module that may be sharded, whole; called by every process.

    Args:
        module: Whose.
        keep: Whether this process wants it; else it helps the others, and gets none.
        device: Where the tensors go, one after another; None leaves them on the module's.
    """
    found = {}
    for name, tensor in module.state_dict().items():
        value = whole(tensor)
        if keep:
            found[name] = value.clone() if device is None else value.to(device, copy=True)
    return found


def fill(module: nn.Module, state: Mapping[str, Tensor], device: torch.device) -> None:
    """Gives a module whole weights on a device; those of a `hollow` one become its own."""
    hollow = any(parameter.is_meta for parameter in module.parameters())
    if not hollow:
        module.to(device)
    module.load_state_dict(dict(state), assign=hollow)
    module.to(device)


def spread(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives a sharded module whole weights, of which each process takes its part; called by every process."""
    module.load_state_dict({name: like(own, state[name]) for name, own in module.state_dict().items()})


def like(own: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, shared out as another one is; called by every process."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device, own.dtype), own.device_mesh, own.placements)


def reshard(stage: nn.Module) -> None:
    """Has a stage's parameters be the sharded ones, as they are outside of a step; others are left alone."""
    if isinstance(stage, FSDPModule):
        stage.reshard()
