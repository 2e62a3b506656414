"""An episode as rows of a table, a row for each frame, and back."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image as PILImage

from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError


@cache
def arrow_schema(pixels: bool = True, vector: bool = False) -> pa.Schema:
    """The table's schema; its metadata tells `datasets` that `frame` is an image.

    Args:
        pixels: Whether there is a column `frame`.
        vector: Whether there is a column `vector`.
    """
    from datasets import Features, Image, List, Value

    seen: dict[str, Any] = {"frame": Image()} if pixels else {}
    if vector:
        seen["vector"] = List(Value("float32"))
    features = Features(
        {
            "episode": Value("int64"),
            "step": Value("int32"),
            **seen,
            "action": List(Value("uint8")),
            "position": List(Value("float32")),
            "reward": Value("float32"),
            "log_prob": Value("float32"),
            "length": Value("int32"),
            "seed": Value("int64"),
            "outcome": Value("string"),
            "reason": Value("string"),
            "player": Value("string"),
            "terminated": Value("bool"),
            "truncated": Value("bool"),
        }
    )
    return features.arrow_schema


def encode(trajectory: Trajectory) -> pa.Table:
    """A trajectory as a table of T + 1 rows.

    Frames become lossless PNG; the last row has no action, reward or log-probability. What the world does not show has
    no column.

    Raises:
        UserError: The rows would not give the episode back.
    """
    trajectory.check_kept()
    pixels, vector = trajectory.frames.shape[1] > 0, trajectory.vectors.shape[1] > 0
    schema = arrow_schema(pixels, vector)
    steps, rows = len(trajectory), len(trajectory) + 1
    log_probs = [None] * rows if trajectory.log_probs is None else [*trajectory.log_probs.tolist(), None]
    columns = {
        "episode": [trajectory.id] * rows,
        "step": range(rows),
        "frame": [{"bytes": _png(frame), "path": None} for frame in trajectory.frames] if pixels else None,
        "vector": list(trajectory.vectors),
        "action": [*trajectory.actions.tolist(), None],
        "position": trajectory.positions.tolist(),
        "reward": [*trajectory.rewards.tolist(), None],
        "log_prob": log_probs,
        "length": [steps] * rows,
        **{
            name: [getattr(trajectory, name)] * rows
            for name in ("seed", "outcome", "reason", "player", "terminated", "truncated")
        },
    }
    return pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)


def _png(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(frame).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_frames(images: list[bytes], size: int) -> NDArray[np.uint8]:
    """Encoded images as pixels `(n, size, size, 3)`, uint8.

    Raises:
        UserError: One is no image that can be read, or of another size.
    """
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    for row, data in enumerate(images):
        try:
            pixels[row] = _pixels(data, size)
        except UserError as error:
            raise UserError(f"the frame of row {row} {error}") from error
        except Exception as error:  # what Pillow raises at a broken file has no common base
            raise UserError(f"the frame of row {row} is no image that can be read ({error})") from error
    return pixels


def _pixels(data: bytes, size: int) -> NDArray[np.uint8]:
    # Other formats of Pillow run other programs, or take long.
    with PILImage.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        if image.size != (size, size):
            raise UserError(f"is of {image.width}x{image.height} pixels; meta.json says {size}x{size}")
        return np.asarray(image.convert("RGB") if image.mode != "RGB" else image)


def decode_vectors(column: pa.ChunkedArray, size: int) -> NDArray[np.float32]:
    """A column of n lists as vectors `(n, size)`, float32.

    Raises:
        UserError: A list has another length, or a number is missing or not finite.
    """
    lists = column.combine_chunks()
    if not pa.types.is_list(lists.type) or not pa.types.is_floating(lists.type.value_type):
        raise UserError(f"the column of vectors is of type {lists.type}; expected lists of numbers")
    lengths = np.diff(lists.offsets.to_numpy())
    if lists.null_count or (lengths != size).any():
        row = int(np.flatnonzero(lengths != size)[0]) if (lengths != size).any() else 0
        raise UserError(f"the vector of row {row} has {lengths[row]} numbers; meta.json says {size}")
    numbers: NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    vectors = numbers.astype(np.float32).reshape(-1, size)  # a missing number becomes NaN
    if not np.isfinite(vectors).all():
        row, at = np.argwhere(~np.isfinite(vectors))[0]
        raise UserError(f"number {at} of the vector of row {row} is {vectors[row, at]}; expected finite numbers")
    return vectors
