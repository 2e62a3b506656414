"""Pre-training: imitate a lot of recorded play, of mixed quality (paper, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor
from torchmetrics import MeanMetric

from lit_align.data.modules import Batch
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.heads import PolicyConfig
from lit_align.spaces import ActionCodec
from lit_align.stages.base import Stage, check_observations, step_mask
from lit_align.stages.optim import OptimizerConfig
from lit_align.stages.training import TrainConfig


class Pretrain(Stage):
    """Cross-entropy on the recorded action, at every frame of a window.

    Args:
        backbone: Architecture of a new agent; not read when `init_from` is given.
        policy: How a new agent's action heads depend on each other; not read when `init_from` is given.
        head_weights: Weights of the loss by action head or group of heads, such as `{buttons: 0.5, right_stick.0: 2}`;
            1 for those not named. Validation counts all heads alike.
        train: What of the network trains, and how it runs.
        optimizer: Optimiser and schedule.
        init_from: Folder of an agent to go on from.
        random_init: Take the architecture of `init_from` only.
    """

    name = "pretrain"

    def __init__(
        self,
        backbone: BackboneConfig | None = None,
        policy: PolicyConfig | None = None,
        head_weights: dict[str, float] | None = None,
        train: TrainConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        random_init: bool = False,
    ) -> None:
        super().__init__(init_from, random_init, optimizer, train)
        self.backbone = backbone or BackboneConfig()
        self.policy = policy or PolicyConfig()
        self.backbone.check()
        self.policy.check()
        self.head_weights = dict(head_weights or {})
        self._weights: Tensor | None = None
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
            agent = Agent(self.backbone, data.codec, policy=self.policy)
        else:
            agent = Agent.load(self.init_from, random_init=self.random_init)
        self._parent = agent.info if self.init_from is not None else None
        self._weights = weights_of(self.head_weights, data.codec) if self.head_weights else None
        self.agent = self.ready(agent)
        self.shard()

    def check_data(self, data: Any) -> None:
        """Raises ValueError if the agent of `init_from` acts on another space or sees frames of another size."""
        weights_of(self.head_weights, data.codec)
        config = self.backbone
        if self.init_from is not None:
            with torch.device("meta"):  # neither weights nor memory
                agent = Agent.load(self.init_from, "meta", random_init=True)
            if agent.codec != data.codec:
                raise UserError(f"the agent of '{self.init_from}' acts on {agent.codec}; the data holds {data.codec}")
            config = agent.config
            if agent.fps and data.fps and agent.fps != data.fps:
                rank_zero_warn(
                    f"the agent of '{self.init_from}' learned from {agent.fps:g} env steps a second, this play has "
                    f"{data.fps:g}: an action lasts longer in one than in the other"
                )
        check_observations("agent", config, data)

    def loss_of(self, batch: Batch, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood in nats a step (all heads), and how often every head is right at once.

        `weights` `(heads,)` weigh the heads' parts of the loss.
        """
        log_probs = self.model(batch["frames"], batch["vectors"], batch["actions"])
        mask = step_mask(batch["lengths"], log_probs.shape[1])
        if "mask" in batch:  # steps that are context, not targets
            mask = mask & batch["mask"]
        actions = batch["actions"].long()
        of_heads = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        likelihood = (of_heads if weights is None else of_heads * weights.to(of_heads.device)).sum(-1)
        right = (log_probs.argmax(-1) == actions).all(-1)
        count = mask.sum().clamp_min(1)
        return -(likelihood * mask).sum() / count, (right & mask).sum() / count

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step's loss."""
        loss, _ = self.loss_of(batch, self._weights)
        loss = self.evenly(loss, targets_in(batch))
        self.train_loss.update(loss.detach())
        if (self.trainer.global_step + 1) % self.log_every == 0:
            # A mean over the steps since the last line, in place of one noisy step.
            self.log("train/loss", self.train_loss.compute(), prog_bar=True)
            self.train_loss.reset()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and accuracy on held-out episodes."""
        loss, accuracy = self.loss_of(batch)
        weight = targets_in(batch)
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
        """Writes `agent/`; at which speed it learned to act is among its facts."""
        data = self.data()
        self.leave(folder, {"data": [Path(f).name for f in data.folders], "fps": data.fps})


def targets_in(batch: Batch) -> Tensor:
    """How many steps of a batch are trained on, `()`."""
    return batch["mask"].sum() if "mask" in batch else batch["lengths"].sum()


def weights_of(named: dict[str, float], codec: ActionCodec) -> Tensor:
    """The weight of each head's loss `(heads,)`.

    Args:
        named: Weights by the name of a head, or of a part of the action space that holds several.
        codec: The action space.

    Raises:
        ValueError: A name is of no head, or a weight is below 0.
    """
    weights = torch.ones(len(codec.heads))
    for name, weight in sorted(named.items(), key=lambda item: len(item[0])):  # a head's own name beats its group's
        meant = [h for h, head in enumerate(codec.heads) if head.name == name or head.name.startswith(f"{name}.")]
        if not meant or weight < 0:
            raise UserError(
                f"model.head_weights holds {name}: {weight}; expected 0 or more for one of "
                f"{', '.join(head.name for head in codec.heads)}, or for the part of a name before a dot"
            )
        weights[meant] = weight
    return weights
