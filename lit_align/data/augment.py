"""Augmentation of frames on the device that trains: one draw for a whole window, so that nothing flickers in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_align.errors import UserError

_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
# Pixels that are worked on at a time: what a CPU's cache holds; elsewhere what keeps the device busy (some 200 MB).
_CPU_CHUNK, _CHUNK = 1 << 17, 1 << 22
_DRAWS = 6


@dataclass
class Augment:
    """Random changes of colour and place, the same for all frames of a window. 0 switches one off.

    Colours come first, in the order of the fields, each step clipped to 0..255; then the shift. VPT changed colours by
    0.2 each (Baker et al. 2022, arXiv 2206.11795).

    Attributes:
        brightness: Colours are multiplied by a factor between 1 - this and 1 + this; VPT's is 0.2.
        contrast: Distances from the frame's mean grey are multiplied by such a factor; VPT's is 0.2.
        saturation: Distances from each pixel's own grey are multiplied by such a factor; VPT's is 0.2.
        hue: Hues are turned by up to this part of the colour circle, either way; VPT's is 0.2.
        shift: Frames are moved by up to this many pixels each way, the edge repeated (DrQ's is 4 at 84 pixels;
            Kostrikov et al. 2020, arXiv 2004.13649).
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    shift: int = 0

    @property
    def on(self) -> bool:
        """Whether it changes anything."""
        return self.recolours or self.shift > 0

    @property
    def recolours(self) -> bool:
        """Whether it changes colours."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    def check(self, image_size: int) -> None:
        """Raises ValueError where a field is out of range for frames of `image_size` pixels."""
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"data.augment.{name} is {getattr(self, name)}; expected 0 to {most}")
        if self.shift < 0 or (self.shift and self.shift >= image_size):
            raise UserError(
                f"data.augment.shift is {self.shift}; expected 0 or more and less than the {image_size} pixels"
            )
        if self.on and not image_size:
            raise UserError("data.augment changes pixels, and the data holds none; leave it out")


def augment(frames: Tensor, how: Augment, generator: torch.Generator | None = None) -> Tensor:
    """Frames of windows, changed at random.

    Args:
        frames: `(B, T, H, W, 3)`, uint8, on any device; they stay as they are.
        how: What is changed, and how much.
        generator: Draws, on the frames' device; None takes torch's own for that device. A window's draws do not depend
            on what is switched on.

    Returns:
        Frames of the same shape, uint8.
    """
    if not how.on or not frames.numel():
        return frames
    drawn = torch.rand(len(frames), _DRAWS, generator=generator, device=frames.device)
    if how.recolours:
        frames = _recolour(frames, how, 2 * drawn[:, :4] - 1)
    if how.shift:
        frames = _move(frames, (drawn[:, 4:] * (2 * how.shift + 1)).long() - how.shift)
    return frames


def _recolour(frames: Tensor, how: Augment, drawn: Tensor) -> Tensor:
    """Colours changed by draws `(B, 4)` in [-1, 1) for brightness, contrast, saturation and hue."""
    flat, out = frames.flatten(0, 1), torch.empty_like(frames)
    per_frame = drawn.repeat_interleave(frames.shape[1], 0)[..., None, None]
    step = max(1, (_CPU_CHUNK if frames.device.type == "cpu" else _CHUNK) // (frames.shape[2] * frames.shape[3]))
    for at in range(0, len(flat), step):
        # Planes: a colour's values side by side, so that each operation runs through memory once.
        planes = flat[at : at + step].movedim(-1, 0).contiguous().float()
        brightness, contrast, saturation, hue = per_frame[at : at + step].unbind(1)
        if how.brightness:
            planes.mul_(1 + how.brightness * brightness).clamp_(0, 255)
        if how.contrast:
            mean = _grey(planes).mean((1, 2), keepdim=True)
            planes.sub_(mean).mul_(1 + how.contrast * contrast).add_(mean).clamp_(0, 255)
        if how.saturation:
            grey = _grey(planes)
            planes.sub_(grey).mul_(1 + how.saturation * saturation).add_(grey).clamp_(0, 255)
        if how.hue:
            planes = _turn(planes, 6 * how.hue * hue)
        out.flatten(0, 1)[at : at + step] = planes.round_().to(torch.uint8).movedim(0, -1)
    return out


def _grey(planes: Tensor) -> Tensor:
    """Brightness to the eye `(N, H, W)` of planes `(3, N, H, W)`."""
    return _GREY[0] * planes[0] + _GREY[1] * planes[1] + _GREY[2] * planes[2]


def _turn(planes: Tensor, angle: Tensor) -> Tensor:
    """Planes `(3, N, H, W)` with hues turned by an angle `(N, 1, 1)` in sixths of the circle, the rest of HSV kept."""
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    divisor = chroma.clamp_min(1e-6)  # of a grey, whose hue does not count
    hue = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(value == red, (green - blue) / divisor, hue).add_(angle).remainder_(6)
    # How far each colour lies above the least: by the whole chroma over a third of the circle, not at all over another.
    turned = (hue - hue.new_tensor((3.0, 2.0, 4.0)).view(3, 1, 1, 1)).abs_()
    turned[0].sub_(1)
    turned[1:].neg_().add_(2)
    return turned.clamp_(0, 1).mul_(chroma).add_(least)


def _move(frames: Tensor, by: Tensor) -> Tensor:
    """Frames whose pixel (y, x) shows what was at (y, x) + `by` `(B, 2)`, whole pixels; the edge is repeated."""
    count, steps, height, width, colours = frames.shape
    rows = (torch.arange(height, device=by.device) + by[:, :1]).clamp_(0, height - 1)
    columns = (torch.arange(width, device=by.device) + by[:, 1:]).clamp_(0, width - 1)
    row_bytes = (columns[..., None] * colours + torch.arange(colours, device=by.device)).flatten(1)
    places = (rows[..., None] * (width * colours) + row_bytes[:, None]).flatten(1)
    return frames.flatten(2).gather(2, places[:, None].expand(-1, steps, -1)).view(frames.shape)
