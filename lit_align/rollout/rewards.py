"""Where rewards come from: reward models, functions, the world itself; one of them, or several with weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lit_align.data.annotators import call_on, load_function
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.models.folder import read_config
from lit_align.models.reward import RewardModel
from lit_align.rollout.advantages import totals
from lit_align.rollout.buffer import in_batches, pad, pad_vectors

ENVIRONMENT = "env"
"""The source that is the world's own reward."""
RESERVED = ("mean", "std", "heads_std")
"""Metrics `reward/...` that are not a source's."""


def is_function(source: str) -> bool:
    """Whether a source is `package.module:function`."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None


def check_source(source: str, option: str) -> None:
    """Raises UserError if a source is neither `env`, nor a function that is there, nor a reward model's folder."""
    if is_function(source):
        load_function(source, option)
    elif source != ENVIRONMENT:
        try:
            read_config(source, RewardModel.kind)
        except UserError as error:
            raise UserError(f"{option}: {error}, or `env`, or `package.module:function`") from error


@dataclass
class Judged:
    """Rewards of episodes.

    Attributes:
        rewards: Of each episode `(T,)`, float32, on the CPU.
        facts: Numbers about each episode `(n,)` by the name of the metric that is their mean.
    """

    rewards: list[Tensor]
    facts: dict[str, Tensor]


class Source(Protocol):
    """Where rewards come from."""

    def __call__(self, trajectories: list[Trajectory]) -> tuple[list[Tensor], Tensor | None]:
        """Rewards `(T,)` of each episode, float32, and how much heads disagree about each `(n,)`, if there are any."""
        ...


class WorldReward:
    """The world's own reward of each step."""

    def __call__(self, trajectories: list[Trajectory]) -> tuple[list[Tensor], None]:
        """See `Source`."""
        return [torch.from_numpy(t.rewards) for t in trajectories], None


