"""Checkpoints that a kill cannot harm and that bring a run back as if it had never stopped."""

from __future__ import annotations

import io
import os
import pickle
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_align.errors import UserError
from lit_align.rollout.together import exchanged
from lit_align.stages.metrics_csv import MetricsCSV
from lit_align.stages.torn import LAST, keep_before

KEY = "lit_align_run"
VERSION = "pytorch-lightning_version"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, reaches the disk, renames: a reader finds the old checkpoint or the new one, whole.

    `last.ckpt` leaves the one before it as `previous.ckpt`, in case a disk loses what it said it had written.

    Attributes:
        instead: Paths that are loaded in place of others: process 0 chooses for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.instead: dict[str, str] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves to a local path atomically; other file systems are left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with aside.open("wb") as file:
                _save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST:
                keep_before(target)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut too
        finally:
            os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Loads tensors and plain types only, whatever the caller asks: a checkpoint cannot run code.

        Raises:
            UserError: The file is none, was cut short, or holds more than tensors and plain types.
        """
        path = self.instead.get(str(path), path)
        if Path(path).is_dir():
            raise UserError(
                f"{path} is a folder of shards, which the strategy that wrote it reads; expected a file: resume with "
                "--config configs/trainer/fsdp.yaml, on any number of processes"
            )
        try:
            content = super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
            reason = (str(error).splitlines() or [""])[0].split(". ")[0] or type(error).__name__
            raise UserError(
                f"{path} is not a checkpoint, was cut short, or holds code, which is not run ({reason})"
            ) from error
        if not isinstance(content, dict) or VERSION not in content:
            raise UserError(f"{path} holds no checkpoint of a stage; expected one of its checkpoints/ folder")
        return content


def _save(checkpoint: dict[str, Any], file: Any) -> None:
    """`torch.save`, whose own error does not say that the disk is full, or that it was told to stop."""
    faults: list[BaseException] = []

    class Watched(io.RawIOBase):
        def write(self, data: Any) -> int:
            try:
                return int(file.write(data))
            except BaseException as error:  # Ctrl-C and SIGTERM raise here too
                faults.append(error)
                raise

        def flush(self) -> None:
            file.flush()

        def writable(self) -> bool:
            return True

    try:
        torch.save(checkpoint, Watched())  # type: ignore[arg-type]
    except RuntimeError as error:
        if faults:
            raise faults[0] from error
        raise


class RunState(Callback):
    """What Lightning's checkpoints lack: every rank's random state, seconds trained, and rows logged.

    After a resume it also sees to it that a learning rate (or weight decay, ...) that was changed on the command line
    counts, where the optimizer's own state would bring back the old one.

    Args:
        on_begin: called when all is set up and training begins.
        on_interrupt: called when Ctrl-C has been taken and the Trainer begins to shut down.
    """

    def __init__(
        self, on_begin: Callable[[], None] = lambda: None, on_interrupt: Callable[[], None] = lambda: None
    ) -> None:
        self.on_begin, self.on_interrupt = on_begin, on_interrupt
        self.checkpoint: Path | None = None  # what this process would go on from
        self.seconds_before = 0.0
        self.training = False
        self._began = time.monotonic()
        self._configured: list[dict[str, Any]] = []
        self._loaded: dict[str, Any] | None = None
        self._rng: dict[str, Any] | None = None
        self._places: list[Any] = []

    @property
    def seconds(self) -> float:
        """Seconds of this run so far, those before the checkpoint it resumed from included."""
        return self.seconds_before + time.monotonic() - self._began

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has all processes go on from what process 0 chose; the first place where they can talk to each other."""
        chosen = exchanged(trainer, None if self.checkpoint is None else str(self.checkpoint))
        if len({each is None for each in chosen}) > 1:
            told = ", ".join(f"process {rank}: {each or 'nothing'}" for rank, each in enumerate(chosen))
            raise UserError(
                f"processes do not find the same checkpoint to go on from ({told}); expected a folder that all of them "
                "see alike: start again when the file system shows every machine the same"
            )
        saver = trainer.strategy.checkpoint_io
        if chosen[0] is not None and isinstance(saver, AtomicCheckpointIO):
            saver.instead = {str(self.checkpoint): chosen[0]}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._configured = [_numbers(group) for optimizer in trainer.optimizers for group in optimizer.param_groups]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        states = exchanged(trainer, rng_state())
        rows = sum(logger.rows for logger in trainer.loggers if isinstance(logger, MetricsCSV))
        checkpoint[KEY] = {"rng": states, "configured": self._configured, "seconds": self.seconds, "rows": rows}
        checkpoint[KEY]["wandb"] = next((found for each in trainer.loggers if (found := wandb_id(each))), None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: D102
        self._loaded = checkpoint.get(KEY)
        kept = self._loaded or {}
        steps = exchanged(trainer, (checkpoint["global_step"], kept.get("seconds")))  # no two are saved at one time
        if len(set(steps)) > 1:
            told = ", ".join(f"process {rank}: {step}" for rank, (step, _) in enumerate(steps))
            raise UserError(
                f"processes read different checkpoints where all of them asked for one (optimizer steps: {told}); the "
                "file system shows some of them an older file: start again when it shows every machine the same"
            )
        self.seconds_before = self._loaded["seconds"] if self._loaded else 0.0
        self._places = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self.training = True
        self.on_begin()
        if self._loaded is None:
            return
        states = self._loaded["rng"]
        # With another number of processes there is no state to go on from: the seeds of the new ranks stand.
        self._rng = states[trainer.global_rank] if len(states) == trainer.world_size else None
        # Lightning gives a loader its place back inside an epoch only; from a border it would serve epoch 0 again.
        loader = trainer.train_dataloader
        if loader is not None and len(self._places) == 1 and hasattr(loader, "load_state_dict"):
            loader.load_state_dict(self._places[0])
        _apply_changes(trainer, self._loaded["configured"], self._configured)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.rewind(self._loaded["rows"], trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        if isinstance(exception, KeyboardInterrupt):
            self.on_interrupt()

    # Whichever comes first after a resume: at an epoch's border before its loader is opened (which draws a number),
    # inside an epoch after that.
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._restore_rng()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: D102
        self._restore_rng()

    def _restore_rng(self) -> None:
        if self._rng is not None:
            set_rng_state(self._rng)
            self._rng = None


def validation_is_due(trainer: Trainer) -> bool:
    """Whether Lightning validates right after the training batch that ends; asked in `on_train_batch_end`.

    A checkpoint saved there would lose that validation to a kill: a run that goes on from it does not validate first.
    Called by every process alike.
    """
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    due = bool(loop._should_check_val_fx(fetcher)) and not loop._skip_next_val
    if getattr(trainer, "_val_check_time_interval", None) is None:
        return due
    return bool(trainer.strategy.reduce_boolean_decision(due, all=False))  # by the clock, of which each has its own


class _InsideEpochs(ModelCheckpoint):
    """Saves every so many steps; where a validation is due then, after it, and not at an epoch's last batch.

    The epoch's end saves too, after its validation.
    """

    _after_validation = False

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._after_validation = False
        if trainer.is_last_batch or trainer.global_step % self._every_n_train_steps:
            return
        if not validation_is_due(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            return
        self._after_validation = not trainer.fit_loop._should_accumulate()  # gradients that no checkpoint holds

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self._after_validation and not self._should_skip_saving_checkpoint(trainer):
            with torch.inference_mode(False):  # Lightning validates in it
                self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        self._after_validation = False


def last_checkpoint(folder: Path, every_n_steps: int | None) -> list[ModelCheckpoint]:
    """Callbacks that keep `folder/last.ckpt`: at each epoch's end, and every so many optimizer steps if given."""
    same: dict[str, Any] = {"dirpath": folder, "filename": "last", "save_top_k": 1, "enable_version_counter": False}
    callbacks = [ModelCheckpoint(**same, every_n_epochs=1, save_on_train_epoch_end=True)]
    if every_n_steps:
        callbacks.append(_InsideEpochs(**same, every_n_train_steps=every_n_steps))
    return callbacks


def wandb_id(logger: Any) -> str | None:
    """The id of the Weights & Biases run that a logger logs to; None of other loggers."""
    return str(logger.version) if type(logger).__name__.startswith("Wandb") and logger.version else None


def rng_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global generators, as types that a safe load accepts."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss_next],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts back what `rng_state` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _numbers(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if isinstance(value, (bool, int, float))} | (
        {"betas": list(group["betas"])} if "betas" in group else {}
    )


def _apply_changes(trainer: Trainer, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """Writes the optimizer settings that differ from those of the saved run into the restored optimizers."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    if not len(before) == len(now) == len(groups):
        return
    for group, old, new in zip(groups, before, now, strict=True):
        for key, value in new.items():
            if old.get(key) == value or key in ("lr", "initial_lr"):
                continue
            group[key] = tuple(value) if isinstance(value, list) else value
    # `initial_lr` is there when a schedule is, and then `lr` is what the schedule made of it.
    name = "initial_lr" if all("initial_lr" in group for group in now) else "lr"
    factors = [new[name] / old[name] if old.get(name) else 1.0 for old, new in zip(before, now, strict=True)]
    if all(factor == 1.0 for factor in factors):
        return
    for group, factor in zip(groups, factors, strict=True):
        group["lr"] *= factor
        if "initial_lr" in group:
            group["initial_lr"] *= factor
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if hasattr(schedule, "base_lrs"):
            schedule.base_lrs = [group["initial_lr"] for group in schedule.optimizer.param_groups]
