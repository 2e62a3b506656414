"""Alignment: online policy gradient on a reward, near a reference policy (paper, section 3.5).

One loop for every estimator of the advantage. `reinforce`, the paper's algorithm (its baseline could not be read): the
undiscounted return of the episode, shared by all its actions, minus the mean over the iteration's episodes. `rloo` and
`grpo` compare the episodes of a group, `ppo` has a value head on the agent's trunk: see
`lit_align.rollout.advantages`. More passes than one reuse the rollouts under PPO's ratio clipping (Schulman et al.
2017, arXiv 1707.06347). KL to the frozen reference is exact over independent action heads; over autoregressive ones it
is the sum of each head's KL given the classes that were chosen before it, an estimate (unbiased while the policy is the
one that played) that is logged as `policy/kl_conditional`.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor, nn

from lit_align.data.modules import Batch
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError, raise_all
from lit_align.evaluation.returns import return_of
from lit_align.models.agent import Agent, entropy, gather_log_prob, kl_divergence
from lit_align.models.value import ValueHead
from lit_align.rollout.advantages import Estimator, totals
from lit_align.rollout.callback import tensor_sum
from lit_align.rollout.judge import NO_REFERENCE, Judge
from lit_align.rollout.rewards import Rewards
from lit_align.rollout.steps import Rollout
from lit_align.rollout.together import gathered, together
from lit_align.stages.align_checks import check_networks, wrong_options
from lit_align.stages.base import Stage, channels_last, fingerprint_of, need_folder, step_mask
from lit_align.stages.best import BestWeights
from lit_align.stages.finite import MEND
from lit_align.stages.optim import OptimizerConfig
from lit_align.stages.policy_loss import UpdateMeans, adapted, surrogate, value_error
from lit_align.stages.sharding import reshard
from lit_align.stages.training import TrainConfig


class Align(Stage):
    """Policy gradient on a learned or a given reward, with ratio clipping and an exact KL penalty.

    Args:
        reward_model: Folder of the reward model; or `env`, the world's own reward of each step; or
            `package.module:function`, a Python function from a `Trajectory` to the rewards of its steps `(T,)`.
        rewards: Several of these with their weights, in place of `reward_model`.
        pessimism: A reward model's reward is the mean over its heads minus this many of their standard deviations.
        estimator: Of the advantage. `reinforce`: return minus the mean over the iteration; `rloo`: minus the mean of
            the other episodes of the group; `grpo`: minus the group's mean, over its standard deviation; `ppo`:
            generalised advantage estimation with a value head.
        gamma: Discount of a step, of ppo; the others are undiscounted.
        gae_lambda: Of ppo: 0 trusts the value head, 1 the rewards that came.
        value_coefficient: Of the value head's squared error in the loss, of ppo. The error is in units of the variance
            of the iteration's returns (or of the values' mean squared error, where that is larger), whatever the
            rewards' own units are.
        value_clip: Values may move this far in an iteration before their error stops falling, of ppo, in units of the
            same standard deviation; None for no clipping.
        reference: Folder of the frozen reference policy; None takes `init_from`; `none` goes without: nothing is
            computed for it, and there is no KL.
        temperature: Sampling temperature of the policy that plays and is trained.
        clip: Ratios are clipped to [1 - clip, 1 + clip]; None for no clipping.
        kl: Coefficient of KL(policy || reference), in nats a step.
        kl_target: KL (nats a step) to steer to: after each iteration the coefficient rises or falls by up to 2 %,
            starting from `kl`. None keeps it.
        max_kl: Stop when an iteration's mean KL (nats a step) is above this, and leave the best agent; None for no
            budget.
        leave: Which agent the run leaves, where the KL budget was not spent: the `last`, or the `best`, as it was when
            it played the iteration of the highest mean reward (with KL within the budget, where there is one).
        entropy: Coefficient of an entropy bonus, in nats a step.
        train: What of the network trains (the paper: the last layer alone, `parameters: heads`), and how it runs. A
            value head always trains.
        scale_advantages: Divide advantages by their standard deviation over the iteration; those of ppo have their mean
            taken off before.
        min_std: With `scale_advantages`, divide by no less than this (a reward model's rewards had a standard deviation
            of 1 when it was made): where nearly all episodes earn the same, what still sets them apart is noise. With
            grpo it is the standard deviation of each group that is held against it; with ppo, whose advantages are of
            steps, that of the episodes' returns: where that is smaller, advantages (over their own) shrink by as much.
        optimizer: Optimiser and schedule.
        init_from: Folder of the agent to align.
        random_init: Take its architecture only; the reference, unless another is named, is that agent as it is.
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
        reward_model: str | None = None,
        rewards: dict[str, float] | None = None,
        pessimism: float = 0.0,
        estimator: Estimator = "reinforce",
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        value_coefficient: float = 0.5,
        value_clip: float | None = None,
        reference: str | None = None,
        temperature: float = 1.0,
        clip: float | None = 0.2,
        kl: float = 0.02,
        kl_target: float | None = None,
        max_kl: float | None = None,
        leave: Literal["last", "best"] = "last",
        entropy: float = 0.0,
        train: TrainConfig | None = None,
        scale_advantages: bool = False,
        min_std: float = 0.0,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        random_init: bool = False,
    ) -> None:
        super().__init__(need_folder(init_from, "alignment"), random_init, optimizer, train)
        self.sources = dict(rewards or {}) if reward_model is None else {reward_model: 1.0}
        self.pessimism, self.estimator = pessimism, estimator
        self.gamma, self.gae_lambda = gamma, gae_lambda
        self.value_coefficient, self.value_clip = value_coefficient, value_clip
        self.reference_folder = reference
        self.temperature, self.clip, self.kl, self.entropy = temperature, clip, kl, entropy
        self.kl_target, self.max_kl, self.leaves = kl_target, max_kl, leave
        self.scale_advantages, self.min_std = scale_advantages, min_std
        errors = wrong_options(self)
        if (reward_model is None) == (not rewards):
            errors.append(
                f"model.reward_model is {reward_model} and model.rewards {rewards}; expected exactly one of them: a "
                "reward model's folder, `env` or `package.module:function`, or several of these with weights"
            )
        raise_all(errors)
        self.agent: Agent | None = None
        self.value_head: ValueHead | None = None
        # Frozen networks stay out of the module's parameters: not in checkpoints, not in the optimizer, not wrapped by
        # a strategy.
        self._frozen: dict[str, Any] = {}
        self.env_steps = 0
        self.kl_coefficient = kl
        self._last_kl = 0.0
        self._best = BestWeights()
        self.counts = (1.0, 1.0)
        optional = {"policy/kl": self.has_reference, "value/loss": estimator == "ppo"}
        self.means = UpdateMeans(
            ("policy/entropy", "policy/clip_fraction", *(name for name, there in optional.items() if there))
        )

    @property
    def has_reference(self) -> bool:
        """Whether there is a policy to stay near."""
        return self.reference_folder != NO_REFERENCE

    @property
    def keeps_best(self) -> bool:
        """Whether the best weights so far are kept, since they may be what the run leaves."""
        return self.leaves == "best" or self.max_kl is not None

    @property
    def ends_if_diverged(self) -> bool:
        """Not where an agent from before that was kept: it is left then."""
        return not self.keeps_best

    @property
    def model(self) -> Agent:
        """The agent."""
        assert self.agent is not None, "the agent is built by configure_model"
        return self.agent

    @property
    def trained(self) -> nn.Module:
        """The agent, and the value head."""
        return self.model if self.value_head is None else nn.ModuleList([self.model, self.value_head])

    def setup(self, stage: str) -> None:
        """Refuses precisions in which the log-probabilities of play and of training differ, and groups of one."""
        errors = []
        if str(self.trainer.precision) != "32-true":
            errors.append(
                f"trainer.precision is {self.trainer.precision}; align needs 32-true: in fewer bits the policy that is "
                "trained is not the policy that played, and its ratios do not start at 1"
            )
        data = self.data()
        if self.estimator in ("rloo", "grpo") and data.steps is None and data.episodes < 2:
            errors.append(
                f"model.estimator is {self.estimator} with data.episodes {data.episodes}; expected two or more, to "
                "compare them"
            )
        raise_all(errors)

    def configure_model(self) -> None:
        """Loads the agent, the reference and the reward models, and checks that they fit the world."""
        if self.agent is not None:
            return
        assert self.init_from is not None
        data = self.data()
        agent = Agent.load(self.init_from, random_init=self.random_init)
        rewards = Rewards(self.sources, self.pessimism)
        reference = Agent.load(self.reference_folder or self.init_from) if self.has_reference else None
        check_networks(self.init_from, agent, reference, rewards.models, data)
        data.codec = agent.codec
        self._parent = agent.info
        self.agent = self.ready(agent)
        if self.estimator == "ppo":
            self.value_head = ValueHead(agent.config.width)
            if self.train_config.compile:
                agent.backbone.compile(dynamic=True)  # features are asked for here, not of the agent
        data.burn_in = agent.config.receptive_field - 1
        data.least = 2 if self.estimator in ("rloo", "grpo") else 1  # to compare them
        judge = Judge(rewards, reference, self.estimator, data.group, self.gamma, self.gae_lambda)
        judge.scale, judge.min_std, judge.temperature = self.scale_advantages, self.min_std, self.temperature
        self._frozen = {"judge": judge}
        for frozen in judge.networks:
            channels_last(frozen.eval().requires_grad_(False))
        self.shard()

    def on_fit_start(self) -> None:
        """Moves the frozen networks to the device."""
        for network in self._frozen["judge"].networks:
            network.to(self.device)

    on_validation_start = on_fit_start
    on_test_start = on_fit_start

    def on_train_epoch_start(self) -> None:
        """Keeps the weights that play the iteration, where they may be what the run leaves."""
        if self.keeps_best:
            self._best.begin(self.model)
        super().on_train_epoch_start()

    def player(self) -> Agent:
        """The agent with the weights of now, whole; called by every process."""
        self.unsharded()
        agent: Agent = self.left
        return agent

    def _whole_networks(self) -> tuple[Agent, ValueHead | None]:
        """The copies of a sharded run, with the weights that `player` gave them."""
        twin: Any = self._twin[0]
        return self.left, twin[1] if self.value_head is not None else None

    def judge(self, trajectories: list[Trajectory]) -> list[Rollout]:
        """What the update needs of this process's episodes of an iteration."""
        judge = self._frozen["judge"]
        agent, value_head = (self.model, self.value_head) if not self.is_sharded else self._whole_networks()
        with together(self.trainer):  # a reward that is refused is refused on all
            judged = judge.rewards(trajectories)
            gathered(self.trainer, None)
        rollouts: list[Rollout] = judge(trajectories, judged, agent, value_head, partial(tensor_sum, self.trainer))
        if self.value_head is not None and value_head is not None and self.is_sharded:
            reshard(self)
            self.value_head.rescale(float(value_head.scale))
        self.counts = (judge.steps, judge.returns.count)
        self.env_steps += int(judge.steps)
        return rollouts

    def report(self, trajectories: list[Trajectory], seconds: float, failures: int) -> None:
        """Logs the iteration's play: reward, true outcomes, speed."""
        judge = self._frozen["judge"]
        values = {"reward/mean": judge.returns.mean, "reward/std": judge.returns.std}
        values |= {"env_steps": float(self.env_steps), **judge.facts}
        values |= {f"outcome/{outcome}": rate for outcome, rate in self._rates(trajectories).items()}
        mean, std = self._returns(trajectories)
        values |= {"rollout/return": mean, "rollout/return_std": std}
        values |= {
            "rollout/env_steps_per_s": self.counts[0] / seconds,
            "rollout/episode_steps": self.counts[0] / self.counts[1],
        }
        values["rollout/failures"] = float(failures)
        if self.data().steps is not None:
            unused = torch.tensor(float(self.data().unused), device=self.device)
            values["rollout/unused_steps"] = float(tensor_sum(self.trainer, unused))
        self._play = values

    def _rates(self, trajectories: list[Trajectory]) -> dict[str, float]:
        """How often each outcome came, over all processes; on the island those that never came too."""
        counts = Counter(trajectory.outcome for trajectory in trajectories)
        if "Jumppads" in self.data().env:
            counts.update(dict.fromkeys(("left", "middle", "right", "none"), 0))
        total: Counter[str] = Counter()
        for part in gathered(self.trainer, counts):
            total.update(part)
        return {outcome: total[outcome] / total.total() for outcome in sorted(total)}

    def _returns(self, trajectories: list[Trajectory]) -> tuple[float, float]:
        """Mean and standard deviation (of the population) of the world's own returns, over all processes."""
        own = [return_of(trajectory) for trajectory in trajectories]
        returns = [each for part in gathered(self.trainer, own) for each in part]
        return fmean(returns), pstdev(returns)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The clipped surrogate over the minibatch, per env step of the iteration."""
        data = self.data()
        log_probs, values = self._policy_and_values(batch)
        mask = step_mask(batch["lengths"], log_probs.shape[1])
        if "skip" in batch:
            mask &= ~step_mask(batch["skip"], log_probs.shape[1])  # frames before a fragment
        change = (gather_log_prob(log_probs, batch["actions"]) - batch["log_probs"]) * mask
        gain, ratio = surrogate(change, batch["advantages"], self.clip)
        with torch.set_grad_enabled(self.entropy != 0):
            bonus = entropy(log_probs)
        clipped = torch.zeros_like(mask) if self.clip is None else (ratio.detach() - 1).abs() > self.clip
        means = [bonus, clipped]
        cost = -gain
        if self.has_reference:
            with torch.set_grad_enabled(self.kl_coefficient != 0):
                kl = kl_divergence(log_probs, batch["reference"])
            cost = self.kl_coefficient * kl - gain
            means.append(kl)
        if self.entropy:
            cost = cost - self.entropy * bonus
        if values is not None:
            assert self.value_head is not None
            unit = self.value_head.scale
            error = value_error(values / unit, batch["values"] / unit, batch["returns"] / unit, self.value_clip)
            cost = cost + self.value_coefficient * error
            means.append(error)
        # Before the first update the trainer must find the log-probabilities that the sampler recorded.
        self.means.update(means, mask, change.detach().abs().max() if batch_idx == 0 else None)
        # Every minibatch is divided by the iteration's mean number of steps in one, so that each env step weighs the
        # same on every process.
        steps = self.counts[0] / (data.minibatches * self.trainer.world_size)
        loss: Tensor = (mask * cost).sum() / steps
        return loss

    def _policy_and_values(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities `(B, T, heads, widest)` and values `(B, T)`, of one forward through the trunk."""
        if self.value_head is None:
            return self.model(batch["frames"], batch["vectors"], batch["actions"], self.temperature), None
        features = self.model.backbone(batch["frames"], batch["vectors"])
        return self.model.log_probs_of(features, batch["actions"], self.temperature), self.value_head(features)

    def on_train_epoch_end(self) -> None:
        """Logs the iteration, keeps the best, steers the KL, and stops the run when the KL budget is spent."""
        values = {name: float(value) for name, value in self.means.compute().items()}
        self.means.reset()
        self._last_kl = values.get("policy/kl", 0.0)
        if self.kl_target is not None:
            values["policy/kl_coefficient"] = self.kl_coefficient
            self.kl_coefficient = adapted(self.kl_coefficient, self._last_kl, self.kl_target)
        judge: Judge = self._frozen["judge"]
        if judge.reference is not None and not (self.model.head.exact_kl and judge.reference.head.exact_kl):
            values["policy/kl_conditional"] = values.pop("policy/kl")  # an estimate, and called one
        iteration = self.trainer.current_epoch
        self.log_dict({**self._play, **values, "iteration": float(iteration)}, rank_zero_only=False)
        if self.keeps_best and not self._spent:
            self._best.offer(iteration, judge.returns.mean)
        if self.keeps_best and self.has_diverged():
            rank_zero_warn(
                f"iteration {iteration} left weights that are not finite: the run ends, and leaves the agent of "
                f"iteration {self._best.iteration}; {MEND.format(lr=self.optimizer.lr)}"
            )
            self._last_kl = math.nan  # which a checkpoint keeps
        self._stop_when_spent()

    @property
    def _spent(self) -> bool:
        return self.max_kl is not None and not self._last_kl <= self.max_kl  # a KL that is no number has spent it

    def _stop_when_spent(self) -> None:
        if self._spent or math.isnan(self._last_kl):
            self.trainer.should_stop = True

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Plays the validation episodes and logs outcomes and reward."""
        from lit_align.rollout.callback import RolloutCallback, show

        callback = next(c for c in self.trainer.callbacks if isinstance(c, RolloutCallback))  # type: ignore[attr-defined]
        with together(self.trainer):
            played = list(callback.sampler(self.trainer, self).play([(int(i), int(s)) for i, s in batch["episodes"]]))
            reward = totals(self._frozen["judge"].rewards(played).rewards).mean()
            rates = {f"val/{outcome}": rate for outcome, rate in self._rates(played).items()}
            rates["val/return"], _ = self._returns(played)
        self.log_dict(rates, batch_size=len(played))
        self.log("val/reward", reward, batch_size=len(played), sync_dist=True, prog_bar=True)
        show(self.trainer, played, "validation")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """The same with the seeds of the final evaluation."""
        self.validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the counters, the KL's coefficient and the best weights."""
        super().on_save_checkpoint(checkpoint)
        kept = {"env_steps": self.env_steps, "kl": self._last_kl, "kl_coefficient": self.kl_coefficient}
        checkpoint["lit_align"] |= kept | ({"best": self._best.state_dict()} if self.keeps_best else {})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on counting; refuses to train on from within an iteration, whose rollouts no checkpoint holds."""
        super().on_load_checkpoint(checkpoint)
        kept = checkpoint["lit_align"]
        self.env_steps, self._last_kl = kept["env_steps"], kept.get("kl", 0.0)
        if "best" in kept:
            self._best.load_state_dict(kept["best"])
        if self.kl_target is not None:
            self.kl_coefficient = kept.get("kl_coefficient", self.kl)
        if self.trainer.state.fn != TrainerFn.FITTING:
            return
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        if epochs["processed"] < epochs["started"]:
            raise UserError(
                f"the checkpoint was written inside iteration {epochs['started'] - 1}, and its rollouts are not in it; "
                "resume from one of an iteration's end, such as checkpoints/last.ckpt"
            )
        self._stop_when_spent()

    def on_fit_end(self) -> None:
        """Has process 0 hold what may be left."""
        self._best.gather()
        super().on_fit_end()

    def _fingerprints(self) -> dict[str, str]:
        """Those of the reward models, by name, for the lineage."""
        rewards = self._frozen["judge"].rewards
        named = zip(rewards.names, self.sources, strict=True)
        found = {name: fingerprint_of(source) for name, source in named if name in rewards.models}
        return {name: print_["fingerprint"] for name, print_ in found.items() if print_}

    def export(self, folder: str | Path) -> None:
        """Writes `agent/`: the last one, or the best one where that is asked for or the KL budget was spent."""
        facts: dict[str, Any] = {
            "env_steps": self.env_steps,
            "env": self.data().env,
            "reward_model": ", ".join(self._frozen["judge"].rewards.names),
            "reward_fingerprints": self._fingerprints(),
            "estimator": self.estimator,
            "temperature": self.temperature,
        }
        if self.leaves == "best" or self._spent:
            self._best.restore(self.left)
            facts["best_iteration"] = self._best.iteration
        self.leave(folder, facts)
        from lit_align.evaluation import over_optimisation  # draws; training need not wait for it

        rewards = self._frozen["judge"].rewards
        over_optimisation.leave(folder, over_optimisation.wanted(rewards), over_optimisation.is_own(rewards))
