"""From rewards to advantages: pure functions on the episodes of an iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Estimator = Literal["reinforce", "rloo", "grpo", "ppo"]
TINY = 1e-6
"""Added to a standard deviation before something is divided by it."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and standard deviation (of the population) of some numbers."""

    count: float
    mean: float
    std: float

    @classmethod
    def of(cls, count: float, total: float, squares: float, about: float = 0.0) -> Moments:
        """From sums, which can be added up over processes.

        Args:
            count: How many numbers.
            total: The sum of the numbers minus `about`.
            squares: The sum of the squares of these differences.
            about: A number near the mean; the nearer, the less is lost to rounding.
        """
        mean = total / count
        return cls(count, about + mean, max(squares / count - mean**2, 0.0) ** 0.5)


def totals(rewards: list[Tensor]) -> Tensor:
    """The undiscounted return of each episode `(n,)`, float32, of rewards `(T,)`."""
    return torch.stack([reward.sum() for reward in rewards])


def of_episodes(returns: Tensor, estimator: Estimator, group: int, whole: Moments, min_std: float = 0.0) -> Tensor:
    """Advantages that all actions of an episode share.

    - `reinforce`: R - mean over the iteration.
    - `rloo`: R - mean of the other episodes of the group (Ahmadian et al. 2024, arXiv 2402.14740).
    - `grpo`: (R - mean of the group) / (its standard deviation + 1e-6) (Shao et al. 2024, arXiv 2402.03300).

    Args:
        returns: R of each episode `(n,)`; those of a group stand side by side.
        estimator: Not `ppo`, whose advantages are each step's own: see `gae`.
        group: Episodes in a group; 1 takes the whole iteration for one.
        whole: Of the returns of the whole iteration, over all processes.
        min_std: `grpo` divides by no less than this.

    Returns:
        `(n,)`, float32.
    """
    if estimator == "reinforce":
        return returns - whole.mean
    rows = returns.double()
    if group > 1:
        rows = rows.view(-1, group)
        above, std = rows - rows.mean(1, keepdim=True), rows.std(1, correction=0, keepdim=True)
        count: float = group
    else:
        above, std, count = rows - whole.mean, rows.new_tensor(whole.std), whole.count
    # R_i - mean of the others = (R_i - mean of all) n / (n - 1)
    found = above * count / (count - 1) if estimator == "rloo" else above / (std.clamp_min(min_std) + TINY)
    return found.flatten().float()


def gae(rewards: list[Tensor], values: list[Tensor], gamma: float, gae_lambda: float) -> list[Tensor]:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438, equation 16).

        A_t = sum over l >= 0 of (gamma lambda)^l delta_{t+l},   delta_t = r_t + gamma V_{t+1} - V_t

    Args:
        rewards: Of each episode `(T,)`.
        values: V at each of its frames `(T + 1,)`; the last is what is to be expected after its end, 0 if nothing is.
        gamma: Discount of a step.
        gae_lambda: 0 trusts the values, 1 the rewards that came.

    Returns:
        Advantages `(T,)` of each episode, float32.
    """
    lengths = np.array([len(reward) for reward in rewards])
    inside = np.arange(lengths.max()) < lengths[:, None]
    seen = np.arange(lengths.max() + 1) <= lengths[:, None]
    value, delta = np.zeros(seen.shape), np.zeros(inside.shape)
    value[seen] = torch.cat(values).double().numpy()
    delta[inside] = torch.cat(rewards).double().numpy()
    delta += (gamma * value[:, 1:] - value[:, :-1]) * inside
    # Time first: a row is then a step of every episode; after an episode's end all is 0.
    sums = np.ascontiguousarray(delta.T)
    for t in range(len(sums) - 2, -1, -1):
        sums[t] += gamma * gae_lambda * sums[t + 1]
    found = torch.from_numpy(sums.T[inside].astype(np.float32))
    return list(torch.split(found, lengths.tolist()))


def explained_variance(returns: Moments, errors: Moments) -> float:
    """1 - Var(return - value) / Var(return): 1 for values that know all, 0 for a constant, or if returns are alike."""
    return 1.0 - (errors.std / returns.std) ** 2 if returns.std > 0 else 0.0
