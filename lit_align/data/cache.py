"""Decoded frames, vectors and actions as memory maps: built once, then random windows cost a copy."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.trajectories import META, TrajectoryDataset
from lit_align.errors import UserError
from lit_align.models.frames import resize


class FrameCache:
    """All frames, vectors and actions of a folder of trajectories, decoded.

    The maps lie in `<folder>/.cache`, or under `$LIT_ALIGN_CACHE` when that is set or the folder cannot be written to.
    They are rebuilt when the folder's `meta.json` changes.

    Args:
        folder: A folder of trajectories.
        image_size: Resize frames to this many pixels; 0 leaves them out, None keeps their size.

    Raises:
        ValueError: There are no pixels to resize, or nothing would be left to see.

    Attributes:
        dataset: The trajectories behind it.
        frames: Pixels `(rows, size, size, 3)`, uint8, a row for each frame of each episode.
        vectors: Vector observations `(rows, V)`, float32.
        actions: Classes `(rows, heads)`, uint8; the row of an episode's last frame holds none.
        starts: First row of each episode `(episodes,)`; episode i has `lengths[i] + 1` rows.
        lengths: Env steps of each episode `(episodes,)`.
        size: Height and width of the frames in pixels; 0 without pixels.
    """

    def __init__(self, folder: str | Path, image_size: int | None = None) -> None:
        self.dataset = TrajectoryDataset(folder)
        folder = self.dataset.folder
        meta = self.dataset.meta
        self.size = frame_size(folder, meta.image_size, meta.vector_size, image_size)
        self.lengths: NDArray[np.int64] = self.dataset.episodes["length"].astype(np.int64)
        ends = np.cumsum(self.lengths + 1)
        self.starts: NDArray[np.int64] = ends - self.lengths - 1
        rows = int(ends[-1])
        # The shards' sizes and times too: another recording may have the same meta.json.
        shards = [(Path(folder) / name).stat() for name in meta.shards]
        content = [(Path(folder) / META).read_text(), [(s.st_size, s.st_mtime_ns) for s in shards]]
        self._key = f"{self.size}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"
        self.path = self._place(Path(folder)) / f"frames-{self._key}.u8"
        self._parts = {
            ".vectors": _Part(np.float32, (rows, meta.vector_size)),
            ".actions": _Part(np.uint8, (rows, len(self.dataset.codec.heads))),
            ".u8": _Part(np.uint8, (rows, self.size, self.size, 3)),
        }
        if not all(self.path.with_suffix(name).exists() for name, part in self._parts.items() if part.bytes):
            self._build()
        self.vectors, self.actions, self.frames = (
            part.open(self.path.with_suffix(name), "r") for name, part in self._parts.items()
        )

    def beside(self, name: str) -> Path:
        """A place beside the maps for what else is made of these trajectories; other ones have another."""
        return self.path.with_name(f"{name}-{self._key}")

    def _place(self, folder: Path) -> Path:
        chosen = os.environ.get("LIT_ALIGN_CACHE")
        if chosen:
            place = Path(chosen)
        elif os.access(folder, os.W_OK):
            place = folder / ".cache"
        else:
            place = Path.home() / ".cache" / "lit_align"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _build(self) -> None:
        needed = sum(part.bytes for part in self._parts.values())
        free = os.statvfs(self.path.parent).f_bavail * os.statvfs(self.path.parent).f_frsize
        if needed > free:
            raise UserError(
                f"decoding '{self.dataset.folder}' takes {needed / 1e9:.1f} GB in '{self.path.parent}', "
                f"where {free / 1e9:.1f} GB are free; "
                "set LIT_ALIGN_CACHE to a folder with more room"
            )
        aside = {name: self.path.with_name(f".{self.path.stem}.{os.getpid()}{name}") for name in self._parts}
        try:
            vectors, actions, frames = (part.open(aside[name], "w+") for name, part in self._parts.items())

            def decode(index: int, images: list[bytes]) -> None:
                start, steps = self.starts[index], self.lengths[index]
                pixels = self.dataset.decode(index, images)
                frames[start : start + steps + 1] = (
                    pixels if pixels.shape[1] == self.size else resize(pixels, self.size)
                )

            # Pillow decodes outside the interpreter's lock; Parquet files are read here alone, for they are not to be
            # shared by threads. A few episodes wait at a time, so that memory stays small.
            waiting: deque[Future[None]] = deque()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for index, (start, steps) in enumerate(zip(self.starts, self.lengths, strict=True)):
                    actions[start : start + steps] = self.dataset.actions(index)
                    vectors[start : start + steps + 1] = self.dataset.vectors(index)
                    if self.size:
                        waiting.append(pool.submit(decode, index, self.dataset.images(index)))
                    if len(waiting) > 4 * (os.cpu_count() or 1):
                        waiting.popleft().result()
                for future in waiting:
                    future.result()
            for name, part in self._parts.items():
                if part.bytes:
                    os.replace(aside[name], self.path.with_suffix(name))
        finally:
            for path in aside.values():
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Part:
    """One array of the cache on disk."""

    dtype: type
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def open(self, path: Path, mode: Literal["r", "w+"]) -> NDArray[Any]:
        """The memory map; what holds nothing has no file, for a map cannot be empty."""
        if not self.bytes:
            return np.zeros(self.shape, self.dtype)
        # As a plain array: a slice of a memmap costs several times as much, and batches are made of small slices.
        return np.asarray(np.memmap(path, self.dtype, mode, shape=self.shape))


Rows = slice | NDArray[np.int64]


def padded(name: str, picks: Sequence[tuple[FrameCache, Rows]]) -> torch.Tensor:
    """Rows of caches as one tensor `(B, T, ...)`, each pick padded on the right with zeros.

    Args:
        name: `frames`, `vectors` or `actions`.
        picks: A cache and the rows of it, for each of the B.
    """
    return pad_right([getattr(cache, name)[rows] for cache, rows in picks])


def pad_right(parts: Sequence[NDArray[Any]]) -> torch.Tensor:
    """Arrays `(T_i, ...)` as one tensor `(B, T, ...)`, each padded on the right with zeros."""
    longest, rest = max(map(len, parts)), parts[0].shape[1:]
    if 0 in rest:  # such as pixels where there are none
        return torch.from_numpy(np.zeros((len(parts), longest, *rest), parts[0].dtype))
    if min(map(len, parts)) == longest:  # one copy
        return torch.from_numpy(np.concatenate(parts).reshape(len(parts), longest, *rest))
    out = np.zeros((len(parts), longest, *rest), parts[0].dtype)
    for row, part in enumerate(parts):
        out[row, : len(part)] = part
    return torch.from_numpy(out)


def frame_size(folder: str | Path, recorded: int, vector_size: int, wanted: int | None) -> int:
    """The size of the frames that a folder gives when `wanted` is asked for; None asks for the recorded size.

    Raises:
        UserError: There are no pixels to resize, or nothing would be left to see.
    """
    if wanted is None:
        return recorded
    if wanted < 0 or (wanted and not recorded) or not (wanted or vector_size):
        raise UserError(
            f"data.image_size is {wanted}; '{folder}' holds frames of {recorded} pixels and vectors of {vector_size} "
            "numbers: expected a size to resize pixels to, 0 to see vectors alone, or nothing to leave them as they are"
        )
    return wanted
