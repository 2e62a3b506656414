"""What an update needs of an iteration's episodes: rewards, advantages, values, and what the reference would do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lit_align.data.trajectory import Trajectory
from lit_align.models.agent import Agent
from lit_align.models.value import ValueHead
from lit_align.rollout.advantages import TINY, Estimator, Moments, explained_variance, gae, of_episodes, totals
from lit_align.rollout.buffer import in_batches, pad, pad_vectors
from lit_align.rollout.rewards import Judged, Rewards
from lit_align.rollout.steps import Rollout

NO_REFERENCE = "none"
"""Names no reference: there is nothing to stay near."""
Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over all processes."""


@dataclass
class Judge:
    """Judges the episodes of an iteration, each process its own; means and deviations are over all processes.

    Args:
        rewards: Where rewards come from.
        reference: The frozen policy to stay near; None goes without.
        estimator: Of the advantage.
        group: Episodes that `rloo` and `grpo` compare; 1 takes the whole iteration.
        gamma: Discount of a step, of `ppo`.
        gae_lambda: Of `ppo`.
        scale: Whether advantages are divided by their standard deviation.
        min_std: Returns that differ less than this (their standard deviation, in reward) count as if they differed by
            it: see `_shared` and `_of_steps`.
        temperature: Of the policy, in play and in training.

    Attributes:
        returns: Of the last iteration's undiscounted returns.
        steps: Its env steps, over all processes.
        facts: What else was found out, by the name of the metric.
    """

    rewards: Rewards
    reference: Agent | None
    estimator: Estimator = "reinforce"
    group: int = 1
    gamma: float = 1.0
    gae_lambda: float = 1.0
    scale: bool = False
    min_std: float = 0.0
    temperature: float = 1.0
    returns: Moments = field(default=Moments(1.0, 0.0, 0.0), init=False)
    steps: float = field(default=1.0, init=False)
    facts: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def networks(self) -> list[nn.Module]:
        """Every frozen network."""
        models: list[nn.Module] = list(self.rewards.models.values())
        return models if self.reference is None else [self.reference, *models]

    @torch.no_grad()
    def __call__(
        self,
        trajectories: list[Trajectory],
        judged: Judged,
        agent: Agent,
        value_head: ValueHead | None,
        reduce: Reduce,
    ) -> list[Rollout]:
        """Rollouts in the order of the trajectories, which `rewards` judged; a group's episodes stand side by side."""
        returns, steps = totals(judged.rewards), sum(len(t) for t in trajectories)
        exact = returns.double()  # squares of large returns leave no room for what sets them apart
        sums = [exact.sum(), exact.square().sum(), len(returns), steps, *(f.sum() for f in judged.facts.values())]
        total, squares, count, self.steps, *facts = _reduced(sums, agent, reduce)
        self.returns = Moments.of(count, total, squares)
        self.facts = {name: fact / count for name, fact in zip(judged.facts, facts, strict=True)}

        def moments(values: Tensor, about: float = 0.0) -> Moments:
            """Of numbers `(n,)` of every process, most of them near `about`."""
            apart = values.double() - about
            count, total, squares = _reduced([len(values), apart.sum(), apart.square().sum()], agent, reduce)
            return Moments.of(count, total, squares, about)

        if value_head is None:
            advantages = self._shared(returns, moments)
            rollouts = [Rollout(t, a.expand(len(t))) for t, a in zip(trajectories, advantages, strict=True)]
        else:
            values = values_of(trajectories, agent, value_head)
            rollouts, scale = self._of_steps(trajectories, judged.rewards, values, moments)
            if scale > 0:  # else there is nothing to learn
                value_head.rescale(scale)
        if self.reference is not None:
            known = log_probs_of(trajectories, self.reference, self.temperature)
            for rollout, log_probs in zip(rollouts, known, strict=True):
                rollout.reference = log_probs
        return rollouts

    def _shared(self, returns: Tensor, moments: Callable[..., Moments]) -> Tensor:
        """Advantages `(n,)` of whole episodes.

        Those of `grpo` are in units of their group's spread already: `min_std` is held against that, and what scales
        them is their spread without it, lest that undo it.
        """
        whole = self.returns if self.estimator == "reinforce" else moments(returns, about=self.returns.mean)
        advantages = of_episodes(returns, self.estimator, self.group, whole)
        if not self.scale:
            return advantages
        std = whole.std if self.estimator == "reinforce" else moments(advantages).std
        if self.estimator != "grpo":
            return advantages / (max(std, self.min_std) + TINY)
        return of_episodes(returns, self.estimator, self.group, whole, self.min_std) / (std + TINY)

    def _of_steps(
        self,
        trajectories: list[Trajectory],
        rewards: list[Tensor],
        values: list[Tensor],
        moments: Callable[..., Moments],
    ) -> tuple[list[Rollout], float]:
        """Each step's own advantage, and what the value head is to learn, with the scale of that.

        Advantages of steps are smaller than what an episode earned, by as much as the values know and as `gae_lambda`
        forgets. So it is not their standard deviation that `min_std` is held against but that of the episodes' returns:
        where these differ by less, scaled advantages are smaller in the same proportion, as those of whole episodes.
        """
        for trajectory, value in zip(trajectories, values, strict=True):
            # After a time limit the world would have gone on; but see `Rewards.ends`.
            if trajectory.terminated or self.rewards.ends:
                value[-1] = 0.0
        advantages = gae(rewards, values, self.gamma, self.gae_lambda)
        before = [value[:-1] for value in values]
        returns = [a + v for a, v in zip(advantages, before, strict=True)]
        spread = moments(torch.cat(advantages))  # of return - value, too
        apart = moments(torch.cat(returns))
        self.facts["value/explained_variance"] = explained_variance(apart, spread)
        if self.scale:
            damped = self.returns.std / max(self.returns.std, self.min_std) if self.min_std else 1.0
            advantages = [(a - spread.mean) / (spread.std + TINY) * damped for a in advantages]
        # Values that are off by more than the returns differ, as at first, are not the returns' fault.
        scale = max(apart.std, math.hypot(spread.mean, spread.std), self.min_std)
        each = zip(trajectories, advantages, returns, before, strict=True)
        return [Rollout(t, a, returns=r, values=v) for t, a, r, v in each], scale


