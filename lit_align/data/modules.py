"""The LightningDataModule of imitation: windows of recorded play. Pairs of trajectories are in `pairs.py`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.augment import Augment, augment
from lit_align.data.cache import FrameCache, Rows, frame_size, padded
from lit_align.data.loader import Batch, ResumableLoader, rng, world_of
from lit_align.data.pairs import PreferenceDataModule
from lit_align.data.select import Select
from lit_align.data.targets import Targets, acted
from lit_align.data.trajectories import Meta, TrajectoryDataset, read_meta
from lit_align.data.windows import Window, batches_per_epoch, plan_epoch, tile
from lit_align.errors import UserError
from lit_align.spaces import ActionCodec

__all__ = ["Batch", "PreferenceDataModule", "TrajectoryDataModule", "world_of"]

_log = logging.getLogger(__name__)


class TrajectoryDataModule(pl.LightningDataModule):
    """Random windows of recorded play; every frame of a window is a target, or those with an action (`null_actions`).

    A batch holds `frames` `(B, T, H, W, 3)`, uint8, `vectors` `(B, T, V)`, float32, and `actions` `(B, T, heads)`,
    uint8, padded on the right, `lengths` `(B,)`, and with `null_actions: mask` a `mask` `(B, T)`: which steps are
    targets.

    Args:
        trajectories: Folders of trajectories; `select` applies to these.
        also: More folders, taken whole: curated play that is mixed in.
        window: Env steps in a window at the most. Longer than the agent's `context` is better: the window slides.
        batch_size: Windows in a batch, on each device.
        val_fraction: Fraction of the episodes kept for validation.
        select: Which episodes to train on.
        image_size: Resize frames to this many pixels; 0 leaves pixels out where there are vectors, None keeps the size
            they were recorded in.
        null_actions: Steps at which nothing is done (no button, sticks at rest): `keep` trains on them, `mask` shows
            them and does not train on them, `drop` takes them out of the sequence, as VPT did (Baker et al. 2022, arXiv
            2206.11795). Episodes of nothing else are left out by the latter two.
        augment: Random changes of colour and place in training, the same for all frames of a window; None for none.
        seed: Decides the split, the order and the augmentation.

    Attributes:
        codec: The action space of the data.
        vector_size: Numbers in a vector observation; 0 without vectors.
        fps: Env steps in a second of the recorded world's time; None where the folders differ.
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
        null_actions: Literal["keep", "mask", "drop"] = "keep",
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction is {val_fraction}; expected 0 or more and below 1")
        if window < 1 or batch_size < 1:
            raise UserError(f"data.window is {window} and data.batch_size {batch_size}; expected 1 or more")
        if null_actions not in ("keep", "mask", "drop"):
            raise UserError(f"data.null_actions is {null_actions!r}; expected keep, mask or drop")
        self.folders = list(trajectories)
        self.also = list(also or [])
        self.window, self.batch_size, self.val_fraction = window, batch_size, val_fraction
        self.select = select or Select()
        self.select.check()
        self.wanted_size = image_size
        self.null_actions = null_actions
        self.seed = seed
        metas = {folder: read_meta(folder) for folder in [*self.folders, *self.also]}
        self.codec, self.image_size, self.vector_size = _spaces_of(metas, image_size)
        self.fps = _speed_of(metas)
        self.augment = augment or Augment()
        self.augment.check(self.image_size)
        self._caches: list[FrameCache] = []
        self._acted: list[Targets] = []

    def prepare_data(self) -> None:
        """Decodes the frames once, on one process of each machine; a selection of nothing is found before."""
        for folder in self.folders:
            self.select.apply(TrajectoryDataset(folder), say=True)
        for folder in [*self.folders, *self.also]:
            FrameCache(folder, self.wanted_size)

    def setup(self, stage: str | None = None) -> None:
        """Opens the memory maps and splits the episodes."""
        if self._caches:
            return
        caches = [FrameCache(folder, self.wanted_size) for folder in [*self.folders, *self.also]]
        if self.null_actions != "keep":
            self._acted = [acted(cache, self.codec.null) for cache in caches]
        rows = []
        for i, cache in enumerate(caches):
            kept = self.select.apply(cache.dataset) if i < len(self.folders) else np.arange(len(cache.dataset))
            if self._acted:
                kept = kept[self._acted[i].counts[kept] > 0]
            rows.append(np.stack([np.full_like(kept, i), kept], axis=1))
        if not sum(map(len, rows)):
            raise UserError(
                f"data.null_actions is '{self.null_actions}', and the episodes of {[*self.folders, *self.also]} hold "
                "null actions only: set data.null_actions to keep, or use other trajectories"
            )
        self._caches = caches
        episodes = np.concatenate(rows)[rng(self.seed, len(rows)).permutation(sum(len(r) for r in rows))]
        held_out = min(round(self.val_fraction * len(episodes)), len(episodes) - 1)
        self.val_episodes, self.train_episodes = episodes[:held_out], episodes[held_out:]

    def lengths(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Steps in the sequences of some episodes, rows of (folder, episode); dropped steps do not count."""
        if self.null_actions == "drop":
            return np.array([self._acted[i].counts[e] for i, e in episodes], np.int64)
        return np.array([self._caches[i].lengths[e] for i, e in episodes], np.int64)

    def _targets(self, episodes: NDArray[np.int64]) -> Targets | None:
        """The steps that are trained on, where those are not all."""
        return Targets.join([self._acted[i].of(e) for i, e in episodes]) if self.null_actions == "mask" else None

    def _rows(self, folder: int, episode: int, window: Window) -> Rows:
        """A window's rows of the folder's cache."""
        start, part = self._caches[folder].starts[episode], slice(window.start, window.start + window.length)
        if self.null_actions == "drop":
            return self._acted[folder].of(episode)[part] + start
        return slice(start + part.start, start + part.stop)

    def _make(self, episodes: NDArray[np.int64], windows: Sequence[Window]) -> Batch:
        picks = [(self._caches[i], self._rows(i, e, w)) for w in windows for i, e in [episodes[w.episode]]]
        batch: Batch = {name: padded(name, picks) for name in ("frames", "vectors", "actions")}
        batch["lengths"] = torch.tensor([w.length for w in windows])
        if self.null_actions == "mask":
            some = (batch["actions"] != torch.from_numpy(self.codec.null)).any(-1)
            batch["mask"] = some & (torch.arange(some.shape[1]) < batch["lengths"][:, None])
        return batch

    def train_dataloader(self) -> ResumableLoader:
        """Windows in an order that is a function of (seed, epoch, rank)."""
        rank, ranks = world_of(self)
        lengths, targets = self.lengths(self.train_episodes), self._targets(self.train_episodes)
        count = batches_per_epoch(lengths, self.window, self.batch_size, ranks)
        if not count:
            windows = int(np.ceil(lengths / self.window).sum())
            most, each = windows // ranks, f" for each of {ranks} processes" if ranks > 1 else ""
            lower = f"lower data.batch_size to {most} or less, or " if most else ""
            raise UserError(
                f"{len(lengths)} training episodes give {windows} windows of up to {self.window} steps, fewer than one "
                f"batch of {self.batch_size}{each}: {lower}record more episodes"
            )

        def plan(epoch: int) -> list[tuple[tuple[int, ...], list[Window]]]:
            batches = plan_epoch(lengths, self.window, self.batch_size, self.seed, epoch, rank, ranks, targets=targets)
            return [((self.seed, epoch, n * ranks + rank), windows) for n, windows in enumerate(batches)]

        def make(planned: tuple[tuple[int, ...], list[Window]]) -> Batch:
            batch = self._make(self.train_episodes, planned[1])
            if self.augment.on:
                # A key of the batch's own, not the global generator: after a resume Lightning moves the first batch
                # to the device before any hook can put that generator's state back.
                batch["augment"] = int(np.random.SeedSequence(planned[0]).generate_state(1, np.uint64)[0])
            return batch

        return ResumableLoader(plan, make, count)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augments the batches of training, on their device."""
        key = batch.pop("augment", None)
        if key is not None:
            generator = torch.Generator(batch["frames"].device).manual_seed(key)
            batch["frames"] = augment(batch["frames"], self.augment, generator)
        return batch

    def val_dataloader(self) -> ResumableLoader | list[Batch]:
        """The held-out episodes, the same windows every time, shared out over the processes.

        A short last batch is kept. Every process has as many batches, so that weights which are shared out can be made
        whole for each; one that has too few windows gets batches that count nothing.
        """
        rank, ranks = world_of(self)
        if not len(self.val_episodes):
            return []
        windows = tile(self.lengths(self.val_episodes), self.window, self._targets(self.val_episodes))
        mine, count = windows[rank::ranks], -(-len(windows) // (self.batch_size * ranks))
        groups = [mine[i * self.batch_size : (i + 1) * self.batch_size] for i in range(count)]

        def make(group: list[Window]) -> Batch:
            batch = self._make(self.val_episodes, group or windows[:1])
            return batch if group else batch | {"lengths": torch.zeros_like(batch["lengths"])} | _nothing(batch)

        return ResumableLoader(lambda _: groups, make, len(groups))

    test_dataloader = val_dataloader


def _nothing(batch: Batch) -> Batch:
    """The mask of a batch, where it has one, with no step left."""
    return {"mask": torch.zeros_like(batch["mask"])} if "mask" in batch else {}


def _spaces_of(metas: dict[str, Meta], image_size: int | None) -> tuple[ActionCodec, int, int]:
    """The action space, frame size and vector size that all folders share; raises UserError where they do not."""
    if not metas:
        raise UserError("data.trajectories is empty; expected one folder of trajectories or more")
    codecs = {folder: ActionCodec.from_dict(meta.actions) for folder, meta in metas.items()}
    first, *others = codecs
    for folder in others:
        if codecs[folder] != codecs[first]:
            raise UserError(
                f"'{folder}' has the actions {codecs[folder]}, '{first}' has {codecs[first]}; they must be the same"
            )
    sizes = {frame_size(folder, meta.image_size, meta.vector_size, image_size) for folder, meta in metas.items()}
    if len(sizes) > 1:
        raise UserError(f"the folders hold frames of {sorted(sizes)} pixels; set data.image_size to resize them to one")
    vectors = {meta.vector_size for meta in metas.values()}
    if len(vectors) > 1:
        raise UserError(f"the folders hold vectors of {sorted(vectors)} numbers; they must be the same")
    return codecs[first], sizes.pop(), vectors.pop()


def _speed_of(metas: dict[str, Meta]) -> float | None:
    """The env steps a second that all folders were recorded at; says so where there are several."""
    speeds = {meta.fps for meta in metas.values()}
    if len(speeds) > 1:
        told = ", ".join(f"'{folder}' {meta.fps:g}" for folder, meta in metas.items())
        _log.warning(
            "the folders were recorded at different speeds, in env steps a second: %s; an action lasts longer in one "
            "than in another, and the agent cannot tell which",
            told,
        )
        return None
    return speeds.pop()
