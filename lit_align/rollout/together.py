"""Play that all processes come through, or none: no process is left waiting for one whose worlds failed for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from lit_align.errors import FailedElsewhere, UserError, WorldFailed


@dataclass(frozen=True)
class _Failure:
    """What a process whose play failed sends in the place of what the others exchange."""

    rank: int
    message: str


def gathered(trainer: pl.Trainer, mine: Any) -> list[Any]:
    """What each process has, in the order of their ranks; plain Python objects.

    Raises:
        WorldFailed: Another process failed in `together`, and will not come here.
    """
    parts = exchanged(trainer, mine)
    failed = [part for part in parts if isinstance(part, _Failure)]
    if failed:
        raise _error(trainer, failed)
    return parts


@contextmanager
def together(trainer: pl.Trainer) -> Iterator[None]:
    """Play in this block, and end it with `gathered`: a process that fails tells the others where they meet next.

    Whatever a process waits for inside the block has to be `gathered` too.

    Raises:
        WorldFailed: The worlds of a process failed for good, on every process: process 0 says which, the others leave
            it to that one.
    """
    try:
        yield
    except FailedElsewhere:
        raise
    except _Told:
        raise
    except Exception as error:
        if trainer.world_size == 1:
            raise
        known = isinstance(error, WorldFailed | UserError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        parts = exchanged(trainer, _Failure(trainer.global_rank, message))
        if not known:
            raise  # with its traceback: it is no matter of worlds
        raise _error(trainer, [part for part in parts if isinstance(part, _Failure)]) from error


class _Told(WorldFailed):
    """All processes know of it."""


def _error(trainer: pl.Trainer, failed: list[_Failure]) -> WorldFailed:
    first = failed[0]
    more = f" (and so did {len(failed) - 1} more)" if len(failed) > 1 else ""
    message = f"process {first.rank} of {trainer.world_size} cannot go on{more}, and all have stopped: {first.message}"
    return _Told(message) if trainer.global_rank == 0 else FailedElsewhere(message)


def exchanged(trainer: pl.Trainer, mine: Any) -> list[Any]:
    """What every process has, by their numbers; called by every one of them."""
    parts = [mine] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(parts, mine)
    return parts
