"""FLOPs: how many a stage's training asks for, and how many a device can do."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from lit_align.stages.fake import Imitation

DTYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16}
PEAKS = {"H200": 989e12, "H800": 989e12, "A800": 312e12, "L40S": 362e12, "4090": 165e12}
"""FLOPs a second in 16 bits, dense, float32 accumulation, as their maker says, of GPUs that Lightning's table lacks, or
has with sparsity or without tensor cores."""


@dataclass
class ModelFlops:
    """FLOPs of training on sequences: those that the model asks for, whatever the implementation does.

    A multiply and an add are two. What gradient checkpointing computes again does not count, nor do attention scores
    outside of the window.

    Attributes:
        frame: Forward and backward of a frame, attention scores aside, counted on the network itself.
        pair: Of a frame and a frame that it attends to: `4 * width` a layer (scores and their use), and twice that
            more where a layer has a backward pass.
        context: Frames in the attention window, the frame itself included.
    """

    frame: float
    pair: float
    context: int

    def of(self, lengths: Tensor) -> float:
        """All FLOPs of sequences of these lengths in frames `(B,)`; padding costs nothing.

        Frame t attends to `min(t, context)` frames, counted from 1.
        """
        n = lengths.to(torch.float64)
        inside = n.clamp_max(self.context)
        pairs = inside * (inside + 1) / 2 + (n - inside) * self.context
        return float(self.frame * n.sum() + self.pair * pairs.sum())


def count_flops(
    trainer: pl.Trainer, stage: Any, batch: dict[str, Any], imitation: Imitation | None = None
) -> ModelFlops:
    """Counts a stage's FLOPs on an imitation of it, one frame of each sequence of a batch at a time.

    Args:
        trainer: The stage's Trainer.
        stage: A stage whose `model` has a `backbone`.
        batch: One of its batches.
        imitation: Of the stage, where it cannot be copied any more.
    """
    imitation = imitation or Imitation(trainer, stage)
    copy: Any = imitation.stage
    backbone, config = copy.model.backbone, copy.model.backbone.config
    backbone.checkpointing = False
    # A frame by itself attends to itself alone: attention is left out here, and counted by the window.
    nothing: dict[Any, Any] = {op: lambda *args, **kwargs: 0 for op in flop_registry if "scaled_dot" in str(op)}
    frames = imitation.batch(batch, steps=1)
    with imitation.running(), FlopCounterMode(display=False, custom_mapping=nothing) as counter:
        imitation.loss(frames).backward()  # type: ignore[no-untyped-call]
    encoders = [e for e in (backbone.vision, backbone.vector) if e is not None]
    trains, passes = any(p.requires_grad for e in encoders for p in e.parameters()), 0
    for layer in backbone.transformer.layers:
        trains = trains or any(p.requires_grad for p in layer.parameters())
        passes += 3 if trains else 1
    return ModelFlops(counter.get_total_flops() / len(frames["lengths"]), 4.0 * config.width * passes, config.context)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOPs a second that a device can do at the most, in the numbers of a Trainer's precision; None if unknown.

    Of a GPU what its maker says (`PEAKS`, else Lightning's table); of a CPU what a large matrix product reaches here.
    """
    dtype = DTYPES.get(precision.partition("-")[0], torch.bfloat16)
    if device.type == "cpu":
        return _matmul_flops(dtype, torch.get_num_threads())
    if device.type != "cuda":
        return None
    if dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else ""
        if known := next((peak for part, peak in PEAKS.items() if part in name), None):
            return known
    with suppress(Exception):  # names that the table's reader does not expect
        return get_available_flops(device, dtype)
    return None


@cache
def _matmul_flops(dtype: torch.dtype, threads: int) -> float:
    """The quickest of as many matrix products as fit into 0.3 s, two at the least; `threads` tells caches apart."""
    size, best, began = 256, float("inf"), time.perf_counter()
    while True:
        one, other = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
        for _ in range(2):  # the first one wakes up threads and memory
            start = time.perf_counter()
            one @ other
            took = time.perf_counter() - start
            best = min(best, took / size**3)
        if time.perf_counter() - began > 0.3:
            return 2 / best
        if took < 0.03:
            size *= 2
