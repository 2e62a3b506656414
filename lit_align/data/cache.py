"""Decoded frames as one `uint8` memory map: built once, then random windows cost a copy."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from lit_align.data.trajectories import META, TrajectoryDataset, decode_frames
from lit_align.errors import UserError


class FrameCache:
    """All frames and actions of a folder of trajectories, decoded.

    The map lies in `<folder>/.cache`, or under `$LIT_ALIGN_CACHE` when that is set or the folder cannot be written to.
    It is rebuilt when the folder's `meta.json` changes.

    Args:
        folder: A folder of trajectories.
        image_size: Resize frames to this many pixels; None keeps their size.

    Attributes:
        dataset: The trajectories behind it.
        starts: First frame of each episode in the map `(episodes,)`; episode i has `lengths[i] + 1` frames.
        lengths: Env steps of each episode `(episodes,)`.
        size: Height and width of the frames in pixels.
    """

    def __init__(self, folder: str | Path, image_size: int | None = None) -> None:
        self.dataset = TrajectoryDataset(folder)
        self.size = image_size or self.dataset.meta.image_size
        self.lengths: NDArray[np.int64] = self.dataset.episodes["length"].astype(np.int64)
        ends = np.cumsum(self.lengths + 1)
        self.starts: NDArray[np.int64] = ends - self.lengths - 1
        self._shape = (int(ends[-1]), self.size, self.size, 3)
        self._actions_shape = (int(ends[-1]), len(self.dataset.codec.heads))
        # The shards' sizes and times too: another recording may have the same meta.json.
        shards = [(Path(folder) / name).stat() for name in self.dataset.meta.shards]
        content = [(Path(folder) / META).read_text(), [(s.st_size, s.st_mtime_ns) for s in shards]]
        self._key = f"{self.size}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"
        self.path = self._place(Path(folder)) / f"frames-{self._key}.u8"
        if not self.path.exists():
            self._build()
        self.frames: NDArray[np.uint8] = np.memmap(self.path, np.uint8, "r", shape=self._shape)
        self.actions: NDArray[np.uint8] = np.memmap(
            self.path.with_suffix(".actions"), np.uint8, "r", shape=self._actions_shape
        )

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
        needed = int(np.prod(self._shape))
        free = os.statvfs(self.path.parent).f_bavail * os.statvfs(self.path.parent).f_frsize
        if needed > free:
            raise UserError(
                f"decoding '{self.dataset.folder}' takes {needed / 1e9:.1f} GB in '{self.path.parent}', "
                f"where {free / 1e9:.1f} GB are free; "
                "set LIT_ALIGN_CACHE to a folder with more room"
            )
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        aside_actions = aside.with_name(aside.name + ".actions")
        try:
            frames = np.memmap(aside, np.uint8, "w+", shape=self._shape)
            actions = np.memmap(aside_actions, np.uint8, "w+", shape=self._actions_shape)

            def decode(index: int, images: list[bytes]) -> None:
                start, steps = self.starts[index], self.lengths[index]
                pixels = decode_frames(images)
                frames[start : start + steps + 1] = (
                    pixels if pixels.shape[1] == self.size else resize(pixels, self.size)
                )

            # Pillow decodes outside the interpreter's lock; Parquet files are read here alone, for they are not to be
            # shared by threads. A few episodes wait at a time, so that memory stays small.
            waiting: deque[Future[None]] = deque()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for index, (start, steps) in enumerate(zip(self.starts, self.lengths, strict=True)):
                    actions[start : start + steps] = self.dataset.actions(index)
                    waiting.append(pool.submit(decode, index, self.dataset.images(index)))
                    if len(waiting) > 4 * (os.cpu_count() or 1):
                        waiting.popleft().result()
                for future in waiting:
                    future.result()
            os.replace(aside_actions, self.path.with_suffix(".actions"))
            os.replace(aside, self.path)
        finally:
            aside.unlink(missing_ok=True)
            aside_actions.unlink(missing_ok=True)


def resize(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Frames `(T, H, W, 3)` resized to `(T, size, size, 3)` by area (box filter)."""
    return np.stack(
        [np.asarray(PILImage.fromarray(frame).resize((size, size), PILImage.Resampling.BOX)) for frame in frames]
    )
