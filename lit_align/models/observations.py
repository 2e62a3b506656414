"""What a world shows, as a caller has it: pixels, a vector or both, of one world or of many. NumPy alone is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_align.errors import UserError
from lit_align.models.frames import is_tensor, kind_of, read_frames

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Array = NDArray[Any] | Tensor
    Frames = Array | Image | list[Array] | list[Image]
    Observation = Frames | dict[str, Frames]
    Worlds = Sequence[int] | Sequence[bool] | NDArray[Any] | Tensor


@dataclass(frozen=True)
class Seen:
    """An observation that was checked.

    Attributes:
        frames: `(B, size, size, 3)`, uint8, an array or a tensor; size is 0 where there are no pixels.
        vectors: `(B, V)`, float32, an array or a tensor; V is 0 where there is no vector.
        single: Whether it was of one world, without a batch dimension.
    """

    frames: Any
    vectors: Any
    single: bool


def read(observation: Observation, image_size: int, vector_size: int, who: str = "the agent") -> Seen:
    """Checks an observation; frames of another size are resized by area.

    Args:
        observation: Frames (see `lit_align.models.frames.read_frames`) or vectors `(V,)` or `(B, V)`, floats; or a dict
            of both, `{"pixels": ..., "vector": ...}`.
        image_size: Height and width of the frames that the network sees; 0 if it sees none.
        vector_size: Numbers in the vector that it sees; 0 if it sees none.
        who: Who sees it, said in errors.

    Raises:
        ValueError: It is not what the network sees.
    """
    parts = observation if isinstance(observation, dict) else {"pixels" if image_size else "vector": observation}
    wanted = [name for name, size in (("pixels", image_size), ("vector", vector_size)) if size]
    if sorted(parts) != wanted:
        raise UserError(
            f"the observation holds {sorted(parts)}; {who} sees {wanted}: give them as "
            '{"pixels": ..., "vector": ...}, and nothing else'
        )
    read = {}
    if image_size:
        read["pixels"] = read_frames(parts["pixels"], image_size, who)
    if vector_size:
        read["vector"] = _read_vectors(parts["vector"], vector_size, who)
    found = {name: "one world" if single else f"{len(part)} worlds" for name, (part, single) in read.items()}
    if len(set(found.values())) > 1:
        raise UserError(f"pixels is of {found['pixels']} and vector of {found['vector']}; expected as many of both")
    rows, single = read[wanted[0]]
    frames = read["pixels"][0] if image_size else np.zeros((len(rows), 0, 0, 3), np.uint8)
    vectors = read["vector"][0] if vector_size else np.zeros((len(rows), 0), np.float32)
    return Seen(frames, vectors, single)


def _read_vectors(part: Any, size: int, who: str) -> tuple[Any, bool]:
    """Vectors `(B, V)`, float32, and whether it was one."""
    try:
        part = part.detach() if is_tensor(part) else np.asarray(part)
    except ValueError as error:  # rows that differ in length
        raise UserError(f"vector is no array: {error}; {who} sees ({size},), or (B, {size})") from error
    shape, kind = tuple(part.shape), kind_of(part)
    if shape[-1:] != (size,) or len(shape) > 2 or 0 in shape:
        raise UserError(f"vector is of shape {shape}; {who} sees ({size},), of one world, or (B, {size}), of B worlds")
    if "float" not in kind:
        mend = ".float()" if is_tensor(part) else ".astype(np.float32)"
        raise UserError(f"vector is {kind}; expected floats: convert it by {mend}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found below
        part = part.float() if is_tensor(part) else np.array(part, np.float32)
    if not (part.isfinite() if is_tensor(part) else np.isfinite(part)).all():
        raise UserError("vector holds a value that is not finite")
    return (part[None], True) if len(shape) == 1 else (part, False)


def check_worlds(now: tuple[int, bool], before: tuple[int, bool], what: str) -> None:
    """Raises ValueError unless there are as many worlds, single or in a batch, as before."""
    if now != before:
        told = ["one world" if single else f"a batch of {count}" for count, single in (now, before)]
        raise UserError(f"{what} was given {told[0]} after {told[1]}; call reset() before another number of worlds")


def world_numbers(worlds: Worlds, count: int | None) -> list[int]:
    """The numbers of worlds that are named by their numbers, or by a mask of booleans `(B,)`.

    Args:
        worlds: Which ones.
        count: How many there are, B; None where that is not known yet.

    Raises:
        ValueError: There is no such world.
    """
    named = np.asarray(worlds.cpu() if is_tensor(worlds) else worlds)
    many = "no worlds yet" if count is None else f"{count} world{'s' if count > 1 else ''}"
    if named.dtype == np.bool_ and named.ndim == 1 and count in (None, len(named)):
        return [int(number) for number in np.flatnonzero(named)]
    numbers = named.astype(np.int64) if named.size == 0 else named
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise UserError(f"worlds is {worlds!r}, of {many}; expected a list of numbers, or a mask of one bool a world")
    if count is not None and numbers.size and not (numbers.min() >= 0 and numbers.max() < count):
        raise UserError(f"worlds is {numbers.tolist()}, of {many}; expected numbers from 0 to {count - 1}")
    return [int(number) for number in numbers]


def check_sampling(temperature: float, top_p: float) -> None:
    """Raises ValueError unless actions can be drawn so."""
    if not (temperature >= 0 and 0 < top_p <= 1):  # so written, NaN is refused too
        raise UserError(
            f"temperature is {temperature} and top_p {top_p}; expected a temperature of 0 or more and a top_p above 0 "
            "and up to 1"
        )
