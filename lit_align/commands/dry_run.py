"""`--dry_run`: everything is set up as for a run, shown, and stopped before the first step."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


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
    """Raises DryRunDone where training would begin: model, optimizer and loaders are the real ones by then."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects what there is to know."""
        summary: dict[str, Any] = {}
        if hasattr(pl_module, "dry_run_summary"):
            summary |= pl_module.dry_run_summary()
        else:
            summary |= parameters(pl_module)
        summary |= self._batch(trainer)
        steps = int(trainer.num_training_batches) // trainer.accumulate_grad_batches
        summary["optimizer steps in an epoch"] = steps
        summary["optimizer steps in all"] = int(trainer.estimated_stepping_batches)
        summary["processes"] = trainer.world_size
        raise DryRunDone(summary)

    def _batch(self, trainer: Trainer) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "dry_run_summary"):
            return dict(data.dry_run_summary())
        if hasattr(data, "fill"):  # batches come from play, and there was none yet
            return {"batches": "made from episodes played at the start of each epoch"}
        batch = next(iter(data.train_dataloader()))
        items = batch.items() if isinstance(batch, dict) else enumerate(batch)
        tensors = {f"batch {key}": value for key, value in items if isinstance(value, torch.Tensor)}
        shapes = {
            key: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for key, value in tensors.items()
        }
        size = sum(value.numel() * value.element_size() for value in tensors.values())
        return {**shapes, "one batch (MB)": round(size / 1e6, 1)}


def parameters(module: torch.nn.Module) -> dict[str, Any]:
    """Parameters, and the memory of weights, gradients and AdamW's two moments in float32 (activations not counted)."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    return {
        "parameters": total,
        "trainable parameters": trained,
        "weights, gradients and optimizer (MB)": round((4 * total + 12 * trained) / 1e6, 1),
    }
