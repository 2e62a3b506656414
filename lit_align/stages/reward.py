"""The reward model: learn from comparisons which trajectories are preferred.

Paper, section 3.4; Bradley and Terry 1952.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import CatMetric, MeanMetric

from lit_align.data.loader import Batch, world_of
from lit_align.data.pairs import PreferenceDataModule
from lit_align.data.preferences import ids_of
from lit_align.errors import UserError, raise_all
from lit_align.evaluation.calibration import CalibrationError, GroupAccuracy, gaps_of
from lit_align.models.agent import Agent
from lit_align.models.folder import read_config
from lit_align.models.reward import Readout, RewardModel
from lit_align.stages.base import Stage, check_observations, need_folder
from lit_align.stages.flops import ModelFlops
from lit_align.stages.optim import OptimizerConfig
from lit_align.stages.training import TrainConfig

DRAWS = 3
"""The stream of random numbers that says which head learns from which comparison."""


class Reward(Stage):
    """Bradley-Terry on trajectory rewards: P(chosen over rejected) = sigmoid(r_chosen - r_rejected).

    With `train.parameters: heads` the trunk is frozen: it sees each trajectory once, when the run begins, and batches
    hold what it made of them.

    Args:
        heads: Scalar heads, an ensemble at the price of one; each learns on its own. None: 1, or as many as the reward
            model has that the run starts from.
        bootstrap: Of several heads, the fraction of the comparisons that each learns from, drawn for it alone (Osband
            et al. 2016, arXiv 1602.04621): heads that learned the same from the same would agree everywhere.
        readout: `last` reads a trajectory's reward at its last frame, `sum` adds up every frame's. None: `last`, or
            that of the reward model that the run starts from.
        label_smoothing: Probability that a label is taken to be wrong.
        train: What of the network trains, and how it runs.
        optimizer: Optimiser and schedule.
        init_from: Folder of the agent (or reward model) that the backbone starts from.
        random_init: Take its architecture only: the paper's "random encoder".
    """

    name = "reward"
    folder = "reward_model"
    headline_metrics = ("val/accuracy", "val/loss")
    keeps_features = True
    """Whether a frozen trunk's features are computed once; results are the same without, but for rounding."""

    def __init__(
        self,
        heads: int | None = None,
        bootstrap: float = 0.5,
        readout: Readout | None = None,
        label_smoothing: float = 0.0,
        train: TrainConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        random_init: bool = False,
    ) -> None:
        super().__init__(need_folder(init_from, "a reward model (its backbone)"), random_init, optimizer, train)
        if not 0 < bootstrap <= 1:
            raise UserError(f"model.bootstrap is {bootstrap}; expected a fraction above 0 and up to 1")
        if not 0 <= label_smoothing < 0.5:
            raise UserError(
                f"model.label_smoothing is {label_smoothing}; expected 0 or more, and below 0.5: labels that are wrong "
                "half of the time teach nothing"
            )
        self.heads, self.bootstrap, self.readout, self.label_smoothing = heads, bootstrap, readout, label_smoothing
        self.reward_model: RewardModel | None = None
        self.train_loss, self.train_accuracy = MeanMetric(), MeanMetric()
        self.seen = CatMetric(nan_strategy="disable")
        self.calibration, self.by_gap = CalibrationError(), GroupAccuracy()
        self.measured: dict[str, Any] = {}
        self._normalised = self._has_features = False
        self._learns: Tensor | None = None

    @property
    def model(self) -> RewardModel:
        """The reward model."""
        assert self.reward_model is not None, "the reward model is built by configure_model"
        return self.reward_model

    @property
    def accuracy(self) -> float | None:
        """The last validation's accuracy."""
        return self.measured.get("accuracy")

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
            model = RewardModel.from_agent(agent, 1 if self.heads is None else self.heads, self.readout or "last")
        self.reward_model = self.ready(model)
        self.shard()

    def _goes_on(self) -> bool:
        assert self.init_from is not None
        return bool(read_config(self.init_from).get("kind") == RewardModel.kind)

    def check_data(self, data: Any) -> None:
        """Raises ValueError if the backbone of `init_from` sees frames of another size."""
        assert self.init_from is not None
        with torch.device("meta"):  # neither weights nor memory
            start = (RewardModel if self._goes_on() else Agent).load(self.init_from, "meta", random_init=True)
        check_observations("backbone", start.config, data)
        if isinstance(start, RewardModel):
            self._check_heads(start)

    def _check_heads(self, start: RewardModel) -> None:
        """Raises a UserError if other heads or another readout were asked for than those of the start."""
        asked = (("heads", self.heads, start.heads), ("readout", self.readout, start.readout))
        raise_all(
            [
                f"model.{name} is {given}, and the reward model of '{self.init_from}', which this run starts from, has "
                f"{kept}: set --model.{name} to {kept} or null, or start from an agent"
                for name, given, kept in asked
                if given not in (None, kept)
            ]
        )

    def on_train_start(self) -> None:
        """Lets a frozen trunk see the trajectories, then starts the clock."""
        began = time.perf_counter()
        self.keep_features()
        self.seconds_trained += time.perf_counter() - began
        super().on_train_start()

    def keep_features(self) -> None:
        """Has batches hold a frozen trunk's features `(U, width)`, float32, in evaluation mode; computed once.

        Of all episodes of the folder, which the normalisation needs in any case; each process for itself.
        """
        data = self.data()
        if not self.keeps_features or self.train_config.parameters != "heads":
            data.use_features(None)  # of another stage on the same data
        elif not self._has_features:
            # Validation may be the first to ask, and what it makes in inference mode could not be trained on.
            with torch.inference_mode(False), torch.no_grad():
                data.use_features(self._over_all(self.model.features))
            self._has_features = True

    on_validation_start = keep_features
    on_test_start = keep_features

    def _over_all(self, function: Any) -> Tensor:
        """What a function of frames, lengths and vectors gives for every episode of the folder, on the CPU."""
        data, training = self.data(), self.model.training
        ids = data.cache.dataset.episodes["id"]
        self.model.eval()
        found = []
        for at in range(0, len(ids), 16):
            part = ids[at : at + 16].tolist()
            frames, lengths = data.frames_of(part)
            seen = (frames.to(self.device), lengths.to(self.device), data.vectors_of(part).to(self.device))
            found.append(self.through(function, *seen).cpu())
        self.model.train(training)
        return torch.cat(found)

    def _model_flops(self, batch: Any) -> ModelFlops | None:
        """Those of the heads on kept features are next to none, and are not told."""
        return None if "features" in batch else super()._model_flops(batch)

    def _rewards(self, batch: Batch) -> Tensor:
        if "features" in batch:
            return self.model.rewards_of(batch["features"], batch["lengths"])
        return self.model(batch["frames"], batch["lengths"], batch["vectors"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step's loss over all pairs of the batch; a tie pulls both rewards together."""
        rewards = self._rewards(batch)
        taught = self._taught(batch)
        loss = pairwise_loss(rewards, batch["chosen"], batch["rejected"], batch["tie"], self.label_smoothing, taught)
        loss = self.evenly(loss, len(batch["chosen"]) if taught is None else taught.sum())
        self.train_loss.update(loss.detach())
        untied = ~batch["tie"]
        if untied.any():
            gap = (rewards[batch["chosen"]] - rewards[batch["rejected"]]).detach()
            self.train_accuracy.update((gap.mean(1) > 0).float()[untied].mean())
        if (self.trainer.global_step + 1) % self.log_every == 0:
            self.log_means({"train/loss": self.train_loss, "train/accuracy": self.train_accuracy})
        return loss

    def _taught(self, batch: Batch) -> Tensor | None:
        """Which heads learn from which comparisons of a batch `(pairs, K)`, bool; None where all learn from all.

        The same for a comparison in whichever batch, process, epoch or start of the run it is met.
        """
        if self.bootstrap == 1 or (heads := self.model.heads) == 1:
            return None
        if self._learns is None:
            data = self.data()
            drawn = np.random.default_rng([data.seed, DRAWS]).random((len(data.train_pairs), heads), np.float32)
            learns = torch.from_numpy(drawn < self.bootstrap).to(batch["pair"].device)
            self._learns = learns | ~learns.any(0)  # one that would learn from none learns from all
        return self._learns[batch["pair"]]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Rewards of the test trajectories, each once, by every head."""
        data = self.data()
        # Places, not ids: metrics are float32, which does not hold every id.
        places = np.searchsorted(ids_of(data.test_pairs), batch["ids"].cpu().numpy())
        rewards = self._rewards(batch).float()
        self.seen.update(torch.cat([torch.from_numpy(places).to(rewards)[:, None], rewards], 1))

    def on_validation_epoch_end(self) -> None:
        """How the untied test comparisons are judged, whose episodes training never saw; see `docs/metrics.md`."""
        found = self.seen.compute()
        self.seen.reset()
        data = self.data()
        assert isinstance(data, PreferenceDataModule)
        pairs, ids = data.test_pairs, ids_of(data.test_pairs)
        if self.trainer.sanity_checking or not len(pairs) or not len(found):
            return
        found = found.cpu()
        rewards = torch.zeros(len(ids), found.shape[1] - 1)
        rewards[found[:, 0].long()] = found[:, 1:]
        seen = np.zeros(len(ids), bool)
        seen[found[:, 0].long().numpy()] = True
        chosen, rejected = (np.searchsorted(ids, side) for side in (pairs.chosen, pairs.rejected))
        kept = ~pairs.tie & seen[chosen] & seen[rejected]  # not all are seen where the Trainer limits validation
        if kept.any():
            self.log_dict(
                self._measure(rewards[chosen[kept]], rewards[rejected[kept]], pairs.margin[kept]), prog_bar=True
            )

    def _measure(self, chosen: Tensor, rejected: Tensor, margins: Any) -> dict[str, Any]:
        """The metrics of untied comparisons.

        An equal reward counts as wrong. A verdict's confidence is the probability of the episode that is preferred.

        Args:
            chosen: Rewards of the chosen episodes `(pairs, K)`.
            rejected: Of the rejected ones `(pairs, K)`.
            margins: How far they are apart `(pairs,)`.
        """
        data, (rank, ranks) = self.data(), world_of(self.data())
        gap = (chosen.mean(1).double() - rejected.mean(1).double()).float()
        right, groups = gap > 0, gaps_of(margins)
        mine = slice(rank, None, ranks)  # what these two count adds up over processes
        self.calibration.update(gap.abs().sigmoid()[mine].to(self.device), right[mine].to(self.device))
        self.by_gap.update(right[mine].to(self.device), torch.from_numpy(groups.group)[mine].to(self.device))
        ece, by_gap = float(self.calibration.compute()), self.by_gap.compute().tolist()
        self.calibration.reset()
        self.by_gap.reset()
        self.measured = {"accuracy": float(right.float().mean()), "ece": ece, "by_gap": {}}
        values: dict[str, Any] = {
            "val/accuracy": self.measured["accuracy"],
            "val/loss": F.softplus(-gap).mean(),
            "val/pairs": float(len(gap)),
            "val/ece": ece,
        }
        counts = np.bincount(groups.group)
        for name, span, accuracy, count in zip(groups.names, groups.spans, by_gap, counts, strict=False):
            self.measured["by_gap"][name] = {"accuracy": accuracy, "pairs": int(count), "gap": list(span)}
            values["val/accuracy" + f"_gap_{name}"] = accuracy
        if data.best_accuracy is not None:
            values["val/best_accuracy"] = data.best_accuracy
        if chosen.shape[1] > 1:
            for_chosen = (chosen > rejected).sum(1)
            values["val/head_agreement"] = ((for_chosen == 0) | (for_chosen == chosen.shape[1])).float().mean()
        return values

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
        self.keep_features()
        data = self.data()
        if self._has_features:
            every = data._observations(data.cache.dataset.episodes["id"])
            seen = every["features"].to(self.device), every["lengths"].to(self.device)
            rewards = self.through(self.model.rewards_of, *seen)
        else:
            rewards = self._over_all(self.model)
        rewards = rewards.squeeze(1)  # of one head, numbers; of several, each head's own
        self.model.mean.copy_(rewards.mean(0))
        self.model.std.copy_(rewards.std(0).clamp_min(1e-6))
        self._normalised = True

    def on_fit_end(self) -> None:
        """A sharded network has to be normalised before it is whole on process 0 alone; `export` does others."""
        if self.is_sharded and not self._normalised:
            self.fit_normalisation()
        super().on_fit_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what validation measured."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_align"]["measured"] = self.measured

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up what was measured: a run that resumes at its end measures nothing."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["lit_align"]
        self.measured = kept.get("measured") or {"accuracy": kept.get("accuracy")}  # the latter of older versions

    def export(self, folder: str | Path) -> None:
        """Writes `reward_model/`, with what its last validation measured among its facts."""
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
            **{name: self.measured[name] for name in ("ece", "by_gap") if name in self.measured},
        }
        if data.best_accuracy is not None:
            facts["best_accuracy"] = data.best_accuracy
        if "annotator" in data.provenance:
            facts["annotator"] = data.provenance["annotator"]
        self.leave(folder, facts)


def pairwise_loss(
    rewards: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    tie: Tensor,
    label_smoothing: float,
    taught: Tensor | None = None,
) -> Tensor:
    """Mean binary cross-entropy of comparisons, over all of them and all heads.

    Args:
        rewards: Of U trajectories by K heads `(U, K)`.
        chosen: The preferred one of each pair `(pairs,)`, places in these.
        rejected: The other one `(pairs,)`.
        tie: Whether neither is `(pairs,)`, bool; the target is 0.5 then.
        label_smoothing: Probability that a label is taken to be wrong.
        taught: Which heads a pair counts for `(pairs, K)`, bool; None for all.
    """
    gap = rewards[chosen] - rewards[rejected]
    target = torch.where(tie, 0.5, 1.0 - label_smoothing)[:, None].expand_as(gap)
    if taught is None:
        return F.binary_cross_entropy_with_logits(gap, target)
    each = F.binary_cross_entropy_with_logits(gap, target, reduction="none")
    return (each * taught).sum() / taught.sum().clamp_min(1)
