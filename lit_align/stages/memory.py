"""How much memory a training step takes at its peak, found out without taking it."""

from __future__ import annotations

import ctypes
import os
import weakref
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_align.data.trajectory import Trajectory
from lit_align.rollout.steps import Rollout, collate
from lit_align.stages.fake import Imitation

STEP = "memory of one training step (MB)"
KEPT, KEPT_LESS = 32 << 20, 2 << 20
"""glibc gives freed blocks of this many bytes and more back to the system, and keeps smaller ones; the second where
`give_back_sooner` was called."""
MMAP_THRESHOLD = -3
"""Its name for `mallopt`."""
CPU_LIBRARIES = 100e6
CPU_FRAGMENTS = 0.22
"""What a process takes beside its tensors, on a CPU: code and buffers of the libraries that a first step wakes up, and
gaps among the blocks that glibc keeps, a share of the small activations. Measured (glibc 2.36, one and two threads,
fifteen networks with peaks of 0.3 to 1.6 GB, twenty steps): with these the estimate was at most 11 % off."""


@dataclass
class Memory:
    """The peak of a training step on one device, in bytes, by what it is for.

    Attributes:
        weights: Parameters and buffers, frozen networks and averages included.
        gradients: Of the parameters that train.
        optimizer: The optimizer's state.
        activations: What the forward pass keeps for the backward pass, and temporary values, at the peak.
        batch: The batch; for play also the episodes that wait.
        allocator: What the allocator and libraries hold beside all this.
    """

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    batch: float = 0.0
    allocator: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.lasting + self.activations + self.batch + self.allocator

    @property
    def lasting(self) -> float:
        """What does not depend on the size of the batch."""
        return self.weights + self.gradients + self.optimizer

    def rows(self) -> dict[str, float]:
        """For a person to read, in MB."""
        parts = {
            STEP: self.total,
            "weights (MB)": self.weights,
            "gradients (MB)": self.gradients,
            "optimizer state (MB)": self.optimizer,
            "activations and temporary values (MB)": self.activations,
            "batch (MB)": self.batch,
            "allocator and libraries (MB)": self.allocator,
        }
        return {name: round(size / 1e6, 1) for name, size in parts.items()}


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows how many bytes of tensor storage live, as operations make them and references to them end.

    Args:
        kept: Storages of fewer bytes are small.

    Attributes:
        now: Bytes that live.
        peak: The most there were.
        small: Bytes of small storages.
        small_peak: The most of these.
    """

    def __init__(self, kept: int = KEPT) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = kept
        self.now = self.peak = self.small = self.small_peak = 0
        self._known: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        """Follows a tensor's storage."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, partial(self._gone, key, size))
        self._change(size, size)

    def _gone(self, key: int, size: int, _: Any) -> None:
        del self._known[key]
        self._change(size, -size)

    def _change(self, size: int, by: int) -> None:
        self.now += by
        self.peak = max(self.peak, self.now)
        if size < self.kept:
            self.small += by
            self.small_peak = max(self.small_peak, self.small)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


class NotKnown(Exception):
    """Says why a run's memory cannot be told beforehand."""


def of_run(imitation: Imitation) -> Memory:
    """The peak of a training step of a run, on its largest batch.

    Raises:
        NotKnown: What a batch will hold is not known before it is there.
    """
    data: Any = imitation.trainer.datamodule  # type: ignore[attr-defined]
    if hasattr(data, "fill"):  # batches come from play, and there was none yet
        stage: Any = imitation.stage
        sequences, frames = data.largest_batch(_longest_episode(data))
        batch = imitation.batch(_one_step(data, stage.has_reference, stage.estimator == "ppo"), sequences, frames)
        # Beside the batch: the buffer that it is drawn from, and the copy of the agent that plays (and, where the best
        # weights are kept, these and those that play).
        return estimate(imitation, batch, waiting=data.minibatches, copies=3 if stage.keeps_best else 1)
    batch = next(iter(data.train_dataloader()))
    rows: int | None = None
    steps: int | None = None
    if hasattr(data, "train_episodes"):
        steps = min(data.window, int(data.lengths(data.train_episodes).max()))
    elif hasattr(data, "train_pairs"):
        ids = np.unique(np.concatenate((data.train_pairs.chosen, data.train_pairs.rejected)))
        rows = min(data.rows_of_a_batch, len(ids))
        steps = 1 + max(int(data.cache.lengths[data.cache.dataset.index_of(int(i))]) for i in ids)
    return estimate(imitation, imitation.batch(batch, rows, steps))


