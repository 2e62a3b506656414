"""Training frames a second with a recording behind it: Parquet, cache, loader, Trainer, GPU."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from lit_align.data.modules import TrajectoryDataModule
from lit_align.data.trajectories import TrajectoryWriter
from lit_align.data.trajectory import Trajectory
from lit_align.models.config import BackboneConfig
from lit_align.stages.optim import OptimizerConfig
from lit_align.stages.pretrain import Pretrain
from lit_align.stages.training import TrainConfig
from tools.bench._gpu import CODEC, wait
from tools.bench._quiet import silence


def made_up_recording(folder: Path, episodes: int, steps: int, size: int) -> Path:
    """A folder of trajectories: smooth pictures that move, so that PNG has the work that it has with real play."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size // 8 + 1, size // 8 + 1, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    with TrajectoryWriter(folder, CODEC, fps=10.0, env="made-up") as writer:
        for episode in range(episodes):
            shifts = rng.integers(0, size, (steps + 1, 2))
            frames = np.stack([np.roll(picture, tuple(shift), (0, 1))[:size, :size] for shift in shifts])
            actions = rng.integers(0, CODEC.sizes, (steps, len(CODEC.sizes))).astype(np.uint8)
            writer.write(Trajectory(frames=frames, actions=actions, id=episode, player="noise"))
    return folder


class Watch(pl.Callback):
    """Frames and seconds from the end of the warm-up to the end of training.

    Args:
        warm_up: Batches before the clock runs, compilation among them.
    """

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.batches, self.frames, self.wall = 0, 0, 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reads the clock when the device is idle."""
        self.batches += 1
        if self.batches == self.warm_up:
            wait(module.device)
            self.wall = time.perf_counter()
        elif self.batches > self.warm_up:
            self.frames += int(batch["lengths"].sum())

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Stops the clock."""
        wait(module.device)
        self.wall = time.perf_counter() - self.wall


def frames_per_second(
    config: BackboneConfig, recording: Path, windows: int, window: int, steps: int, device: torch.device, compiled: bool
) -> float:
    """Trains `Pretrain` on a recording and returns frames a second, without the warm-up."""
    torch.manual_seed(0)
    warm_up = 3
    data = TrajectoryDataModule([str(recording)], window=window, batch_size=windows, val_fraction=0.0)
    stage = Pretrain(backbone=config, optimizer=OptimizerConfig(lr=1e-4), train=TrainConfig(compile=compiled))
    watch = Watch(warm_up)
    with tempfile.TemporaryDirectory() as folder, silence():
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed",
            max_steps=warm_up + steps,
            max_epochs=-1,
            gradient_clip_val=1.0,
            callbacks=[watch],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(stage, datamodule=data)
    return watch.frames / watch.wall
