"""The steps of an iteration one after another, cut into the pieces that batches are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_align.data.modules import Batch
from lit_align.data.trajectory import Trajectory

OPTIONAL = ("reference", "returns", "values")


@dataclass
class Rollout:
    """A trajectory and what the update needs of it.

    Attributes:
        trajectory: The episode.
        advantages: Of its actions `(T,)`, float32.
        reference: Log-probabilities of every class under the reference policy `(T, heads, widest)`, float32; None
            without a reference.
        returns: What the value head is to tell at each step `(T,)`, float32; None without one.
        values: What it told before the iteration's updates `(T,)`, float32; None without one.
    """

    trajectory: Trajectory
    advantages: Tensor
    reference: Tensor | None = None
    returns: Tensor | None = None
    values: Tensor | None = None


class Steps:
    """What is known of an iteration's steps, as one row each.

    A piece is a whole episode or, with `fragment`, a run of at most that many of its steps, with the frames before them
    that their outputs can depend on (the burn-in): its log-probabilities are those of a forward over the whole episode.

    Args:
        rollouts: Episodes, all with the same parts.
        fragment: Env steps of a piece at the most; None for whole episodes.
        burn_in: Frames before a piece that its first output depends on; those that the episode has are taken.

    Attributes:
        columns: Tensors `(steps + 1, ...)` by name; the last row is of zeros, and padding points at it.
        pieces: Of each piece its first row, the frames of its burn-in and all its frames `(pieces, 3)`, int64.
    """

    def __init__(self, rollouts: list[Rollout], fragment: int | None = None, burn_in: int = 0) -> None:
        played = [rollout.trajectory for rollout in rollouts]
        self.columns = {
            "frames": _column([torch.from_numpy(t.frames[:-1]) for t in played]),
            "vectors": _column([torch.from_numpy(t.vectors[:-1]) for t in played]),
            "actions": _column([torch.from_numpy(t.actions) for t in played]),
            "log_probs": _column([torch.from_numpy(t.log_probs) for t in played if t.log_probs is not None]),
            "advantages": _column([rollout.advantages for rollout in rollouts]),
        }
        for name in OPTIONAL:
            if getattr(rollouts[0], name) is not None:
                self.columns[name] = _column([getattr(rollout, name) for rollout in rollouts])
        self.whole = fragment is None
        self.pieces = cut(np.array([len(t) for t in played]), fragment, burn_in)

    def batch(self, picked: Sequence[int]) -> Batch:
        """Some pieces side by side, padded on the right; without any, one of which nothing is trained on.

        Its entries: the columns `(B, T, ...)`, `lengths` `(B,)`, the frames that count, and where not all of these are
        trained on `skip` `(B,)`, how many come first that are not.
        """
        first, skip, lengths = self.pieces[list(picked) or [0]].T
        at, blank = np.arange(lengths.max()), len(self.columns["log_probs"]) - 1
        rows = np.where(at < lengths[:, None], first[:, None] + at, blank)
        flat, shape = torch.from_numpy(rows.ravel()), rows.shape
        batch = {name: c.index_select(0, flat).view(*shape, *c.shape[1:]) for name, c in self.columns.items()}
        batch["lengths"] = torch.from_numpy(lengths.copy())
        if not len(picked):
            batch["skip"] = batch["lengths"]
        elif not self.whole:
            batch["skip"] = torch.from_numpy(skip.copy())
        return batch


def cut(lengths: NDArray[np.int64], fragment: int | None, burn_in: int) -> NDArray[np.int64]:
    """Pieces of episodes of these lengths that lie one after another; see `Steps.pieces`."""
    size = np.full_like(lengths, fragment) if fragment else lengths
    counts = -(-lengths // size)
    episode = np.repeat(np.arange(len(lengths)), counts)
    start = (np.arange(len(episode)) - np.repeat(counts.cumsum() - counts, counts)) * size[episode]
    end = np.minimum(start + size[episode], lengths[episode])
    skip = np.minimum(start, burn_in)
    first = (lengths.cumsum() - lengths)[episode] + start - skip
    return np.stack((first, skip, end - start + skip), axis=1)


def collate(rollouts: list[Rollout]) -> Batch:
    """Whole episodes as one batch; see `Steps.batch`."""
    return Steps(rollouts).batch(range(len(rollouts)))


def _column(parts: list[Tensor]) -> Tensor:
    return torch.cat((*parts, parts[0].new_zeros(1, *parts[0].shape[1:])))
