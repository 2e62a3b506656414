"""A step of pre-training, as `lit-align pretrain` takes it and as a bare PyTorch loop does, on the same batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from lit_align.commands.stage import run_stage
from lit_align.models.agent import Agent, gather_log_prob
from lit_align.spaces import ActionCodec, gamepad_space
from tools.bench._quiet import silence
from tools.bench._race import Timing

CODEC = ActionCodec(gamepad_space())
DISTINCT = 4


class Laps:
    """A loader of ready-made batches with a stopwatch: from the asking for one batch to the asking for a later one.

    Between the two lie exactly `steps` optimizer steps, whether the loop fetches ahead or not.

    Args:
        batches: Handed out again and again.
        warm_up: Steps before the watch starts.
        steps: Steps that are timed.
    """

    last: Timing = {}
    """What the watch of the last pass said, of any loader: a run through the command line returns nothing."""

    def __init__(self, batches: list[dict[str, Any]], warm_up: int, steps: int) -> None:
        self.batches, self.warm_up, self.steps = batches, warm_up, steps

    def __len__(self) -> int:
        """One batch more than is timed: it is asked for when the last timed step is over."""
        return self.warm_up + self.steps + 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(len(self)):
            if i == self.warm_up:
                wall, cpu = time.perf_counter(), time.process_time()
            if i == self.warm_up + self.steps:
                Laps.last = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            yield self.batches[i % len(self.batches)]


class FixedBatches(pl.LightningDataModule):
    """Batches of noise in memory, in the place of a `TrajectoryDataModule`: reading data has no part in the race.

    Args:
        image_size: Of the frames, in pixels.
        windows: Sequences in a batch.
        frames: Frames in a sequence.
        warm_up: Steps before the clock runs.
        steps: Steps that are timed.
        seed: Of the noise.
    """

    def __init__(
        self, image_size: int = 64, windows: int = 8, frames: int = 32, warm_up: int = 2, steps: int = 20, seed: int = 0
    ) -> None:
        super().__init__()
        self.codec, self.image_size, self.vector_size = CODEC, image_size, 0
        self.folders: list[str] = ["noise"]
        noise = torch.Generator().manual_seed(seed)
        sizes = torch.tensor(CODEC.sizes)
        shape = (windows, frames)
        batches = [
            {
                "frames": torch.randint(256, (*shape, image_size, image_size, 3), generator=noise, dtype=torch.uint8),
                "vectors": torch.zeros(*shape, 0),
                "actions": (torch.rand((*shape, len(sizes)), generator=noise) * sizes).to(torch.uint8),
                "lengths": torch.full((windows,), frames),
            }
            for _ in range(DISTINCT)
        ]
        self.laps = Laps(batches, warm_up, steps)

    def train_dataloader(self) -> Laps:
        """The noise, with its stopwatch."""
        return self.laps

    def val_dataloader(self) -> list[dict[str, Any]]:
        """Nothing."""
        return []


def through_lightning(
    config: dict[str, Any], data: dict[str, Any], seed: int, processes: dict[str, Any] | None = None
) -> Timing:
    """Times steps of `lit-align pretrain fit`: its module, Trainer, callbacks, logger and checkpoints.

    Args:
        config: What a YAML file would hold: `model` and `trainer`.
        data: Arguments of `FixedBatches`.
        seed: Of the run.
        processes: The Trainer's `devices` and `strategy`, where this process is one of several.
    """
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_val_batches": 0}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    content = {**config, "trainer": {**config.get("trainer", {}), **trainer, **quiet}, "data": data}
    content["trainer"] |= processes or {}
    Laps.last = {}
    with tempfile.TemporaryDirectory() as folder, silence():
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        classes = ("lit_align.stages.pretrain:Pretrain", "tools.bench._imitation:FixedBatches")
        run_stage("pretrain", ["fit", f"--config={path}", f"--out={folder}/run", f"--seed={seed}"], classes)
    assert Laps.last, "the run ended before its last timed step"
    return Laps.last


def bare_loop(agent: Agent, optimizer: Any, schedule: Any, batches: Laps, clip: float | None) -> Timing:
    """Times the same steps without Lightning: loss, backward, clipping, optimizer, schedule; nothing is logged."""
    for batch in batches:
        log_probs = agent(batch["frames"])
        mask = torch.arange(log_probs.shape[1]) < batch["lengths"][:, None]
        loss = -(gather_log_prob(log_probs, batch["actions"]) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(agent.parameters(), clip)
        optimizer.step()
        schedule.step()
    return Laps.last
