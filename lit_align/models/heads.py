"""Action heads: features to a distribution over actions, independent for each dimension or one after another.

Both kinds work on log-probabilities `(..., heads, widest)`: row h holds the classes of head h, padded to the widest
head with classes of probability 0.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_align.errors import UserError

_PAD = -1e9  # logit of a class that a head does not have: probability exactly 0, and no NaN in p * (log p - log q)


@dataclass
class PolicyConfig:
    """How an agent's action is distributed.

    Attributes:
        heads: `independent`: the dimensions of an action are independent given what was seen (the paper's);
            `autoregressive`: each dimension also depends on those before it.
        width: Hidden units of autoregressive heads.
    """

    heads: Literal["independent", "autoregressive"] = "independent"
    width: int = 128

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PolicyConfig:
        """Reads what `to_dict` wrote.

        Raises:
            ValueError: An unknown key or a value that does not fit.
        """
        if not isinstance(data, dict) or not set(data) <= {"heads", "width"}:
            raise UserError(f"the policy's config is {data!r}; expected the keys heads and width")
        config = cls(**data)
        config.check()
        return config

    def check(self) -> None:
        """Raises ValueError if a field does not fit."""
        if self.heads not in ("independent", "autoregressive"):
            raise UserError(f"policy.heads is {self.heads!r}; expected independent or autoregressive")
        if not isinstance(self.width, int) or isinstance(self.width, bool) or not 1 <= self.width <= 2**16:
            raise UserError(f"policy.width is {self.width!r}; expected a whole number, 1 to {2**16}")


class Heads(nn.Module):
    """What both kinds of heads share: how logits are laid out.

    Args:
        sizes: Number of classes of each head.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        widest, first = max(sizes), 0
        layout = torch.full((len(sizes), widest), sum(sizes))
        for h, size in enumerate(sizes):
            layout[h, :size] = torch.arange(first, first + size)
            first += size
        # Row h names the logits of head h, padded with the index of an extra, impossible one.
        self.register_buffer("layout", layout, persistent=False)
        self.layout: Tensor

    def spread(self, logits: Tensor, temperature: float) -> Tensor:
        """Logits `(..., sum of sizes)` to log-probabilities `(..., heads, widest)`, float32."""
        if temperature != 1:
            logits = logits / temperature
        if len(set(self.sizes)) == 1:  # no head is padded
            return torch.log_softmax(logits.reshape(*logits.shape[:-1], *self.layout.shape), dim=-1)
        logits = torch.cat((logits, logits.new_full((*logits.shape[:-1], 1), _PAD)), dim=-1)
        return torch.log_softmax(logits[..., self.layout], dim=-1)


class IndependentHeads(Heads):
    """A linear layer: `pi(a | o) = prod_h pi_h(a_h | o)`.

    Args:
        width: Of the features.
        sizes: Number of classes of each head.
    """

    exact_kl = True

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__(sizes)
        self.weight = nn.Parameter(torch.empty(sum(sizes), width))
        self.bias = nn.Parameter(torch.zeros(sum(sizes)))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Features `(..., width)` to the logits of all heads side by side `(..., sum of sizes)`.

        In float32 at the least: probabilities that differ little must not be rounded to the same number.
        """
        return F.linear(wide(features), wide(self.weight), wide(self.bias))

    def log_probs(self, features: Tensor, actions: Tensor | None, temperature: float) -> Tensor:
        """Log-probabilities `(..., heads, widest)` given features `(..., width)`; `actions` are not looked at."""
        return self.spread(self(features), temperature)

    def sample(self, features: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
        """Classes `(B, heads)`, int64, and their joint log-probability `(B,)`; see `draw`."""
        actions, log_probs = draw(self.log_probs(features, None, temperature or 1.0), uniform, temperature, top_p)
        return actions, log_probs.sum(-1)


class AutoregressiveHeads(Heads):
    """`pi(a | o) = prod_h pi_h(a_h | o, a_1, ..., a_h-1)`, one hidden layer shared by all dimensions.

    The hidden layer of head h is the features plus an embedding of every class chosen before it, as in NADE (Larochelle
    and Murray 2011), so that training on a whole recorded action is one pass.

    Args:
        width: Of the features.
        sizes: Number of classes of each head.
        hidden: Units of the hidden layer.
    """

    exact_kl = False

    def __init__(self, width: int, sizes: tuple[int, ...], hidden: int) -> None:
        super().__init__(sizes)
        self.inward = nn.Linear(width, hidden)
        self.chosen = nn.Parameter(torch.randn(sum(sizes), hidden) * 0.02)
        self.outward = nn.Parameter(torch.randn(sum(sizes), hidden) / math.sqrt(hidden) * 0.5)
        self.bias = nn.Parameter(torch.zeros(sum(sizes)))
        nn.init.normal_(self.inward.weight, std=0.02)
        nn.init.zeros_(self.inward.bias)
        self.register_buffer("first", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.first: Tensor

    def _inward(self, features: Tensor) -> Tensor:
        return F.linear(wide(features), wide(self.inward.weight), wide(self.inward.bias))

    def log_probs(self, features: Tensor, actions: Tensor | None, temperature: float) -> Tensor:
        """Log-probabilities `(..., heads, widest)` of each head given the classes of the heads before it.

        Args:
            features: `(..., width)`.
            actions: Classes `(..., heads)` on which the heads are conditioned.
            temperature: Divides the logits.

        Raises:
            ValueError: No actions were given.
        """
        if actions is None:
            raise UserError("autoregressive heads depend on the action: give the actions that were taken")
        inward = self._inward(features)
        chosen = wide(self.chosen)[actions.long() + self.first]
        before = F.pad(chosen, (0, 0, 1, 0))[..., :-1, :].cumsum(-2)
        hidden = F.gelu(inward[..., None, :] + before, approximate="tanh")
        # Row h of the hidden layer against the output rows of head h alone, gathered through the layout.
        outward = F.pad(wide(self.outward), (0, 0, 0, 1))[self.layout]
        bias = F.pad(wide(self.bias), (0, 1))[self.layout]
        logits = torch.einsum("...hk,hck->...hc", hidden, outward) + bias
        return torch.log_softmax(torch.where(self.layout == len(self.bias), _PAD, logits / temperature), dim=-1)

    def sample(self, features: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
        """Classes `(B, heads)`, int64, drawn head after head, and their joint log-probability `(B,)`; see `draw`."""
        inward = self._inward(features)
        outward, bias, chosen = wide(self.outward), wide(self.bias), wide(self.chosen)
        actions: list[Tensor] = []
        total = uniform.new_zeros(len(uniform))
        start = 0
        for h, size in enumerate(self.sizes):
            part = slice(start, start + size)
            hidden = F.gelu(inward, approximate="tanh")
            logits = F.linear(hidden, outward[part], bias[part])
            log_probs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
            action, log_prob = draw(log_probs[:, None], uniform[:, h : h + 1], temperature, top_p)
            actions.append(action)
            total = total + log_prob[:, 0]
            inward = inward + chosen[action[:, 0] + start]
            start += size
        return torch.cat(actions, dim=1), total


def wide(x: Tensor) -> Tensor:
    """In float32 at the least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def make_heads(config: PolicyConfig, width: int, sizes: tuple[int, ...]) -> IndependentHeads | AutoregressiveHeads:
    """The heads that a config names, on features of `width`."""
    if config.heads == "independent":
        return IndependentHeads(width, sizes)
    return AutoregressiveHeads(width, sizes, config.width)


def draw(log_probs: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Draws a class of every head by inverting its cumulative distribution.

    Args:
        log_probs: `(B, heads, classes)`, float32, at `temperature`.
        uniform: Noise `(B, heads)` in [0, 1).
        temperature: 0 takes the likeliest class; other values were applied already.
        top_p: Draw from the smallest set of classes that holds this much probability (Holtzman et al. 2020, arXiv
            1904.09751), renormalised; 1 leaves every class.

    Returns:
        Classes `(B, heads)`, int64, and the log-probability of each under what it was drawn from `(B, heads)`, float32.
        A greedy choice is told with its log-probability at temperature 1.
    """
    if temperature == 0:
        best = log_probs.max(-1)
        return best.indices, best.values
    if top_p < 1:
        order = log_probs.argsort(-1, descending=True)
        above = log_probs.gather(-1, order).exp().cumsum(-1) - log_probs.gather(-1, order).exp()
        kept = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, above < top_p)
        log_probs = torch.log_softmax(log_probs.masked_fill(~kept, _PAD), dim=-1)
    # Float64, so that the sum cannot end below the noise at a class that has no probability.
    cumulative = log_probs.double().exp().cumsum(-1)
    threshold = uniform.double() * cumulative[..., -1]
    actions = (cumulative <= threshold[..., None]).sum(-1)
    return actions, log_probs.gather(-1, actions[..., None])[..., 0]
