"""Frames as a caller has them, NumPy, torch or Pillow, of any square size, as the frames that a network sees."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from lit_align.errors import UserError


def resize(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Frames `(T, H, W, 3)` resized to `(T, size, size, 3)` by area (box filter); in training and in acting alike."""
    return np.stack(
        [np.asarray(PILImage.fromarray(frame).resize((size, size), PILImage.Resampling.BOX)) for frame in frames]
    )


def is_tensor(part: Any) -> TypeGuard[Any]:
    """Whether it is a torch tensor; where torch was never imported there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(part, torch.Tensor)


def kind_of(part: Any) -> str:
    """The name of an array's or a tensor's type, such as `uint8`."""
    return str(part.dtype).removeprefix("torch.") if is_tensor(part) else str(part.dtype.name)


def read_frames(part: Any, size: int, who: str = "the agent") -> tuple[Any, bool]:
    """Frames of one world or of many, resized by area where they are of another size.

    Args:
        part: `(H, W, 3)` or `(B, H, W, 3)`, uint8, RGB, square: an array, a tensor, a Pillow image; or a list of frames
            `(H, W, 3)`, which may differ in size.
        size: Height and width that the network sees.
        who: Who sees it, said in errors.

    Returns:
        `(B, size, size, 3)`, uint8, and whether it was one frame. A tensor stays a tensor on its device (one of another
        size goes over the CPU, so that it is resized as in training); everything else becomes an array.

    Raises:
        ValueError: It is of another type or shape; the message says how to mend it.
    """
    if isinstance(part, list | tuple):
        read = [read_frames(one, size, who) for one in part]
        if not read or not all(single for _, single in read):
            raise UserError(f"pixels is a list of {len(read)}; expected a frame (H, W, 3) of each world in it")
        return np.concatenate([_array(frames) for frames, _ in read]), False
    if isinstance(part, PILImage.Image):
        part = np.asarray(part if part.mode == "RGB" else part.convert("RGB"))  # as recordings are read
    elif not is_tensor(part):
        part = np.asarray(part)
    _check(part, who)
    single = part.ndim == 3
    frames = part[None] if single else part
    if frames.shape[1] == size:
        return frames if is_tensor(frames) else _writable(frames), single
    small = resize(_array(frames), size)
    return (sys.modules["torch"].from_numpy(small).to(frames.device) if is_tensor(frames) else small), single


def _array(frames: Any) -> NDArray[Any]:
    array: NDArray[Any] = frames.detach().cpu().numpy() if is_tensor(frames) else np.asarray(frames)
    return np.ascontiguousarray(array)


def _writable(frames: NDArray[Any]) -> NDArray[Any]:
    """In C order, and not read-only, of which torch would warn."""
    return np.require(frames, requirements=["C", "W"])


def _check(part: Any, who: str) -> None:
    """Raises ValueError with all that is wrong with the type and the shape of frames."""
    shape, kind = tuple(part.shape), kind_of(part)
    mend = [*_mend_shape(shape, is_tensor(part)), *([] if kind == "uint8" else [_mend_type(part, kind)])]
    if mend:
        raise UserError(
            f"pixels is {kind} of shape {shape}; {who} sees uint8 RGB of shape (H, W, 3), of one world, or (B, H, W, 3)"
            f", of B worlds, square: {'; '.join(mend)}"
        )


def _mend_shape(shape: tuple[int, ...], tensor: bool) -> list[str]:
    if 0 in shape:
        return ["there is nothing in it"]
    if len(shape) in (3, 4) and shape[-1] == 3:
        if shape[-3] == shape[-2]:
            return []
        return [
            f"it is {shape[-2]} wide and {shape[-3]} high: cut, pad or stretch it to a square, as the recordings were "
            "that it learned from"
        ]
    if len(shape) in (3, 4) and shape[-3] in (1, 3, 4) and min(shape[-2:]) > 4:
        order = "(1, 2, 0)" if len(shape) == 3 else "(0, 2, 3, 1)"
        return [f"channels come first: put them last by .{'permute' if tensor else 'transpose'}{order}"]
    if len(shape) in (3, 4) and shape[-1] == 4:
        return ["it has a fourth channel: drop it by [..., :3] if it is RGBA"]
    grey = len(shape) == 2 or (len(shape) == 3 and shape[-1] > 4)
    if grey or (len(shape) in (3, 4) and shape[-1] == 1):
        new = "[..., None]" if grey else ""
        return [f"it is grey: repeat its channel by {new}.{'repeat_interleave' if tensor else 'repeat'}(3, -1)"]
    return [f"it has {len(shape)} dimensions" + (f" and {shape[-1]} channels" if len(shape) in (3, 4) else "")]


def _mend_type(part: Any, kind: str) -> str:
    cast = ".to(torch.uint8)" if is_tensor(part) else ".astype(np.uint8)"
    if kind == "bool":
        return f"0 and 1 are black: scale it by {cast} * 255"
    if not kind.startswith(("float", "bfloat", "int", "uint")):
        return "expected numbers"
    if 0 in part.shape:
        return f"convert it by {cast}"
    values = part.float() if is_tensor(part) else part
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):
        return f"its values go from {low:g} to {high:g}: scale them to 0 to 255, then {cast}"
    if "float" in kind and high == 0:
        return (
            f"its values are all 0, which does not tell their range: scale frames of 0 to 1 by (frames * 255).round()"
            f"{cast}, convert frames of 0 to 255 by {cast}"
        )
    if "float" in kind and high <= 1:
        return f"its values go up to {high:g}: scale them by (frames * 255).round(){cast}"
    return f"its values fit: convert them by {cast}"
