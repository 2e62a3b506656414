"""A stage that trains in milliseconds: dropout makes its result depend on the random state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lit_align.data.loader import ResumableLoader, rng

CLASSES = ("tiny_stage:Tiny", "tiny_stage:TinyData")


class Tiny(pl.LightningModule):
    """A little network.

    Args:
        lr: learning rate.
        die_at: optimizer step before which it dies; -1 for never.
        init_from: not read.
        random_init: not read.
    """

    def __init__(
        self, lr: float = 0.1, die_at: int = -1, init_from: str | None = None, random_init: bool = False
    ) -> None:
        super().__init__()
        if lr < 0:
            raise ValueError(f"model.lr is {lr}; expected 0 or more")
        self.lr, self.die_at = lr, die_at
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.frames_trained = 0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.global_step == self.die_at:
            raise RuntimeError("pulled the plug")
        loss = self.net(batch["x"]).square().mean()
        self.frames_trained += len(batch["x"])
        self.log("loss", loss)
        self.log("loss_of_epoch", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val", self.net(batch["x"]).mean())

    def export(self, folder: str | Path) -> None:
        (Path(folder) / "agent").mkdir(exist_ok=True)
        torch.save(self.net.state_dict(), Path(folder) / "agent" / "net.pt")


class TinyData(pl.LightningDataModule):
    """Random numbers.

    Args:
        seed: decides them.
        batches: in an epoch.
    """

    def __init__(self, seed: int = 0, batches: int = 4) -> None:
        super().__init__()
        self.seed, self.batches = seed, batches

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(lambda epoch: [(epoch, i) for i in range(self.batches)], self._make, self.batches)

    def val_dataloader(self) -> ResumableLoader:
        return ResumableLoader(lambda _: [(99, 0)], self._make, 1)

    def _make(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {"x": torch.from_numpy(rng(self.seed, *key).standard_normal((8, 4), "float32"))}
