"""Which windows of which episodes make an epoch's batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_align.data.loader import rng
from lit_align.data.targets import Targets, onto_targets


@dataclass(frozen=True)
class Window:
    """Steps `start .. start + length - 1` of an episode.

    `episode` is its place in the list that the plan was made from.
    """

    episode: int
    start: int
    length: int


def batches_per_epoch(lengths: NDArray[np.int64], window: int, batch_size: int, ranks: int = 1) -> int:
    """Whole batches that each rank gets in an epoch."""
    return int(np.ceil(lengths / window).sum()) // (batch_size * ranks)


def plan_epoch(
    lengths: NDArray[np.int64],
    window: int,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    ranks: int = 1,
    bucket: int = 8,
    targets: Targets | None = None,
) -> list[list[Window]]:
    """Random windows of an epoch, batched.

    An episode of T steps gives ceil(T / window) windows of min(T, window) steps. Windows of like length share a batch
    (within groups of `bucket` batches), so that little is spent on padding. All ranks draw the same plan, of batches
    of `ranks * batch_size` windows, and take every `ranks`-th window of each: how many ranks there are does not change
    what a step sees.

    Args:
        lengths: Env steps of each episode `(episodes,)`.
        window: Steps in a window at the most.
        batch_size: Windows in a batch of one rank.
        seed: The run's seed.
        epoch: The epoch's number.
        rank: Which process asks.
        ranks: Number of processes.
        bucket: Batches over which windows are sorted by length.
        targets: Where not every step is trained on, those that are, one or more in each episode; every window then
            holds one or more.

    Returns:
        The rank's batches, as many as `batches_per_epoch` says.
    """
    generator = rng(seed, epoch)
    counts = np.ceil(lengths / window).astype(np.int64)
    episodes = np.repeat(np.arange(len(lengths)), counts)
    sizes = np.minimum(lengths[episodes], window)
    starts = generator.integers(0, lengths[episodes] - sizes + 1)
    if targets is not None:
        starts = onto_targets(episodes, starts, sizes, lengths, targets, generator)
    order = generator.permutation(len(episodes))
    total, size = batches_per_epoch(lengths, window, batch_size, ranks), batch_size * ranks
    order = order[: total * size]
    for at in range(0, len(order), bucket * size):
        part = order[at : at + bucket * size]
        order[at : at + len(part)] = part[np.argsort(sizes[part], kind="stable")]
    batches = order.reshape(total, size)[generator.permutation(total), rank::ranks]
    return [[Window(int(episodes[i]), int(starts[i]), int(sizes[i])) for i in batch] for batch in batches]


def tile(lengths: NDArray[np.int64], window: int, targets: Targets | None = None) -> list[Window]:
    """Windows that cover every step of the episodes once, in order; with `targets`, only those that hold one."""
    windows = [
        Window(i, at, min(steps - at, window))
        for i, steps in enumerate(lengths.tolist())
        for at in range(0, steps, window)
    ]
    if targets is None:
        return windows
    return [w for w in windows if np.diff(np.searchsorted(targets.of(w.episode), (w.start, w.start + w.length)))[0]]
