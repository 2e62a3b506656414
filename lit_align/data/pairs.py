"""The LightningDataModule of comparisons: each trajectory of a batch once, and every labelled pair among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.cache import FrameCache, frame_size, padded
from lit_align.data.loader import Batch, ResumableLoader, rng, world_of
from lit_align.data.preferences import Preferences, compared, ids_of, read_preferences
from lit_align.data.trajectories import TrajectoryDataset, read_meta
from lit_align.errors import UserError
from lit_align.spaces import ActionCodec


class PairIndex:
    """Finds the labelled pairs among some trajectories, in time that grows with their own pairs alone.

    Args:
        pairs: All labelled pairs.

    Attributes:
        ids: The episodes that they compare, in ascending order `(episodes,)`.
    """

    def __init__(self, pairs: Preferences) -> None:
        self.ids, places = np.unique(np.concatenate([pairs.chosen, pairs.rejected]), return_inverse=True)
        chosen, self._rejected = places[: len(pairs)], places[len(pairs) :]
        self._by_chosen = np.argsort(chosen, kind="stable")
        self._starts = np.searchsorted(chosen[self._by_chosen], np.arange(len(self.ids) + 1))

    def among(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The pairs `(n,)`, ascending, both of whose episodes are among some of `ids` `(k,)`."""
        inside = np.zeros(len(self.ids), bool)
        inside[np.searchsorted(self.ids, ids)] = True
        (here,) = np.nonzero(inside)
        starts, counts = self._starts[here], self._starts[here + 1] - self._starts[here]
        # The runs starts[i], ..., starts[i] + counts[i] - 1, one after another.
        runs = np.repeat(starts - counts.cumsum() + counts, counts) + np.arange(counts.sum())
        found = self._by_chosen[runs]
        return np.sort(found[inside[self._rejected[found]]])

    def one_of(self, episode: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """A pair `(1,)` that an episode of `ids` is in, drawn at random."""
        place = np.searchsorted(self.ids, episode)
        mine = self._by_chosen[self._starts[place] : self._starts[place + 1]]
        (others,) = np.nonzero(self._rejected == place)
        return rng.choice(np.concatenate([mine, others]), 1)


class PreferenceDataModule(pl.LightningDataModule):
    """Comparisons of trajectories. A batch holds each trajectory once and every labelled pair among them.

    Of each pair it holds its number among the training comparisons (`pair`), the places of the two in the batch
    (`chosen`, `rejected`), `tie` and `margin`, all `(pairs,)`.

    Args:
        preferences: A folder of preferences.
        trajectories: The trajectories that it compares; None takes the folder that the preferences name.
        comparisons: Train on the first this many comparisons; None takes all.
        pairs: Comparisons that a batch is drawn around, on each device, with `batch: pairs`.
        image_size: Resize frames to this many pixels; 0 leaves pixels out where there are vectors, None keeps their
            size.
        seed: Decides the order.
        batch: What an epoch goes through. `pairs`: all comparisons, a few at a time, which suits few of them.
            `trajectories`: all compared trajectories, a few at a time; it costs the same however many comparisons
            there are, and uses those within a batch. Of many, each is met every so many epochs.
        trajectories_in_batch: Trajectories in a batch, on each device, with `batch: trajectories`.
    """

    def __init__(
        self,
        preferences: str,
        trajectories: str | None = None,
        comparisons: int | None = None,
        pairs: int = 8,
        image_size: int | None = None,
        seed: int = 0,
        batch: Literal["pairs", "trajectories"] = "pairs",
        trajectories_in_batch: int = 32,
    ) -> None:
        super().__init__()
        meta, splits = read_preferences(preferences)
        self.preferences = preferences
        self.folder = trajectories or compared(preferences, meta)
        data = read_meta(self.folder)
        self.codec = ActionCodec.from_dict(data.actions)
        self.image_size = frame_size(self.folder, data.image_size, data.vector_size, image_size)
        self.vector_size, self.fps = data.vector_size, data.fps
        self.wanted_size = image_size
        self.rule, self.provenance = meta.rule, meta.provenance
        nothing = Preferences(np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._compared = ids_of(nothing, *splits.values())
        self.train_pairs = splits.get("train", nothing)
        if comparisons is not None:
            if comparisons > len(self.train_pairs):
                raise UserError(
                    f"data.comparisons is {comparisons}, '{preferences}' holds {len(self.train_pairs)} for training"
                )
            self.train_pairs = self.train_pairs.head(comparisons)
        self.test_pairs = splits.get("test", nothing)
        self.pairs, self.seed = pairs, seed
        self.batch, self.trajectories_in_batch = batch, trajectories_in_batch
        if pairs < 1 or not len(self.train_pairs):
            raise UserError(
                f"data.pairs is {pairs} and there are {len(self.train_pairs)} comparisons to train on; "
                "expected 1 or more of both"
            )
        if batch not in ("pairs", "trajectories") or trajectories_in_batch < 2:
            raise UserError(
                f"data.batch is {batch!r} and data.trajectories_in_batch {trajectories_in_batch}; "
                "expected pairs or trajectories, and 2 or more"
            )
        self._features: torch.Tensor | None = None

    @property
    def best_accuracy(self) -> float | None:
        """The best accuracy that the labels of the test comparisons allow; None where it is not known."""
        best: float | None = self.provenance.get("best_accuracy", {}).get("test")
        return best

    @property
    def rows_of_a_batch(self) -> int:
        """Trajectories in a batch at the most."""
        return 2 * self.pairs if self.batch == "pairs" else self.trajectories_in_batch

    def prepare_data(self) -> None:
        """Decodes the frames once, on one process of each machine; comparisons that cannot be are found before."""
        self._check_pairs(TrajectoryDataset(self.folder))
        FrameCache(self.folder, self.wanted_size)

    def setup(self, stage: str | None = None) -> None:
        """Opens the memory map and finds the episodes."""
        self.cache = FrameCache(self.folder, self.wanted_size)
        self._check_pairs(self.cache.dataset)
        self._index = PairIndex(self.train_pairs)

    def _check_pairs(self, dataset: TrajectoryDataset) -> None:
        """Raises UserError if an episode is compared that is not there, or with itself, or in both splits."""
        splits = {"training": self.train_pairs, "test": self.test_pairs}
        ids = {split: ids_of(pairs) for split, pairs in splits.items()}
        there = dataset.episodes["id"]
        for split, pairs in splits.items():
            lacking = np.setdiff1d(ids[split], there)
            if len(lacking):
                raise UserError(
                    f"{len(lacking)} episodes of the {split} comparisons of '{self.preferences}' are not among the "
                    f"{len(there)} of '{self.folder}' (first: {lacking[0]}); expected the trajectories that were "
                    "compared: set data.trajectories"
                )
            same = pairs.chosen[pairs.chosen == pairs.rejected]
            if len(same):
                raise UserError(
                    f"{len(same)} {split} comparisons of '{self.preferences}' are of an episode with itself (first: "
                    f"{same[0]}); expected two episodes in each"
                )
        overlap = np.intersect1d(ids["training"], ids["test"])
        if len(overlap):
            raise UserError(
                f"{len(overlap)} episodes of '{self.preferences}' are in training and in test comparisons "
                f"(first: {overlap[0]}); split by episode"
            )
        told = self.provenance.get("episodes")
        if told is not None and dataset.digest(self._compared) != told:
            raise UserError(
                f"'{self.folder}' holds other episodes than those that '{self.preferences}' compares, under the same "
                "ids (seeds, lengths or outcomes differ); expected the trajectories that were compared: set "
                "data.trajectories, or compare these by 'lit-align compare'"
            )

    def frames_of(self, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole trajectories by their ids: frames `(U, T, H, W, 3)` padded on the right, and how many count `(U,)`."""
        picks = self._picks(ids)
        return padded("frames", picks), torch.tensor([rows.stop - rows.start for _, rows in picks])

    def vectors_of(self, ids: Sequence[int]) -> torch.Tensor:
        """The vector observations beside `frames_of`: `(U, T, V)`, float32, padded on the right."""
        return padded("vectors", self._picks(ids))

    def actions_of(self, ids: Sequence[int]) -> torch.Tensor:
        """What was done after each frame but the last: classes `(U, T, heads)`, uint8, padded on the right."""
        return padded("actions", [(cache, slice(rows.start, rows.stop - 1)) for cache, rows in self._picks(ids)])

    def use_features(self, features: torch.Tensor | None) -> None:
        """From here on batches hold what a frozen trunk made of whole trajectories, in place of frames and vectors.

        Args:
            features: `(episodes, width)`, float32, on the CPU, in the order of `cache.dataset`; None for frames again.
        """
        self._features = features

    def _picks(self, ids: Sequence[int]) -> list[tuple[FrameCache, slice]]:
        cache = self.cache
        found = [cache.dataset.index_of(int(i)) for i in ids]
        return [(cache, slice(cache.starts[i], cache.starts[i] + cache.lengths[i] + 1)) for i in found]

    def _observations(self, ids: NDArray[np.int64]) -> Batch:
        if self._features is not None:
            rows = [self.cache.dataset.index_of(int(i)) for i in ids]
            return {"features": self._features[rows], "lengths": torch.from_numpy(self.cache.lengths[rows] + 1)}
        picks = self._picks(ids.tolist())
        lengths = torch.tensor([rows.stop - rows.start for _, rows in picks])
        return {"frames": padded("frames", picks), "vectors": padded("vectors", picks), "lengths": lengths}

    def _make(self, pairs: Preferences, picked: NDArray[np.int64]) -> Batch:
        ids = ids_of(Preferences(pairs.chosen[picked], pairs.rejected[picked]))
        return {
            **self._observations(ids),
            "pair": torch.from_numpy(picked),
            "chosen": torch.from_numpy(np.searchsorted(ids, pairs.chosen[picked])),
            "rejected": torch.from_numpy(np.searchsorted(ids, pairs.rejected[picked])),
            "tie": torch.from_numpy(pairs.tie[picked].copy()),
            "margin": torch.from_numpy(pairs.margin[picked].astype(np.float32)),
        }

    def _with_neighbours(self, seeds: NDArray[np.int64]) -> NDArray[np.int64]:
        """All labelled pairs among the trajectories of the seed pairs: they cost nothing more to encode."""
        return self._index.among(ids_of(Preferences(self.train_pairs.chosen[seeds], self.train_pairs.rejected[seeds])))

    def _plan(self, epoch: int) -> list[NDArray[np.int64]]:
        """For each batch the pairs that it holds some around, or all that it holds."""
        rank, ranks = world_of(self)
        generator = rng(self.seed, epoch)
        if self.batch == "trajectories":
            return self._plan_trajectories(generator)[rank::ranks]
        order = generator.permutation(len(self.train_pairs))
        size = min(self.pairs, max(1, len(order) // ranks))
        count = len(order) // (size * ranks) * ranks
        return list(order[: count * size].reshape(count, size)[rank::ranks])

    def _plan_trajectories(self, generator: np.random.Generator) -> list[NDArray[np.int64]]:
        """Every trajectory once, in batches of like size, as many for each process; all have a pair."""
        _, ranks = world_of(self)
        ids = self._index.ids
        count = -(-len(ids) // (self.trajectories_in_batch * ranks)) * ranks
        batches = []
        for group in np.array_split(generator.permutation(ids), count):
            picked = self._index.among(group)
            # Where labels are few, a batch may hold none: then it gets one of an episode of it, or of any.
            batches.append(
                picked
                if len(picked)
                else self._index.one_of(int(generator.choice(group if len(group) else ids)), generator)
            )
        return batches

    def train_dataloader(self) -> ResumableLoader:
        """Batches in an order that is a function of (seed, epoch, rank)."""
        pairs = self.train_pairs
        if self.batch == "trajectories":
            return ResumableLoader(self._plan, lambda picked: self._make(pairs, picked), len(self._plan(0)))
        return ResumableLoader(
            self._plan, lambda seeds: self._make(pairs, self._with_neighbours(seeds)), len(self._plan(0))
        )

    def val_dataloader(self) -> ResumableLoader | list[Batch]:
        """The test comparisons: each trajectory once, then all pairs (see `Reward.validation_step`)."""
        rank, ranks = world_of(self)
        ids = ids_of(self.test_pairs)
        if not len(ids):
            return []
        size = self.rows_of_a_batch
        groups = [ids[i : i + size] for i in range(0, len(ids), size)]
        # As many for every process, see `TrajectoryDataModule`; what two have seen is told once.
        mine = [groups[i % len(groups)] for i in range(rank, -(-len(groups) // ranks) * ranks, ranks)]

        def make(group: NDArray[np.int64]) -> Batch:
            return {**self._observations(group), "ids": torch.from_numpy(group)}

        return ResumableLoader(lambda _: mine, make, len(mine))

    test_dataloader = val_dataloader
