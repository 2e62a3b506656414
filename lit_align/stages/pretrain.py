"""Pre-training: imitate a lot of recorded play, of mixed quality (paper, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric

from lit_align.data.modules import Batch
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.stages.base import Stage, channels_last, check_image_size, step_mask
from lit_align.stages.optim import OptimizerConfig


class Pretrain(Stage):
    """Cross-entropy on the recorded action, at every frame of a window.

    Args:
        backbone: Architecture of a new agent; not read when `init_from` is given.
        optimizer: Optimiser and schedule.
        init_from: Folder of an agent to go on from.
        random_init: Take the architecture of `init_from` only.
    """

    name = "pretrain"

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        random_init: bool = False,
    ) -> None:
        super().__init__(init_from, random_init, optimizer)
        self.backbone = backbone or BackboneConfig()
        self.backbone.check()
        self.agent: Agent | None = None
        self.train_loss = MeanMetric()
        self.val_loss = MeanMetric()
        self.val_accuracy = MeanMetric()

    @property
    def model(self) -> Agent:
        """The agent."""
        assert self.agent is not None, "the agent is built by configure_model"
        return self.agent

    def configure_model(self) -> None:
        """Builds or loads the agent; its action space is the data's."""
        if self.agent is not None:
            return
        data = self.data()
        self.check_data(data)
        if self.init_from is None:
            agent = Agent(self.backbone, data.codec)
        else:
            agent = Agent.load(self.init_from, random_init=self.random_init)
        self._parent = agent.info if self.init_from is not None else None
        self.agent = channels_last(agent)

    def check_data(self, data: Any) -> None:
        """Raises ValueError if the agent of `init_from` acts on another space or sees frames of another size."""
        size = self.backbone.image_size
        if self.init_from is not None:
            with torch.device("meta"):  # neither weights nor memory
                agent = Agent.load(self.init_from, "meta", random_init=True)
            if agent.codec != data.codec:
                raise UserError(f"the agent of '{self.init_from}' acts on {agent.codec}; the data holds {data.codec}")
            size = agent.config.image_size
        check_image_size("agent", size, data)

    def loss_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood in nats a step (all heads), and how often every head is right at once."""
        log_probs = self.model(batch["frames"])
        mask = step_mask(batch["lengths"], log_probs.shape[1])
        actions = batch["actions"].long()
        likelihood = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1).sum(-1)
        right = (log_probs.argmax(-1) == actions).all(-1)
        count = mask.sum()
        return -(likelihood * mask).sum() / count, (right & mask).sum() / count

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step's loss."""
        loss, _ = self.loss_of(batch)
        self.train_loss.update(loss.detach())
        if (self.trainer.global_step + 1) % self.log_every == 0:
            # A mean over the steps since the last line, in place of one noisy step.
            self.log("train/loss", self.train_loss.compute(), prog_bar=True)
            self.train_loss.reset()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy on held-out episodes."""
        loss, accuracy = self.loss_of(batch)
        weight = batch["lengths"].sum()
        self.val_loss.update(loss, weight)
        self.val_accuracy.update(accuracy, weight)
        self.log_dict(
            {"val/loss": self.val_loss, "val/accuracy": self.val_accuracy},
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch["lengths"]),
        )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same as validation, after training."""
        self.validation_step(batch, batch_idx)

    def export(self, folder: str | Path) -> None:
        """Writes `agent/`."""
        self.model.info = {**self.lineage(self._parent), **self._about()}
        self.model.save(Path(folder) / "agent")

    def _about(self) -> dict[str, Any]:
        return {"data": [Path(f).name for f in self.data().folders]}