class FunctionReward:
    """A Python function from a `Trajectory` to the rewards of its steps `(T,)`: a list, an array, a tensor.

    Args:
        source: `package.module:function`.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.function: Callable[[Trajectory], Any] = load_function(source, "the reward")

    def __call__(self, trajectories: list[Trajectory]) -> tuple[list[Tensor], None]:
        """See `Source`.

        Raises:
            UserError: The function gave something else.
        """
        return [self._of(trajectory) for trajectory in trajectories], None

    def _of(self, trajectory: Trajectory) -> Tensor:
        answer = call_on(trajectory, self.function, f"the reward {self.source}")
        told = f"the reward {self.source} gave episode {trajectory.id} of {len(trajectory)} steps"
        try:
            plain = answer.detach().cpu().numpy() if isinstance(answer, Tensor) else answer
            rewards = np.array(plain, np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"{told} a {type(answer).__name__}; expected an array of one number a step") from error
        if rewards.shape != (len(trajectory),):
            raise UserError(f"{told} an array of shape {rewards.shape}; expected one number a step")
        if not np.isfinite(rewards).all():
            at = int(np.flatnonzero(~np.isfinite(rewards))[0])
            raise UserError(f"{told} a reward that is {rewards[at]} at step {at}; expected finite numbers")
        return torch.from_numpy(rewards)


class LearnedReward:
    """A reward model: the normalised reward of the whole episode, spread over its steps by the model's readout.

    `last`: all of it at the last step. `sum`: a step gets the score of the frame that it led to, and an equal share of
    the rest: of the first frame's score, of the mean that normalisation takes off, of pessimism.

    Args:
        source: The reward model's folder.
        pessimism: The reward is the mean over the K heads minus this many of their standard deviations (of the sample,
            K - 1), of normalised rewards. Below 0 for a reward that is to be avoided.
    """

    def __init__(self, source: str, pessimism: float = 0.0) -> None:
        self.source = source
        self.model = RewardModel.load(source).eval().requires_grad_(False)
        if pessimism and self.model.heads < 2:
            raise UserError(
                f"model.pessimism is {abs(pessimism)}; the reward model '{source}' has one head, and one head cannot "
                "disagree: expected pessimism of 0, or a reward model that was trained with --model.heads 2 or more"
            )
        self.pessimism = pessimism

    @torch.no_grad()
    def __call__(self, trajectories: list[Trajectory]) -> tuple[list[Tensor], Tensor | None]:
        """See `Source`.

        Raises:
            UserError: The model gives numbers that are not finite.
        """
        rows = 16 if self.model.config.image_size else 256
        found = in_batches(trajectories, rows, self._score)
        for trajectory, (rewards, _) in zip(trajectories, found, strict=True):
            if not rewards.isfinite().all():
                raise UserError(
                    f"the reward model '{self.source}' gave episode {trajectory.id} a reward that is not finite; its "
                    "training diverged: train it again"
                )
        spreads = torch.stack([spread for _, spread in found]) if self.model.heads > 1 else None
        return [rewards for rewards, _ in found], spreads

    def _score(self, part: list[Trajectory]) -> list[tuple[Tensor, Tensor]]:
        """Rewards `(T,)` and disagreement of the heads of each episode."""
        model, device = self.model, self.model.head.weight.device
        frames, lengths = (tensor.to(device) for tensor in pad(part, last=True))
        scores = model.scores(frames, pad_vectors(part, last=True).to(device))
        heads = model.normalise(model.read(scores, lengths))
        reward = heads.mean(1)
        spread = heads.std(1) if model.heads > 1 else torch.zeros_like(reward)
        if self.pessimism:
            reward = reward - self.pessimism * spread
        steps = (scores / model.std).mean(2)[:, 1:].cpu()
        return [
            (self._spread(total, row[: len(one)]), doubt)
            for one, total, row, doubt in zip(part, reward.cpu(), steps, spread.cpu(), strict=True)
        ]

    def _spread(self, total: Tensor, steps: Tensor) -> Tensor:
        if self.model.readout == "sum":
            return steps + (total - steps.sum()) / len(steps)
        rewards = torch.zeros_like(steps)
        rewards[-1] = total
        return rewards


class Rewards:
    """The weighted sum of some sources.

    Args:
        sources: Weight of each source: a reward model's folder, `env`, or `package.module:function`.
        pessimism: How many standard deviations of its heads are taken off a reward model's reward, or added to one
            whose weight is below 0; 0 or more. See `LearnedReward`.

    Attributes:
        names: A short name of each source, for metrics: the run's folder, the function, `env`.
        models: The reward models among them, by name.
        ends: Whether nothing is to be had after an episode's last step, however it ended: a learned reward judges the
            episode as it is, while the world's reward would have gone on after a time limit. Of both it is the former
            that counts: the values tell the learned reward too, and would pay it twice.

    Raises:
        UserError: A source is not there, a weight is no number, or pessimism has no heads to compare.
    """

    def __init__(self, sources: dict[str, float], pessimism: float = 0.0) -> None:
        if not all(math.isfinite(weight) for weight in sources.values()):
            raise UserError(f"model.rewards is {sources}; expected a finite weight for each source")
        self.weights = list(sources.values())
        # What is held against a model's reward is to its disadvantage whichever way that is weighed.
        self.sources: list[Source] = [
            _load(source, math.copysign(pessimism, weight)) for source, weight in sources.items()
        ]
        self.names = _names(list(sources))
        learned = {n: s.model for n, s in zip(self.names, self.sources, strict=True) if isinstance(s, LearnedReward)}
        self.models: dict[str, RewardModel] = learned
        self.ends = any(weight for name, weight in zip(self.names, self.weights, strict=True) if name in learned)
        if pessimism and not learned:
            raise UserError(
                f"model.pessimism is {pessimism}, and there is no reward model whose heads it could compare: expected 0"
            )

    def __call__(self, trajectories: list[Trajectory]) -> Judged:
        """Scores episodes."""
        scored = [source(trajectories) for source in self.sources]
        facts: dict[str, Tensor] = {}
        if len(scored) > 1:
            facts = {f"reward/{n}": totals(rewards) for n, (rewards, _) in zip(self.names, scored, strict=True)}
        if doubts := [doubt for _, doubt in scored if doubt is not None]:
            facts["reward/heads_std"] = torch.stack(doubts).mean(0)
        if len(scored) == 1 and self.weights[0] == 1.0:
            return Judged(scored[0][0], facts)
        each = zip(*(rewards for rewards, _ in scored), strict=True)
        weighted = [sum(w * part for w, part in zip(self.weights, parts, strict=True)) for parts in each]
        return Judged([torch.as_tensor(rewards) for rewards in weighted], facts)


def _load(source: str, pessimism: float) -> Source:
    if is_function(source):
        return FunctionReward(source)
    return WorldReward() if source == ENVIRONMENT else LearnedReward(source, pessimism)


def _names(sources: list[str]) -> list[str]:
    names = list(RESERVED)
    for source in sources:
        name = source.split(":")[1] if is_function(source) else Path(source).parent.name or Path(source).name
        before = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?", other) is not None for other in names)
        names.append(f"{name}_{before + 1}" if before else name)
    return names[len(RESERVED) :]
