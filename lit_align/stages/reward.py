"""The reward model: learn from comparisons which trajectories are preferred.

Paper, section 3.4; Bradley and Terry 1952.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import CatMetric, MeanMetric

from lit_align.data.modules import Batch, PreferenceDataModule
from lit_align.models.agent import Agent
from lit_align.models.folder import read_config
from lit_align.models.reward import Readout, RewardModel
from lit_align.stages.base import Stage, check_observations, need_folder
from lit_align.stages.optim import OptimizerConfig
from lit_align.stages.training import TrainConfig


class Reward(Stage):
    """Bradley-Terry on trajectory rewards: P(chosen over rejected) = sigmoid(r_chosen - r_rejected).

    Args:
        heads: Scalar heads, an ensemble at the price of one; each learns on its own.
        readout: `last` reads a trajectory's reward at its last frame, `sum` adds up every frame's.
        label_smoothing: Probability that a label is taken to be wrong.
        train: What of the network trains, and how it runs.
        optimizer: Optimiser and schedule.
        init_from: Folder of the agent (or reward model) that the backbone starts from.
        random_init: Take its architecture only: the paper's "random encoder".
    """

    name = "reward"
    folder = "reward_model"
    headline_metrics = ("val/accuracy", "val/loss")

    def __init__(
        self,
        heads: int = 1,
        readout: Readout = "last",
        label_smoothing: float = 0.0,
        train: TrainConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        random_init: bool = False,
    ) -> None:
        super().__init__(need_folder(init_from, "a reward model (its backbone)"), random_init, optimizer, train)
        self.heads, self.readout, self.label_smoothing = heads, readout, label_smoothing
        self.reward_model: RewardModel | None = None
        self.train_loss, self.train_accuracy = MeanMetric(), MeanMetric()
        self.seen_ids, self.seen_rewards = CatMetric(), CatMetric()
        self.accuracy: float | None = None
        self._normalised = False

    @property
    def model(self) -> RewardModel:
        """The reward model."""
        assert self.reward_model is not None, "the reward model is built by configure_model"
        return self.reward_model

    def configure_model(self) -> None:
        """Builds the reward model on the backbone of `init_from`."""
        if self.reward_model is not None:
            return
        assert self.init_from is not None
        self.check_data(self.data())
        if self._goes_on():
            model = RewardModel.load(self.init_from, random_init=self.random_init)
            self._parent = model.info
        else:
            agent = Agent.load(self.init_from, random_init=self.random_init)
            self._parent = agent.info
            model = RewardModel.from_agent(agent, self.heads, self.readout)
        self.reward_model = self.ready(model)

    def _goes_on(self) -> bool:
        assert self.init_from is not None
        return bool(read_config(self.init_from).get("kind") == RewardModel.kind)

    def check_data(self, data: Any) -> None:
        """Raises ValueError if the backbone of `init_from` sees frames of another size."""
        assert self.init_from is not None
        with torch.device("meta"):  # neither weights nor memory
            start = (RewardModel if self._goes_on() else Agent).load(self.init_from, "meta", random_init=True)
        check_observations("backbone", start.config, data)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step's loss over all pairs of the batch; a tie pulls both rewards together."""
        rewards = self.model(batch["frames"], batch["lengths"], batch["vectors"])
        gap = rewards[batch["chosen"]] - rewards[batch["rejected"]]
        target = torch.where(batch["tie"], 0.5, 1.0 - self.label_smoothing)[:, None].expand_as(gap)
        loss = F.binary_cross_entropy_with_logits(gap, target)
        self.train_loss.update(loss.detach())
        untied = ~batch["tie"]
        if untied.any():
            self.train_accuracy.update((gap.detach().mean(1) > 0).float()[untied].mean())
        if (self.trainer.global_step + 1) % self.log_every == 0:
            self.log_dict(
                {"train/loss": self.train_loss.compute(), "train/accuracy": self.train_accuracy.compute()},
                prog_bar=True,
            )
            self.train_loss.reset()
            self.train_accuracy.reset()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Rewards of the test trajectories, each once."""
        self.seen_ids.update(batch["ids"].double())
        self.seen_rewards.update(self.model(batch["frames"], batch["lengths"], batch["vectors"]).mean(1).double())

    def on_validation_epoch_end(self) -> None:
        """Accuracy over the untied test comparisons, whose episodes training never saw.

        An equal score counts as wrong.
        """
        ids, rewards = self.seen_ids.compute().long(), self.seen_rewards.compute()
        self.seen_ids.reset()
        self.seen_rewards.reset()
        table = dict(zip(ids.tolist(), rewards.tolist(), strict=True))
        data = self.data()
        assert isinstance(data, PreferenceDataModule)
        pairs = data.test_pairs
        if self.trainer.sanity_checking or not len(pairs):
            return
        gaps = torch.tensor([table[int(c)] - table[int(r)] for c, r in zip(pairs.chosen, pairs.rejected, strict=True)])
        untied = torch.from_numpy(~pairs.tie)
        if not untied.any():
            return
        self.accuracy = float((gaps[untied] > 0).float().mean())
        loss = F.softplus(-gaps[untied]).mean()
        self.log_dict(
            {"val/accuracy": self.accuracy, "val/loss": loss, "val/pairs": float(untied.sum())}, prog_bar=True
        )

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same as validation, after training."""
        self.validation_step(batch, batch_idx)

    on_test_epoch_end = on_validation_epoch_end

    def on_train_end(self) -> None:
        """Fits the normalisation."""
        self.fit_normalisation()

    @torch.no_grad()
    def fit_normalisation(self) -> None:
        """Mean and standard deviation of the reward over the compared trajectories, the starting agent's own."""
        data = self.data()
        ids = data.cache.dataset.episodes["id"]
        self.model.eval()
        rewards = []
        for at in range(0, len(ids), 16):
            part = ids[at : at + 16].tolist()
            frames, lengths = data.frames_of(part)
            seen = (frames.to(self.device), lengths.to(self.device), data.vectors_of(part).to(self.device))
            rewards.append(self.model(*seen))
        all_rewards = torch.cat(rewards).mean(1)
        self.model.mean.fill_(all_rewards.mean())
        self.model.std.fill_(all_rewards.std().clamp_min(1e-6))
        self._normalised = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the accuracy."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_align"]["accuracy"] = self.accuracy

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the accuracy: a run that resumes at its end measures none."""
        super().on_load_checkpoint(checkpoint)
        self.accuracy = checkpoint["lit_align"].get("accuracy")

    def export(self, folder: str | Path) -> None:
        """Writes `reward_model/`, with its test accuracy among its facts."""
        data = self.data()
        assert isinstance(data, PreferenceDataModule)
        if not self._normalised:  # resumed from the checkpoint of its last step: there was nothing left to train
            self.fit_normalisation()
        facts: dict[str, Any] = {
            "target": data.rule.get("name", ""),
            "start": "random" if self.random_init else "agent",
            "comparisons": len(data.train_pairs),
            "accuracy": self.accuracy,
            "pairs": int((~data.test_pairs.tie).sum()),
        }
        self.leave(folder, facts)
