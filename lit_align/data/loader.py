"""A loader whose order is a function of (seed, epoch, rank) and whose place in it is saved with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_align.errors import UserError

if TYPE_CHECKING:
    import lightning.pytorch as pl

Batch = dict[str, Any]


def world_of(module: pl.LightningDataModule) -> tuple[int, int]:
    """This process's rank and the number of processes."""
    trainer = module.trainer
    return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)


class ResumableLoader:
    """Batches of an epoch, planned first and made one at a time.

    Lightning saves `state_dict` with its checkpoints and gives it back, so that a killed run goes on with the
    very next batch.

    Args:
        plan: Gives the descriptors of an epoch's batches, a function of the epoch's number alone.
        make: Makes a batch of a descriptor.
        length: Batches in every epoch; the plan is cut to it.
    """

    def __init__(
        self, plan: Callable[[int], Sequence[Any]], make: Callable[[Any], dict[str, Any]], length: int
    ) -> None:
        if length < 1:
            raise UserError("there is not one whole batch in an epoch; use more episodes or a smaller data.batch_size")
        self.plan, self.make, self.length = plan, make, length
        self.epoch, self.position = 0, 0
        self._started = False

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A second pass is the next epoch; a pass after load_state_dict goes on where the state was taken.
        if self._started or self.position >= self.length:
            self.epoch, self.position = self.epoch + 1, 0
        self._started = True
        plan = self.plan(self.epoch)
        while self.position < self.length:
            batch = self.make(plan[self.position])
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The place: epoch, and batches of it that were handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a place that `state_dict` told."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._started = False


def rng(*key: int) -> np.random.Generator:
    """A generator that is a function of some non-negative integers."""
    return np.random.default_rng(np.random.SeedSequence(list(key)))
