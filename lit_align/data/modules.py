"""LightningDataModules: trajectories for imitation, preferences for the reward model."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.cache import FrameCache
from lit_align.data.loader import ResumableLoader, rng
from lit_align.data.preferences import Preferences, read_preferences
from lit_align.data.select import Select
from lit_align.data.trajectories import TrajectoryDataset, read_meta
from lit_align.data.windows import Window, batches_per_epoch, plan_epoch
from lit_align.errors import UserError
from lit_align.spaces import ActionCodec

Batch = dict[str, Any]


def world_of(module: pl.LightningDataModule) -> tuple[int, int]:
    """This process's rank and the number of processes."""
    trainer = module.trainer
    return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)


class TrajectoryDataModule(pl.LightningDataModule):
    """Random windows of recorded play; every frame of a window is a target.

    Args:
        trajectories: Folders of trajectories; `select` applies to these.
        also: More folders, taken whole: curated play that is mixed in.
        window: Env steps in a window at the most. Longer than the agent's `context` is better: the window slides.
        batch_size: Windows in a batch, on each device.
        val_fraction: Fraction of the episodes kept for validation.
        select: Which episodes to train on.
        image_size: Resize frames to this many pixels; None keeps the size they were recorded in.
        seed: Decides the split and the order.

    Attributes:
        codec: The action space of the data.
    """

    def __init__(
        self,
        trajectories: list[str],
        also: list[str] | None = None,
        window: int = 128,
        batch_size: int = 32,
        val_fraction: float = 0.05,
        select: Select | None = None,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}; expected 0 or more and below 1")
        if window < 1 or batch_size < 1:
            raise UserError(f"data.window is {window} and data.batch_size {batch_size}; expected 1 or more")
        self.folders = list(trajectories)
        self.also = list(also or [])
        self.window, self.batch_size, self.val_fraction = window, batch_size, val_fraction
        self.select = select or Select()
        self.select.check()
        self.wanted_size = image_size
        self.seed = seed
        metas = [read_meta(folder) for folder in [*self.folders, *self.also]]
        if not metas:
            raise UserError("data.trajectories is empty; expected one folder of trajectories or more")
        codecs = [ActionCodec.from_dict(meta.actions) for meta in metas]
        for folder, codec in zip([*self.folders, *self.also][1:], codecs[1:], strict=True):
            if codec != codecs[0]:
                raise UserError(
                    f"'{folder}' has the actions {codec}, '{self.folders[0]}' has {codecs[0]}; they must be the same"
                )
        self.codec = codecs[0]
        self.image_size = image_size or metas[0].image_size
        if any((image_size or meta.image_size) != self.image_size for meta in metas):
            raise UserError(
                f"the folders hold frames of {sorted({m.image_size for m in metas})} pixels; "
                "set data.image_size to resize them to one"
            )
        self._caches: list[FrameCache] = []

    def prepare_data(self) -> None:
        """Decodes the frames once, on one process of each machine; a selection of nothing is found before."""
        for folder in self.folders:
            self.select.apply(TrajectoryDataset(folder))
        for folder in [*self.folders, *self.also]:
            FrameCache(folder, self.wanted_size)

    def setup(self, stage: str | None = None) -> None:
        """Opens the memory maps and splits the episodes."""
        if self._caches:
            return
        self._caches = [FrameCache(folder, self.wanted_size) for folder in [*self.folders, *self.also]]
        rows = []
        for i, cache in enumerate(self._caches):
            kept = self.select.apply(cache.dataset) if i < len(self.folders) else np.arange(len(cache.dataset))
            rows.append(np.stack([np.full_like(kept, i), kept], axis=1))
        episodes = np.concatenate(rows)[rng(self.seed, len(rows)).permutation(sum(len(r) for r in rows))]
        held_out = min(round(self.val_fraction * len(episodes)), len(episodes) - 1)
        self.val_episodes, self.train_episodes = episodes[:held_out], episodes[held_out:]

    def lengths(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Env steps of some episodes, rows of (folder, episode)."""
        return np.array([self._caches[i].lengths[e] for i, e in episodes], np.int64)

    def _make(self, episodes: NDArray[np.int64], windows: Sequence[Window]) -> Batch:
        longest = max(w.length for w in windows)
        frames = np.zeros((len(windows), longest, self.image_size, self.image_size, 3), np.uint8)
        actions = np.zeros((len(windows), longest, len(self.codec.heads)), np.uint8)
        for row, w in enumerate(windows):
            folder, episode = episodes[w.episode]
            cache = self._caches[folder]
            at = cache.starts[episode] + w.start
            frames[row, : w.length] = cache.frames[at : at + w.length]
            actions[row, : w.length] = cache.actions[at : at + w.length]
        lengths = torch.tensor([w.length for w in windows])
        return {"frames": torch.from_numpy(frames), "actions": torch.from_numpy(actions), "lengths": lengths}

    def train_dataloader(self) -> ResumableLoader:
        """Windows in an order that is a function of (seed, epoch, rank)."""
        rank, ranks = world_of(self)
        lengths = self.lengths(self.train_episodes)
        count = batches_per_epoch(lengths, self.window, self.batch_size, ranks)
        if not count:
            windows = int(np.ceil(lengths / self.window).sum())
            raise UserError(
                f"{len(lengths)} episodes give {windows} windows, fewer than one batch of {self.batch_size} "
                f"for {ranks} processes; lower data.batch_size"
            )
        return ResumableLoader(
            lambda epoch: plan_epoch(lengths, self.window, self.batch_size, self.seed, epoch, rank, ranks),
            lambda windows: self._make(self.train_episodes, windows),
            count,
        )

    def val_dataloader(self) -> ResumableLoader | list[Batch]:
        """The held-out episodes, the same windows every time, shared out over the processes.

        A short last batch is kept.
        """
        rank, ranks = world_of(self)
        if not len(self.val_episodes):
            return []
        lengths = self.lengths(self.val_episodes)
        windows = [
            Window(i, at, min(steps - at, self.window))
            for i, steps in enumerate(lengths.tolist())
            for at in range(0, steps, self.window)
        ]
        mine = [windows[i] for i in range(rank, len(windows), ranks)]
        groups = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)] or [windows[:1]]
        return ResumableLoader(lambda _: groups, lambda group: self._make(self.val_episodes, group), len(groups))

    test_dataloader = val_dataloader


class PreferenceDataModule(pl.LightningDataModule):
    """Comparisons of trajectories. A batch holds each trajectory once and every labelled pair among them.

    Args:
        preferences: A folder of preferences.
        trajectories: The trajectories that it compares; None takes the folder that the preferences name.
        comparisons: Train on the first this many comparisons; None takes all.
        pairs: Comparisons that a batch is drawn around, on each device.
        image_size: Resize frames to this many pixels; None keeps their size.
        seed: Decides the order.
    """

    def __init__(
        self,
        preferences: str,
        trajectories: str | None = None,
        comparisons: int | None = None,
        pairs: int = 8,
        image_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        meta, splits = read_preferences(preferences)
        self.preferences = preferences
        self.folder = trajectories or os.path.normpath(Path(preferences) / meta.trajectories)
        data = read_meta(self.folder)
        self.codec = ActionCodec.from_dict(data.actions)
        self.image_size = image_size or data.image_size
        self.wanted_size = image_size
        self.rule = meta.rule
        self.train_pairs = splits["train"]
        if comparisons is not None:
            if comparisons > len(self.train_pairs):
                raise UserError(
                    f"data.comparisons is {comparisons}, '{preferences}' holds {len(self.train_pairs)} for training"
                )
            self.train_pairs = self.train_pairs.head(comparisons)
        self.test_pairs = splits.get("test", self.train_pairs.head(0))
        self.pairs, self.seed = pairs, seed
        if pairs < 1 or not len(self.train_pairs):
            raise UserError(
                f"data.pairs is {pairs} and there are {len(self.train_pairs)} comparisons to train on; "
                "expected 1 or more of both"
            )

    def prepare_data(self) -> None:
        """Decodes the frames once, on one process of each machine."""
        FrameCache(self.folder, self.wanted_size)

    def setup(self, stage: str | None = None) -> None:
        """Opens the memory map and finds the episodes."""
        self.cache = FrameCache(self.folder, self.wanted_size)
        overlap = np.intersect1d(self._ids(self.train_pairs), self._ids(self.test_pairs))
        if len(overlap):
            raise UserError(
                f"{len(overlap)} episodes of '{self.preferences}' are in training and in test comparisons "
                f"(first: {overlap[0]}); split by episode"
            )
        self._neighbours: dict[int, list[int]] = defaultdict(list)
        for i, episode in enumerate(self.train_pairs.chosen):
            self._neighbours[int(episode)].append(i)

    @staticmethod
    def _ids(pairs: Preferences) -> NDArray[np.int64]:
        return np.unique(np.concatenate([pairs.chosen, pairs.rejected]))

    def frames_of(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole trajectories by their ids: frames `(U, T, H, W, 3)` padded on the right, and how many count `(U,)`."""
        rows = [self.cache.dataset.index_of(int(i)) for i in ids]
        lengths = self.cache.lengths[rows] + 1
        frames = np.zeros((len(rows), int(lengths.max()), self.image_size, self.image_size, 3), np.uint8)
        for n, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            at = self.cache.starts[row]
            frames[n, :length] = self.cache.frames[at : at + length]
        return torch.from_numpy(frames), torch.from_numpy(lengths)

    def _make(self, pairs: Preferences, picked: NDArray[np.int64]) -> Batch:
        ids = self._ids(Preferences(pairs.chosen[picked], pairs.rejected[picked]))
        frames, lengths = self.frames_of(ids.tolist())
        return {
            "frames": frames,
            "lengths": lengths,
            "chosen": torch.from_numpy(np.searchsorted(ids, pairs.chosen[picked])),
            "rejected": torch.from_numpy(np.searchsorted(ids, pairs.rejected[picked])),
            "tie": torch.from_numpy(pairs.tie[picked].copy()),
            "margin": torch.from_numpy(pairs.margin[picked].astype(np.float32)),
        }

    def _with_neighbours(self, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
        """All labelled pairs among the trajectories of the seed pairs: they cost nothing more to encode."""
        pairs = self.train_pairs
        inside = set(pairs.chosen[seeds].tolist()) | set(pairs.rejected[seeds].tolist())
        found = [i for e in inside for i in self._neighbours.get(e, ()) if int(pairs.rejected[i]) in inside]
        return np.array(sorted(set(found)), np.int64)

    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        rank, ranks = world_of(self)
        order = rng(self.seed, epoch).permutation(len(self.train_pairs))
        size = min(self.pairs, max(1, len(order) // ranks))
        count = len(order) // (size * ranks) * ranks
        return [self._with_neighbours(group) for group in order[: count * size].reshape(count, size)[rank::ranks]]

    def train_dataloader(self) -> ResumableLoader:
        """Comparisons in an order that is a function of (seed, epoch, rank)."""
        return ResumableLoader(self._plan, lambda picked: self._make(self.train_pairs, picked), len(self._plan(0)))

    def val_dataloader(self) -> ResumableLoader | list[Batch]:
        """The test comparisons: each trajectory once, then all pairs (see `Reward.validation_step`)."""
        rank, ranks = world_of(self)
        ids = self._ids(self.test_pairs)
        if not len(ids):
            return []
        groups = [ids[i : i + 2 * self.pairs] for i in range(0, len(ids), 2 * self.pairs)]
        mine = groups[rank::ranks] or groups[:1]

        def make(group: NDArray[np.int64]) -> Batch:
            frames, lengths = self.frames_of(group.tolist())
            return {"frames": frames, "lengths": lengths, "ids": torch.from_numpy(group)}

        return ResumableLoader(lambda _: mine, make, len(mine))

    test_dataloader = val_dataloader
