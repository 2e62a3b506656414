"""A network without its memory: what shapes it has, and whether this machine has room for it, before it is made."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

from lit_align.errors import UserError

BYTES = 4
"""Of a parameter in float32, in which networks are made."""


class _NothingDrawn(TorchFunctionMode):
    """Leaves numbers undrawn: there are none on the meta device, and to find that out torch imports its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return given.get("tensor", args[0] if args else None)
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **given)


def sketch(make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` makes, on the meta device: shapes and types alone; it takes no memory and draws no numbers."""
    with torch.device("meta"), _NothingDrawn():
        return make()


def check_room(make: Callable[[], nn.Module], what: str) -> None:
    """Raises a UserError if the parameters alone of a network are more than all of this machine's memory.

    A `config.json` from elsewhere may ask for any size; without this, the system would kill the process. Nothing is
    asked where networks take no memory of this machine: on the meta device, as fakes, on a GPU.

    Args:
        make: Makes the network; see `sketch`.
        what: What it is called in the message.
    """
    here = torch.empty(0)
    if here.device.type != "cpu" or isinstance(here, FakeTensor):
        return
    size = BYTES * sum(parameter.numel() for parameter in sketch(make).parameters())
    room = memory()
    if size > room:
        raise UserError(
            f"{what} would take {size / 1e9:,.1f} GB; this machine has {room / 1e9:,.1f} GB of memory: "
            "use a smaller network, or a larger machine"
        )


def memory() -> float:
    """Bytes of this machine, or those that this process may take where that is less; infinite if nobody knows."""
    try:
        found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

        allowed = getrlimit(RLIMIT_AS)[0]
        return found if allowed == RLIM_INFINITY else min(found, float(allowed))
    except (AttributeError, ImportError, OSError, ValueError):
        return float("inf")
