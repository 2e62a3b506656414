"""SIGKILL at a named place of a run: the whole process group, as a machine's end or a scheduler's would be."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lit_align.files import write_whole
from lit_align.rollout.sampler import Sampler
from lit_align.stages import fsdp

ANYWHERE = ("save_half", "save_between", "save_done", "validation", "epoch_start", "epoch_end", "batch", "fit_end")
PLACES = {"align": (*ANYWHERE, "rollout")}


class KillHere(pl.Callback):
    """Kills its process group when a place is reached the n-th time.

    Args:
        place: `save_half`: half of a checkpoint is written; `save_between`: the old checkpoint has its second name, the
            new one not yet its first; `save_done`: it has; `save_shards`: this process has written half
            of its shard of a sharded one; `rollout`: an episode of play has ended; the rest are hooks.
        nth: which time, from 1.
        rank: of the process that counts.
    """

    def __init__(self, place: str, nth: int = 1, rank: int = 0) -> None:
        self.place, self.left, self.rank = place, nth, rank

    def reach(self, place: str) -> None:
        if place != self.place:
            return
        self.left -= 1
        if self.left == 0:
            os.killpg(0, signal.SIGKILL)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.global_rank != self.rank:
            self.place = "nowhere"
        save, replace, play, write = torch.save, os.replace, Sampler.play, fsdp.save_shards  # type: ignore[attr-defined]

        def save_half(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(content, dict) and "global_step" in content and self.place == "save_half" and self.left == 1:
                whole = io.BytesIO()
                save(content, whole)
                file.write(whole.getvalue()[: whole.tell() // 2])
                file.flush()
            if isinstance(content, dict) and "global_step" in content:
                self.reach("save_half")
            save(content, file, *args, **kwargs)

        def replace_last(source: Any, target: Any) -> None:
            last = Path(target).name == "last.ckpt"
            if last:
                self.reach("save_between")
            replace(source, target)
            if last:
                self.reach("save_done")

        def save_shards(state: Any, checkpoint_id: Path) -> None:
            write(state, checkpoint_id=checkpoint_id)
            if self.place == "save_shards" and self.left == 1:
                shard = checkpoint_id / f"__{trainer.global_rank}_0.distcp"
                os.truncate(shard, shard.stat().st_size // 2)
            self.reach("save_shards")

        def play_and_count(*args: Any, **kwargs: Any) -> Any:
            for trajectory in play(*args, **kwargs):
                self.reach("rollout")
                yield trajectory

        fsdp.save_shards = save_shards  # type: ignore[attr-defined]
        torch.save, os.replace, Sampler.play = save_half, replace_last, play_and_count  # type: ignore[assignment]

    def on_validation_batch_start(self, *_: Any) -> None:
        self.reach("validation")

    def on_train_epoch_start(self, *_: Any) -> None:
        self.reach("epoch_start")

    def on_train_epoch_end(self, *_: Any) -> None:
        self.reach("epoch_end")

    def on_train_batch_end(self, *_: Any) -> None:
        self.reach("batch")

    def on_fit_end(self, *_: Any) -> None:
        self.reach("fit_end")


class Stale(pl.Callback):
    """Process 1 reads the checkpoint before the one it asks for, as a network file system may show it."""

    def __init__(self) -> None:
        load = TorchCheckpointIO.load_checkpoint

        def older(self: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            return load(self, Path(path).with_name("previous.ckpt"), *args, **kwargs)

        if os.environ.get("RANK") == "1":
            TorchCheckpointIO.load_checkpoint = older  # type: ignore[method-assign]


class HangAtEnd(pl.Callback):
    """Starts a process and waits for it when the run breaks off.

    Args:
        told: A file that gets the number of that process when this waits.
    """

    def __init__(self, told: str) -> None:
        self.told = Path(told)

    def on_exception(self, *_: Any) -> None:
        child = subprocess.Popen(["sleep", "900"])
        write_whole(self.told, str(child.pid))
        while child.poll() is None:  # a wait without an end, in which Python's signal handlers run
            time.sleep(0.01)
