"""`--dry_run`: everything is set up as for a run, shown, and stopped before the first step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_align.errors import UserError
from lit_align.stages.fake import Imitation
from lit_align.stages.memory import STEP, Memory, NotKnown, of_run
from lit_align.stages.throughput import resident

SMALLER_BATCHES = {
    "batch_size": "a smaller --data.batch_size",
    "pairs": "a smaller --data.pairs",
    "minibatches": "a larger --data.minibatches",
}
"""The option of each data module that makes its batches smaller."""


class DryRunDone(Exception):
    """Carries the summary out of the Trainer."""

    def __init__(self, summary: dict[str, Any]) -> None:
        super().__init__("dry run")
        self.summary = summary

    def text(self) -> str:
        """The summary, one line a fact."""
        width = max(map(len, self.summary), default=0)
        return "".join(f"{key:<{width}}  {value}\n" for key, value in self.summary.items())


class DryRun(Callback):
    """Raises DryRunDone where training would begin: model, optimizer and loaders are the real ones by then.

    Memory is told before the network is made; where it would not fit, that is the end.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out how much memory a training step takes."""
        held = resident()
        try:
            imitation = Imitation(trainer, pl_module)
            memory = of_run(imitation)
            hint = flag(memory, imitation)
        except UserError:
            raise
        except Exception as error:  # what cannot be told is no reason to refuse a run
            reason = str(error) if isinstance(error, NotKnown) else f"{type(error).__name__}: {error}".splitlines()[0]
            self._memory = {STEP: f"not known: {reason}"}
            return
        on_cpu, shards = imitation.device.type == "cpu", trainer.strategy.restore_checkpoint_after_setup
        free, need = free_memory(imitation.device), memory.total * (trainer.num_devices if on_cpu else 1)
        self._memory = {**memory.rows(), "less of it with": hint}
        if on_cpu:
            self._memory["of this process (MB)"] = round((held + memory.total) / 1e6, 1)
        if shards:
            self._memory["weights, gradients, optimizer state"] = f"shared out over {trainer.world_size} processes"
        self._memory["free memory (MB)"] = round(free / 1e6, 1)
        if not shards and not trainer.strategy.reduce_boolean_decision(need <= free):  # all processes end, or none
            self._memory["it does not fit"] = "the network was not made, and what comes after was not checked"
            raise DryRunDone(self._summary(trainer, imitation.stage))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects what there is to know."""
        raise DryRunDone(self._summary(trainer, pl_module))

    def _summary(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        summary: dict[str, Any] = {}
        summary |= parameters(getattr(module, "model", module))
        summary |= self._memory
        summary |= self._batch(trainer)
        steps = int(trainer.estimated_stepping_batches)  # reads the loaders, if nothing has
        summary["optimizer steps in an epoch"] = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        summary["optimizer steps in all"] = steps
        summary["processes"] = trainer.world_size
        return summary

    def _batch(self, trainer: Trainer) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "dry_run_summary"):
            return dict(data.dry_run_summary())
        if hasattr(data, "fill"):  # batches come from play, and there was none yet
            return {"batches": "made from episodes played at the start of each epoch"}
        batch = next(iter(data.train_dataloader()))
        items = batch.items() if isinstance(batch, dict) else enumerate(batch)
        tensors = {f"batch {key}": value for key, value in items if isinstance(value, torch.Tensor)}
        return {
            key: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for key, value in tensors.items()
        }


def parameters(module: torch.nn.Module) -> dict[str, Any]:
    """How many parameters there are, and how many train."""
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "trainable parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }


def flag(memory: Memory, imitation: Imitation) -> str:
    """An option that takes from the larger part of the memory, with what is left where that was tried."""
    stage: Any = imitation.stage
    train, data = getattr(stage, "train_config", None), imitation.trainer.datamodule  # type: ignore[attr-defined]
    if memory.lasting > memory.activations + memory.batch:
        return "--model.train.parameters lora" if train and stage.init_from else "a smaller --model.backbone.width"
    if train and not train.gradient_checkpointing:
        stage.model.backbone.checkpointing = True
        total = of_run(imitation).total
        if total < 0.9 * memory.total:
            return f"--model.train.gradient_checkpointing true: {total / 1e6:.1f}"
    if getattr(data, "batch", None) == "trajectories":
        return "a smaller --data.trajectories_in_batch"
    return next((text for name, text in SMALLER_BATCHES.items() if hasattr(data, name)), "smaller batches")


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device; on a CPU, of this machine; infinite where it cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            facts = dict(line.split(":") for line in file)
        return float(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return float("inf")