def _longest_episode(data: Any) -> int:
    world = data.make_world()
    try:
        limit = getattr(world.unwrapped, "max_steps", None) or (world.spec and world.spec.max_episode_steps)
    finally:
        world.close()
    if not limit:
        raise NotKnown(f"{data.env} does not tell how long an episode may be")
    return int(limit)


def _one_step(data: Any, reference: bool, values: bool) -> dict[str, Any]:
    """The batch of one episode of one step, with what a reference or a value head adds to it."""
    size, classes = data.image_size, data.codec.sizes
    played = Trajectory(
        frames=np.zeros((2, size, size, 3), np.uint8),
        actions=np.zeros((1, len(classes)), np.uint8),
        id=0,
        vectors=np.zeros((2, data.vector_size), np.float32),
        log_probs=np.zeros(1, np.float32),
    )
    known = torch.zeros(1, len(classes), max(classes)) if reference else None
    one = torch.zeros(1)
    return collate([Rollout(played, one, known, *((one, one) if values else ()))])


def estimate(imitation: Imitation, batch: dict[str, Any], waiting: int = 0, copies: int = 0) -> Memory:
    """The peak of a training step of a stage.

    Two steps are traced, forward, backward and optimizer as the Trainer's loop has them: in the second the optimizer's
    state and, until the backward pass begins, the first one's gradients are there.

    Args:
        imitation: Of the stage.
        batch: What `imitation.batch` made.
        waiting: Further batches that wait in memory.
        copies: Further copies of the trained network's weights.
    """
    imitation.stage.zero_grad()  # of an estimate before
    optimizer = imitation.optimizer()
    again = any(getattr(module, "checkpointing", False) for module in imitation.stage.modules())
    live = LiveStorages(KEPT_LESS if again else KEPT)
    for tensor in imitation.held:
        live.add(tensor)
    weights = live.now
    for tensor in batch.values():
        if isinstance(tensor, Tensor):
            live.add(tensor)
    memory = Memory(weights=weights, batch=live.now - weights)
    with imitation.running(), live:
        for index in range(2):
            loss = imitation.loss(batch, index)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
            optimizer.step()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    memory.gradients = bytes_of([p.grad for p in parameters if p.grad is not None])
    memory.optimizer = bytes_of([v for state in optimizer.state.values() for v in state.values()])
    memory.activations = live.peak - memory.lasting - memory.batch
    trainer = imitation.trainer
    if isinstance(trainer.strategy, DDPStrategy) and trainer.world_size > 1:
        memory.gradients *= 2  # the buckets in which they are reduced
    memory.weights += (copies + imitation.averages) * bytes_of(list(imitation.stage.parameters()))
    memory.batch *= 1 + waiting
    if imitation.device.type == "cpu":
        memory.allocator = CPU_LIBRARIES + CPU_FRAGMENTS * max(0, live.small_peak - live.small)
    return memory


def give_back_sooner(device: torch.device, sooner: bool = True) -> None:
    """Has freed blocks go back to the system from 2 MB on, or as before, on a CPU with glibc.

    Else gradient checkpointing saves next to nothing there: before 2.38 glibc seldom reuses a freed block for a tensor
    of the same size, and keeps it. The system's work for it was a quarter of the time of a step.
    """
    if device.type == "cpu" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, KEPT_LESS if sooner else KEPT)


def bytes_of(tensors: list[Any]) -> float:
    """Bytes of the storages of tensors; other things have none."""
    found = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return float(sum(found.values()))