def values_of(trajectories: list[Trajectory], agent: Agent, value_head: ValueHead) -> list[Tensor]:
    """What the value head tells at each frame of each episode `(T + 1,)`, on the CPU."""

    def run(part: list[Trajectory]) -> list[Tensor]:
        frames, lengths = pad(part, last=True)
        features = agent.backbone(frames.to(_device(agent)), pad_vectors(part, last=True).to(_device(agent)))
        return _rows(value_head(features), lengths)

    return in_batches(trajectories, _at_once(agent), run)


def log_probs_of(trajectories: list[Trajectory], agent: Agent, temperature: float) -> list[Tensor]:
    """Log-probabilities of every class at every step of each episode `(T, heads, widest)`, on the CPU."""

    def run(part: list[Trajectory]) -> list[Tensor]:
        frames, lengths = pad(part)
        actions = pad_sequence([torch.from_numpy(t.actions) for t in part], batch_first=True)
        seen = (tensor.to(_device(agent)) for tensor in (frames, pad_vectors(part), actions))
        return _rows(agent(*seen, temperature), lengths)

    return in_batches(trajectories, _at_once(agent), run)


def _rows(padded: Tensor, lengths: Tensor) -> list[Tensor]:
    return [row[:n].clone() for row, n in zip(padded.cpu(), lengths.tolist(), strict=True)]


def _at_once(agent: Agent) -> int:
    """Episodes of a forward pass; without pixels they are small."""
    return 16 if agent.config.image_size else 256


def _device(agent: Agent) -> torch.device:
    return next(agent.parameters()).device


def _reduced(sums: list[Any], agent: Agent, reduce: Reduce) -> list[float]:
    values = torch.tensor([float(s) for s in sums], dtype=torch.float64, device=_device(agent))
    return list(reduce(values).tolist())
