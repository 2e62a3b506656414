"""The LightningDataModule of `prefer`: comparisons, what was done in them, and how likely the reference found it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.cache import pad_right, padded
from lit_align.data.loader import Batch
from lit_align.data.pairs import PreferenceDataModule
from lit_align.errors import UserError
from lit_align.files import write_whole

EPISODES = 16
"""Trajectories of like length that the reference sees at a time."""

LogProbs = Callable[[Batch], torch.Tensor]


class PolicyPairsDataModule(PreferenceDataModule):
    """Comparisons of trajectories, for a policy. A batch holds each trajectory once and every labelled pair among them.

    Of a trajectory it holds the steps at which something was done, so the frame after the last action is left out:
    `frames` `(U, T, H, W, 3)`, uint8, `vectors` `(U, T, V)`, float32, `actions` `(U, T, heads)`, uint8, and `reference`
    `(U, T)`, float32, the log-probability of each action under the reference policy (0 until `store_reference`), all
    padded on the right; `lengths` `(U,)` counts env steps. The rest is as in `PreferenceDataModule`.

    Attributes:
        reference: Log-probabilities under the reference policy, a row for each row of the frame cache `(rows,)`.
    """

    reference: NDArray[np.float32]
    _stored: dict[str, Any] | None

    def setup(self, stage: str | None = None) -> None:
        """Opens the memory maps."""
        super().setup(stage)
        self.reference, self._stored = np.zeros(len(self.cache.actions), np.float32), None

    def _observations(self, ids: NDArray[np.int64]) -> Batch:
        picks = [(cache, slice(rows.start, rows.stop - 1)) for cache, rows in self._picks(ids.tolist())]
        batch: Batch = {name: padded(name, picks) for name in ("frames", "vectors", "actions")}
        batch["reference"] = pad_right([self.reference[rows] for _, rows in picks])
        batch["lengths"] = torch.tensor([rows.stop - rows.start for _, rows in picks])
        return batch

    def store_reference(self, facts: dict[str, Any], load: Callable[[], LogProbs]) -> None:
        """Has batches hold the reference's log-probabilities from now on; computed once and kept beside the frames.

        The process of rank 0 computes them, then one of each machine that does not see its files; all map them.

        Args:
            facts: What decides them beside the trajectories, as plain JSON: they are computed anew when it changes.
            load: Loads the reference, and gives what computes its log-probabilities of a batch's actions `(U, T)`,
                float32, on the CPU; not called where they are there already.
        """
        if self._stored == facts:
            return
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        place, trainer = self.cache.beside(f"reference-{key}").with_suffix(".json"), self.trainer
        for mine in (trainer is None or trainer.is_global_zero, trainer is None or trainer.local_rank == 0):
            if mine and read_rows(place, len(self.reference)) is None:
                write_rows(place, self._compute(load()), facts)
            if trainer is not None:
                trainer.strategy.barrier("reference log-probabilities")
        found = read_rows(place, len(self.reference))
        if found is None:
            raise UserError(f"{place} was written and cannot be read again; set LIT_ALIGN_CACHE to another folder")
        self.reference, self._stored = found, dict(facts)

    def _compute(self, log_probs: LogProbs) -> NDArray[np.float32]:
        cache, out = self.cache, np.zeros(len(self.reference), np.float32)
        order = np.argsort(cache.lengths, kind="stable")
        for at in range(0, len(order), EPISODES):
            part = order[at : at + EPISODES]
            found = log_probs(self._observations(cache.dataset.episodes["id"][part])).numpy()
            for i, row in zip(part, found, strict=True):
                out[cache.starts[i] : cache.starts[i] + cache.lengths[i]] = row[: cache.lengths[i]]
        if not np.isfinite(out).all():
            raise UserError("the reference policy gives log-probabilities that are not finite; use another reference")
        return out


def write_rows(place: Path, values: NDArray[np.float32], facts: dict[str, Any]) -> None:
    """Writes values beside `place`, then `place` itself: what they are and their checksum, as JSON.

    The values' file is named after what it holds, so that two runs that write at a time do not harm each other.
    """
    content = values.tobytes()
    digest = hashlib.sha256(content).hexdigest()
    write_whole(_values_of(place, digest), content)
    write_whole(place, json.dumps({"rows": len(values), "sha256": digest, **facts}, indent=2) + "\n")


def read_rows(place: Path, rows: int) -> NDArray[np.float32] | None:
    """The values that `write_rows` wrote, as a memory map `(rows,)`; None if they are not there, or not whole."""
    try:
        digest = json.loads(place.read_text())["sha256"]
        path = _values_of(place, digest)
        with path.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == digest
        return np.memmap(path, np.float32, "r", shape=(rows,)) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _values_of(place: Path, digest: str) -> Path:
    return place.with_name(f"{place.stem}-{digest[:16]}.f32")
