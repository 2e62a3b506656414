"""Alignment: online policy gradient on the learned reward, near a reference policy (paper, section 3.5).

The reward of an episode is undiscounted and shared by all its actions; the baseline is the mean over the iteration's
episodes. One pass over one minibatch without clipping and KL is REINFORCE, the paper's
algorithm (its baseline could not be read); more passes reuse the rollouts under
PPO's ratio clipping (Schulman et al. 2017, arXiv 1707.06347). KL to the frozen reference is exact over independent
action heads; over autoregressive ones it is the sum of each head's KL given the classes that were chosen before it, an
estimate (unbiased while the policy is the one that played) that is logged as `policy/kl_conditional`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MaxMetric, MeanMetric, Metric

from lit_align.data.modules import Batch
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.models.agent import Agent, entropy, gather_log_prob, kl_divergence
from lit_align.models.reward import RewardModel
from lit_align.rollout.buffer import Rollout, in_batches, pad, pad_vectors
from lit_align.rollout.callback import tensor_sum
from lit_align.stages.base import Stage, channels_last, need_folder, step_mask
from lit_align.stages.optim import OptimizerConfig
from lit_align.stages.training import TrainConfig


class Align(Stage):
    """Policy gradient with a batch baseline, ratio clipping and an exact KL penalty.

    Args:
        reward_model: Folder of the reward model.
        reference: Folder of the frozen reference policy; None takes `init_from`.
        temperature: Sampling temperature of the policy that plays and is trained.
        clip: Ratios are clipped to [1 - clip, 1 + clip]; None for no clipping.
        kl: Coefficient of KL(policy || reference), in nats a step.
        entropy: Coefficient of an entropy bonus, in nats a step.
        max_kl: Stop when an iteration's mean KL (nats a step) is above this; None for no budget.
        train: What of the network trains (the paper: the last layer alone, `parameters: heads`), and how it runs.
        scale_advantages: Divide advantages by their standard deviation over the iteration.
        optimizer: Optimiser and schedule.
        init_from: Folder of the agent to align.
        random_init: Take its architecture only.
    """

    name = "align"
    headline_metrics = (
        "outcome/left",
        "outcome/right",
        "reward/mean",
        "policy/kl",
        "policy/kl_conditional",
        "env_steps",
    )

    def __init__(
        self,
        reward_model: str,
        reference: str | None = None,
        temperature: float = 1.0,
        clip: float | None = 0.2,
        kl: float = 0.02,
        entropy: float = 0.0,
        max_kl: float | None = None,
        train: TrainConfig | None = None,
        scale_advantages: bool = False,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        random_init: bool = False,
    ) -> None:
        super().__init__(need_folder(init_from, "alignment"), random_init, optimizer, train)
        if temperature <= 0 or (clip is not None and clip <= 0):
            raise UserError(f"model.temperature is {temperature} and model.clip {clip}; expected more than 0")
        self.reward_folder, self.reference_folder = reward_model, reference
        self.temperature, self.clip, self.kl, self.entropy, self.max_kl = temperature, clip, kl, entropy, max_kl
        self.scale_advantages = scale_advantages
        self.agent: Agent | None = None
        # Frozen networks stay out of the module's parameters: not in checkpoints, not in the optimizer, not wrapped by
        # a strategy.
        self._frozen: dict[str, Any] = {}
        self.env_steps = 0
        self._last_kl = 0.0
        self._counts = (1.0, 1.0)
        names = ("kl", "entropy", "clip_fraction")
        self.means = torch.nn.ModuleDict({name: MeanMetric() for name in names})
        self.means["log_prob_gap"] = MaxMetric()

    @property
    def model(self) -> Agent:
        """The agent."""
        assert self.agent is not None, "the agent is built by configure_model"
        return self.agent

    def setup(self, stage: str) -> None:
        """Refuses precisions in which the log-probabilities of play and of training differ."""
        if str(self.trainer.precision) != "32-true":
            raise UserError(
                f"trainer.precision is {self.trainer.precision}; align needs 32-true: in fewer bits the policy that is "
                "trained is not the policy that played, and its ratios do not start at 1"
            )

    def configure_model(self) -> None:
        """Loads the agent, the reference and the reward model, and checks that they fit the world."""
        if self.agent is not None:
            return
        assert self.init_from is not None
        data = self.data()
        agent = Agent.load(self.init_from, random_init=self.random_init)
        reward = RewardModel.load(self.reward_folder)
        if agent.codec != data.codec:
            raise UserError(f"the agent of '{self.init_from}' acts on {agent.codec}; {data.env} takes {data.codec}")
        reference = Agent.load(self.reference_folder or self.init_from)
        if reference.codec != agent.codec:
            raise UserError(
                f"the reference acts on {reference.codec}, the agent on {agent.codec}; they must be the same"
            )
        for what, network in (("agent", agent), ("reference", reference), ("reward model", reward)):
            sees = (network.config.image_size, network.config.vector_size)
            if sees != (data.image_size, data.vector_size):
                raise UserError(
                    f"the {what} sees {sees[0]} pixels and a vector of {sees[1]} numbers, {data.env} shows "
                    f"{data.image_size} and {data.vector_size}: make the world show that (the island takes "
                    "--data.env_args '{size: N}') or retrain"
                )
        self._parent = agent.info
        self.agent = self.ready(agent)
        self._frozen = {"reference": reference, "reward": reward}
        for frozen in (reference, reward):
            channels_last(frozen.eval().requires_grad_(False))

    def on_fit_start(self) -> None:
        """Moves the frozen networks to the device."""
        for network in self._frozen.values():
            network.to(self.device)

    on_validation_start = on_fit_start
    on_test_start = on_fit_start

    @torch.no_grad()
    def rewards_of(self, trajectories: list[Trajectory]) -> Tensor:
        """Normalised rewards of whole episodes `(n,)`, float32, on the CPU."""
        reward: RewardModel = self._frozen["reward"]

        def run(part: list[Trajectory]) -> list[Tensor]:
            frames, lengths = pad(part, last=True)
            seen = (frames.to(self.device), lengths.to(self.device), pad_vectors(part, last=True).to(self.device))
            return list(reward.normalise(reward(*seen)).mean(1).cpu())

        return torch.stack(in_batches(trajectories, 16, run))

    @torch.no_grad()
    def judge(self, trajectories: list[Trajectory]) -> list[Rollout]:
        """Advantages (reward minus the mean over all processes' episodes) and the reference's log-probabilities."""
        rewards = self.rewards_of(trajectories)
        steps = sum(len(t) for t in trajectories)
        sums = torch.tensor(
            [rewards.sum(), rewards.square().sum(), len(rewards), steps], dtype=torch.float64, device=self.device
        )
        total, squares, count, all_steps = tensor_sum(self.trainer, sums).tolist()
        mean = total / count
        std = max(squares / count - mean**2, 0.0) ** 0.5
        advantages = (rewards - mean) / (std + 1e-6 if self.scale_advantages else 1.0)
        self._counts = (all_steps, count)
        self._reward = (mean, std)
        self.env_steps += int(all_steps)
        reference: Agent = self._frozen["reference"]

        def run(part: list[Trajectory]) -> list[Tensor]:
            frames, lengths = pad(part)
            actions = pad_sequence([torch.from_numpy(t.actions) for t in part], batch_first=True)
            seen = (frames.to(self.device), pad_vectors(part).to(self.device), actions.to(self.device))
            log_probs = reference(*seen, self.temperature).cpu()
            return [row[:n].clone() for row, n in zip(log_probs, lengths, strict=True)]

        references = in_batches(trajectories, 16, run)
        return [Rollout(t, float(a), r) for t, a, r in zip(trajectories, advantages, references, strict=True)]

    def report(self, trajectories: list[Trajectory], seconds: float, failures: int) -> None:
        """Logs the iteration's play: learned reward, true outcomes, speed."""
        values = {"reward/mean": self._reward[0], "reward/std": self._reward[1], "env_steps": float(self.env_steps)}
        values |= {f"outcome/{outcome}": rate for outcome, rate in self._rates(trajectories).items()}
        values |= {
            "rollout/env_steps_per_s": self._counts[0] / seconds,
            "rollout/episode_steps": self._counts[0] / self._counts[1],
        }
        values["rollout/failures"] = float(failures)
        self._play = values

    def _rates(self, trajectories: list[Trajectory]) -> dict[str, float]:
        """How often each outcome came, over all processes; on the island those that never came too."""
        counts = Counter(trajectory.outcome for trajectory in trajectories)
        if "Jumppads" in self.data().env:
            counts.update(dict.fromkeys(("left", "middle", "right", "none"), 0))
        parts: list[Any] = [counts]
        if self.trainer.world_size > 1:
            parts = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, counts)
        together: Counter[str] = Counter()
        for part in parts:
            together.update(part)
        return {outcome: together[outcome] / together.total() for outcome in sorted(together)}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The clipped surrogate over the minibatch, per env step of the iteration."""
        data = self.data()
        log_probs = self.model(batch["frames"], batch["vectors"], batch["actions"], self.temperature)
        mask = step_mask(batch["lengths"], log_probs.shape[1])
        change = (gather_log_prob(log_probs, batch["actions"]) - batch["log_probs"]) * mask
        ratio = change.exp()
        advantages = batch["advantages"][:, None]
        surrogate = ratio * advantages
        if self.clip is not None:
            surrogate = torch.minimum(surrogate, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)
        kl, bonus = kl_divergence(log_probs, batch["reference"]), entropy(log_probs)
        # Every minibatch is divided by the iteration's mean number of steps in one, so that each env step weighs the
        # same on every process.
        steps = self._counts[0] / (data.minibatches * self.trainer.world_size)
        loss: Tensor = (mask * (self.kl * kl - surrogate - self.entropy * bonus)).sum() / steps
        with torch.no_grad():
            count = mask.sum()
            self.mean_of("kl").update((kl * mask).sum() / count, count)
            self.mean_of("entropy").update((bonus * mask).sum() / count, count)
            clipped = torch.zeros_like(mask) if self.clip is None else (ratio - 1).abs() > self.clip
            self.mean_of("clip_fraction").update((clipped & mask).sum() / count, count)
            if batch_idx == 0:
                # Before the first update the trainer must find the log-probabilities that the sampler recorded.
                self.mean_of("log_prob_gap").update(change.abs().max())
        return loss

    def mean_of(self, name: str) -> Metric:
        """A metric that is gathered over an iteration."""
        metric = self.means[name]
        assert isinstance(metric, Metric)
        return metric

    def on_train_epoch_end(self) -> None:
        """Logs the iteration, and stops the run when the KL budget is spent."""
        means = {name: self.mean_of(name) for name in self.means}
        values = {f"policy/{name}": metric.compute() for name, metric in means.items()}
        self._last_kl = float(values["policy/kl"])
        if not (self.model.head.exact_kl and self._frozen["reference"].head.exact_kl):
            values["policy/kl_conditional"] = values.pop("policy/kl")  # an estimate, and called one
        for metric in means.values():
            metric.reset()
        self.log_dict({**self._play, **values, "iteration": float(self.trainer.current_epoch)}, rank_zero_only=False)
        self._stop_when_spent()

    def _stop_when_spent(self) -> None:
        if self.max_kl is not None and self._last_kl > self.max_kl:
            self.trainer.should_stop = True

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Plays the validation episodes and logs outcomes and reward."""
        from lit_align.rollout.callback import RolloutCallback

        callback = next(c for c in self.trainer.callbacks if isinstance(c, RolloutCallback))  # type: ignore[attr-defined]
        played = list(callback.sampler(self.trainer, self).play([(int(i), int(s)) for i, s in batch["episodes"]]))
        rates = {f"val/{outcome}": rate for outcome, rate in self._rates(played).items()}
        self.log_dict(rates, batch_size=len(played))
        self.log("val/reward", self.rewards_of(played).mean(), batch_size=len(played), sync_dist=True, prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same with the seeds of the final evaluation."""
        self.validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the counters."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_align"] |= {"env_steps": self.env_steps, "kl": self._last_kl}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on counting; refuses to train on from within an iteration, whose rollouts no checkpoint holds."""
        super().on_load_checkpoint(checkpoint)
        self.env_steps, self._last_kl = checkpoint["lit_align"]["env_steps"], checkpoint["lit_align"].get("kl", 0.0)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        if epochs["processed"] < epochs["started"]:
            raise UserError(
                f"the checkpoint was written inside iteration {epochs['started'] - 1}, and its rollouts are not in it; "
                "resume from one of an iteration's end, such as checkpoints/last.ckpt"
            )
        self._stop_when_spent()

    def export(self, folder: str | Path) -> None:
        """Writes `agent/`."""
        facts = {
            "env_steps": self.env_steps,
            "env": self.data().env,
            "reward_model": Path(self.reward_folder).parent.name,
            "temperature": self.temperature,
        }
        self.leave(folder, facts)
