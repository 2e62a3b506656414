"""Offline alignment: from comparisons straight to a policy, without a reward model and without play.

A trajectory's score is what the policy does to the likelihood of its actions, a weighted sum over its steps:

    dpo    score = beta  * sum over t of gamma^t [log pi(a_t) - log pi_ref(a_t)]      (Rafailov et al. 2023, 2305.18290)
    cpl    score = alpha * sum over t of gamma^t  log pi(a_t)                         (Hejna et al. 2023, 2310.13639)

and P(chosen over rejected) = sigmoid(score of chosen - bias * score of rejected), with a bias of 1 for `dpo`. In DPO,
made for one answer to one prompt, the trajectory stands for the answer: the environment's own randomness is the same
under both policies and cancels. Log-probabilities under the reference are computed once and kept beside the frames.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import CatMetric, MeanMetric

from lit_align.data.loader import Batch
from lit_align.data.policy_pairs import LogProbs, PolicyPairsDataModule
from lit_align.data.preferences import ids_of
from lit_align.errors import UserError, raise_all
from lit_align.models.agent import Agent, gather_log_prob
from lit_align.models.folder import fingerprint
from lit_align.stages.base import Stage, channels_last, check_observations, need_folder, step_mask
from lit_align.stages.optim import OptimizerConfig
from lit_align.stages.training import TrainConfig

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
BETA, ALPHA, BIAS = 0.1, 0.1, 0.5


class Prefer(Stage):
    """Direct preference optimisation (DPO) or contrastive preference learning (CPL) on whole trajectories.

    Args:
        loss: `dpo`: likelier than under a reference policy, for the chosen more than for the rejected; `cpl`: the same
            of the likelihood itself, without a reference.
        beta: Of `dpo`: what a nat of log-ratio adds to a score. The smaller, the further the policy may go from the
            reference.
        alpha: Of `cpl`: what a nat of log-probability adds to a score.
        bias: Of `cpl`: factor of the rejected trajectory's score, 0 to 1. Below 1 it is not enough to make both less
            likely, which keeps the policy where the data is.
        gamma: Discount from a step to the next.
        label_smoothing: Probability that a label is taken to be wrong.
        normalise_length: Divide a score by the trajectory's steps, so that long ones count no more than short ones.
        imitation: Coefficient of an imitation loss on the chosen trajectories, in nats a step; it keeps them likely
            (Pang et al. 2024, arXiv 2404.19733).
        temperature: At which the policy is to play: divides its logits, and the reference's.
        reference: Folder of the frozen reference policy; None takes `init_from` for `dpo`, and none for `cpl`.
        train: What of the network trains, and how it runs.
        optimizer: Optimiser and schedule.
        init_from: Folder of the agent to start from.
        random_init: Take its architecture only; the reference, unless another is named, is that agent as it is.
    """

    name = "prefer"
    headline_metrics = ("val/accuracy", "val/loss", "val/kl", "train/loss")

    def __init__(
        self,
        loss: Literal["dpo", "cpl"] = "dpo",
        beta: float = BETA,
        alpha: float = ALPHA,
        bias: float = BIAS,
        gamma: float = 1.0,
        label_smoothing: float = 0.0,
        normalise_length: bool = False,
        imitation: float = 0.0,
        temperature: float = 1.0,
        reference: str | None = None,
        train: TrainConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        random_init: bool = False,
    ) -> None:
        start = need_folder(init_from, "preference optimisation")
        super().__init__(start, random_init, optimizer, train)
        _check(loss, beta, alpha, bias, gamma, label_smoothing, imitation, temperature)
        self.kind = loss
        self.scale, self.bias = (beta, 1.0) if loss == "dpo" else (alpha, bias)
        self.gamma, self.normalise_length = gamma, normalise_length
        self.label_smoothing, self.imitation, self.temperature = label_smoothing, imitation, temperature
        self.reference_folder = reference or (start if loss == "dpo" else None)
        self.agent: Agent | None = None
        self.accuracy: float | None = None
        self.train_loss, self.train_accuracy, self.train_margin = MeanMetric(), MeanMetric(), MeanMetric()
        self.seen = CatMetric(nan_strategy="disable")
        self._weights = ""

    @property
    def model(self) -> Agent:
        """The agent."""
        assert self.agent is not None, "the agent is built by configure_model"
        return self.agent

    def setup(self, stage: str) -> None:
        """Refuses precisions in which log-probabilities have too few bits for their small differences."""
        if str(self.trainer.precision) not in PRECISIONS:
            raise UserError(
                f"trainer.precision is {self.trainer.precision}; prefer needs one of {', '.join(PRECISIONS)}: in fewer "
                "bits the difference between the policy's and the reference's log-probabilities is lost"
            )

    def check_data(self, data: Any) -> None:
        """Raises ValueError if the agent or the reference acts on another space or sees frames of another size."""
        for what, folder in (("agent", self.init_from), ("reference", self.reference_folder)):
            if folder is None:
                continue
            with torch.device("meta"):  # neither weights nor memory
                agent = Agent.load(folder, "meta", random_init=True)
            if agent.codec != data.codec:
                raise UserError(f"the {what} of '{folder}' acts on {agent.codec}; the data holds {data.codec}")
            check_observations(what, agent.config, data)

    def configure_model(self) -> None:
        """Loads the agent."""
        if self.agent is not None:
            return
        assert self.init_from is not None
        self.check_data(self.data())
        agent = Agent.load(self.init_from, random_init=self.random_init)
        if self.reference_folder not in (None, self.init_from):
            Agent.load(self.reference_folder)  # weights that cannot be read are found now, not when a run has begun
        self._parent = agent.info
        self.agent = self.ready(agent)
        self.shard()

    def on_train_start(self) -> None:
        """Sees to it that the reference's log-probabilities are there, then starts the clock."""
        self.on_validation_start()
        super().on_train_start()

    def on_validation_start(self) -> None:
        """Sees to it that the reference's log-probabilities are there."""
        if self.reference_folder is None:
            return
        self._weights = self._weights or fingerprint(self.reference_folder)
        decides = {"temperature": self.temperature, "precision": str(self.trainer.precision)}
        decides |= {"device": self.device.type, "torch": torch.__version__}  # sums round otherwise on others
        self.data().store_reference({"weights": self._weights, **decides}, self.reference_log_probs)

    on_test_start = on_validation_start

    def reference_log_probs(self) -> LogProbs:
        """Loads the reference; gives what computes its log-probabilities `(U, T)` of a batch's actions, on the CPU.

        In the Trainer's precision: where the policy is the reference still, the two are to be the same.
        """
        assert self.reference_folder is not None
        plugin = self.trainer.precision_plugin
        with isolate_rng():  # a run is the same whether or not it finds them computed
            reference = channels_last(Agent.load(self.reference_folder).eval().requires_grad_(False))
        plugin.convert_module(reference.to(self.device))  # in place

        @torch.no_grad()
        def run(batch: Batch) -> Tensor:
            here = plugin.convert_input({name: value.to(self.device) for name, value in batch.items()})
            with plugin.forward_context():
                return self.log_probs_of(reference, here).float().cpu()

        return run

    def log_probs_of(self, agent: Agent, batch: Batch) -> Tensor:
        """Log-probabilities of the batch's actions under an agent `(U, T)`; 0 where there is no step."""
        of_classes = agent(batch["frames"], batch["vectors"], batch["actions"], self.temperature)
        return gather_log_prob(of_classes, batch["actions"]) * step_mask(batch["lengths"], of_classes.shape[1])

    def scores_of(self, log_probs: Tensor, batch: Batch) -> Tensor:
        """The trajectories' scores `(U,)`, of the policy's log-probabilities `(U, T)`."""
        steps = torch.arange(log_probs.shape[1], dtype=log_probs.dtype, device=log_probs.device)
        score = self.scale * ((log_probs - batch["reference"]) * self.gamma**steps).sum(1)
        return score / batch["lengths"].clamp_min(1) if self.normalise_length else score

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step's loss over all pairs of the batch."""
        log_probs = self.log_probs_of(self.model, batch)
        scores = self.scores_of(log_probs, batch)
        chosen, rejected, untied = batch["chosen"], batch["rejected"], ~batch["tie"]
        right = torch.where(untied, 1.0 - self.label_smoothing, 0.5)
        loss = preference_loss(scores[chosen], scores[rejected], right, self.bias).mean()
        loss, count = self.evenly(loss, len(chosen)), untied.sum()
        if self.imitation:
            surprise = -log_probs.sum(1) / batch["lengths"].clamp_min(1)
            mean = self.imitation * (surprise[chosen] * untied).sum() / count.clamp_min(1)
            loss = loss + self.evenly(mean, count)
        gaps = (scores[chosen] - scores[rejected]).detach()
        self.train_loss.update(loss.detach())
        self.train_accuracy.update(((gaps > 0) & untied).sum() / count.clamp_min(1), count)
        self.train_margin.update((gaps * untied).sum() / count.clamp_min(1), count)
        if (self.trainer.global_step + 1) % self.log_every == 0:
            means = {"loss": self.train_loss, "accuracy": self.train_accuracy, "margin": self.train_margin}
            self.log_means({f"train/{name}": mean for name, mean in means.items()})
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores of the test trajectories, each once, and what became of their likelihood."""
        data = self.data()
        log_probs = self.log_probs_of(self.model, batch)
        change = (log_probs - batch["reference"]).sum(1)
        # Places, not ids: metrics are float32, which does not hold every id.
        place = np.searchsorted(ids_of(data.test_pairs), batch["ids"].cpu().numpy())
        row = (torch.from_numpy(place).to(change), self.scores_of(log_probs, batch), change, batch["lengths"])
        self.seen.update(torch.stack([column.float() for column in row], 1))

    def on_validation_epoch_end(self) -> None:
        """Accuracy and loss over the untied test comparisons, whose episodes training never saw."""
        found = self.seen.compute()
        self.seen.reset()
        data = self.data()
        assert isinstance(data, PolicyPairsDataModule)
        pairs, ids = data.test_pairs, ids_of(data.test_pairs)
        if self.trainer.sanity_checking or not len(found):
            return
        table = np.full((len(ids), 3), np.nan)
        table[found[:, 0].long().cpu().numpy()] = found[:, 1:].double().cpu().numpy()
        seen = ~np.isnan(table[:, 2])
        chosen, rejected = (table[np.searchsorted(ids, side[~pairs.tie])] for side in (pairs.chosen, pairs.rejected))
        whole = ~np.isnan(chosen[:, 2] + rejected[:, 2])  # not all are seen where the Trainer limits validation
        chosen, rejected = chosen[whole], rejected[whole]
        if not len(chosen):
            return
        gaps = chosen[:, 0] - rejected[:, 0]
        self.accuracy = float((gaps > 0).mean())
        values = {
            "val/accuracy": self.accuracy,
            "val/loss": float(np.logaddexp(0, self.bias * rejected[:, 0] - chosen[:, 0]).mean()),
            "val/margin": float(gaps.mean()),
            "val/chosen": float((chosen[:, 1] / chosen[:, 2]).mean()),
            "val/rejected": float((rejected[:, 1] / rejected[:, 2]).mean()),
            "val/pairs": float(len(gaps)),
        }
        if self.reference_folder is not None:
            values["val/kl"] = float(-table[seen, 1].sum() / table[seen, 2].sum())
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same as validation, after training."""
        self.validation_step(batch, batch_idx)

    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the accuracy."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_align"]["accuracy"] = self.accuracy

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up the accuracy: a run that resumes at its end measures none."""
        super().on_load_checkpoint(checkpoint)
        self.accuracy = checkpoint["lit_align"].get("accuracy")

    def export(self, folder: str | Path) -> None:
        """Writes `agent/`, with its test accuracy among its facts."""
        data = self.data()
        assert isinstance(data, PolicyPairsDataModule)
        facts: dict[str, Any] = {
            "loss": self.kind,
            "target": data.rule.get("name", ""),
            "comparisons": len(data.train_pairs),
            "accuracy": self.accuracy,
            "temperature": self.temperature,
            "data": [Path(data.folder).name],
            "fps": data.fps,
        }
        self.leave(folder, facts)


def preference_loss(chosen: Tensor, rejected: Tensor, right: Tensor, bias: float = 1.0) -> Tensor:
    """Cross-entropy of each comparison `(pairs,)`.

    Args:
        chosen: Scores of the chosen trajectories `(pairs,)`.
        rejected: Scores of the rejected `(pairs,)`.
        right: Probability that the label is right `(pairs,)`; 0.5 for a tie, which is then in no order.
        bias: Factor of the score of the one that loses (CPL's lambda).
    """
    return right * F.softplus(bias * rejected - chosen) + (1 - right) * F.softplus(bias * chosen - rejected)


def _check(
    loss: str, beta: float, alpha: float, bias: float, gamma: float, smoothing: float, imitation: float, heat: float
) -> None:
    """Raises one UserError with every field that does not fit."""
    more, between = "more than 0", "0 or more and at most 1"
    wanted = (
        ("loss", loss, loss in ("dpo", "cpl"), "dpo or cpl"),
        ("beta", beta, beta > 0, more),
        ("alpha", alpha, alpha > 0, more),
        ("bias", bias, 0 <= bias <= 1, between),
        ("gamma", gamma, 0 < gamma <= 1, f"{more} and at most 1"),
        ("label_smoothing", smoothing, 0 <= smoothing < 0.5, "0 or more and below 0.5"),
        ("imitation", imitation, imitation >= 0, "0 or more"),
        ("temperature", heat, heat > 0, more),
    )
    errors = [f"model.{name} is {value}; expected {hint}" for name, value, fits, hint in wanted if not fits]
    raise_all(errors + _unused(loss, {"beta": beta, "alpha": alpha, "bias": bias}))


def _unused(loss: str, given: dict[str, float]) -> list[str]:
    """A message if options of the other loss were given other values than the defaults."""
    others = {"dpo": "cpl", "cpl": "dpo"}
    idle = [name for name, (of, usual) in _OF_LOSS.items() if of != loss and given[name] != usual]
    if not idle or loss not in others:
        return []
    told = " and ".join(f"model.{name} is {given[name]}" for name in idle)
    return [f"{told}, which {loss} does not use: leave it out, or set model.loss to {others[loss]}"]


_OF_LOSS = {"beta": ("dpo", BETA), "alpha": ("cpl", ALPHA), "bias": ("cpl", BIAS)}
"""Options that one loss alone uses: which, and the default."""
