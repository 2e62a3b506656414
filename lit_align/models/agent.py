"""The agent: backbone and action heads, pi(a_t | o_t, o_{t-1}, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_align.models.backbone import Backbone
from lit_align.models.config import BackboneConfig
from lit_align.models.folder import load_folder, save_folder
from lit_align.models.transformer import KVCache
from lit_align.spaces import ActionCodec

_PAD = -1e9  # logit of a class that a head does not have: probability exactly 0, and no NaN in p * (log p - log q)


class Agent(nn.Module):
    """A policy over independent categorical action heads.

    Args:
        config: Architecture of the backbone.
        codec: The action space, one head for each dimension.
        info: Free JSON facts that travel in `config.json`: lineage, frames trained on, the environment.
    """

    kind = "agent"

    def __init__(self, config: BackboneConfig, codec: ActionCodec, info: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = config
        self.codec = codec
        self.info: dict[str, Any] = dict(info or {})
        self.backbone = Backbone(config)
        self.head = nn.Linear(config.width, sum(codec.sizes))
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        # Row h of `layout` names the logits of head h, padded to the widest head with the index of an extra,
        # impossible logit.
        widest, first = max(codec.sizes), 0
        layout = torch.full((len(codec.sizes), widest), sum(codec.sizes))
        for h, size in enumerate(codec.sizes):
            layout[h, :size] = torch.arange(first, first + size)
            first += size
        self.register_buffer("layout", layout, persistent=False)
        self.layout: Tensor

    def log_probs_of(self, features: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities `(..., heads, widest)` of every class, float32.

        Classes that a head lacks have probability 0.
        """
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(features.to(self.head.weight.dtype)).float() / temperature
        logits = torch.cat((logits, logits.new_full((*logits.shape[:-1], 1), _PAD)), dim=-1)
        return torch.log_softmax(logits[..., self.layout], dim=-1)

    def forward(self, frames: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of every class at every frame of whole sequences.

        Args:
            frames: `(B, T, H, W, 3)`, uint8.
            temperature: Divides the logits.

        Returns:
            `(B, T, heads, widest)`, float32.
        """
        return self.log_probs_of(self.backbone(frames), temperature)

    def step(self, frames: Tensor, cache: KVCache, temperature: float = 1.0) -> Tensor:
        """Log-probabilities `(B, heads, widest)` for each world's next frame `(B, H, W, 3)`; moves the cache on."""
        return self.log_probs_of(self.backbone.step(frames, cache), temperature)

    def new_cache(self, worlds: int) -> KVCache:
        """An empty KV cache for `worlds` worlds."""
        return self.backbone.new_cache(worlds)

    def save(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`; the folder appears whole or not at all."""
        content = {
            "kind": self.kind,
            "backbone": self.config.to_dict(),
            "actions": self.codec.to_dict(),
            "info": self.info,
        }
        save_folder(folder, content, self)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", random_init: bool = False) -> Agent:
        """Reads an agent's folder.

        Args:
            folder: A folder that `save` wrote.
            device: Where the weights go.
            random_init: Take the architecture and the spaces only; the weights are drawn anew.

        Raises:
            ValueError: The folder is missing, is not an agent's, or its weights do not fit its config.
        """
        agent = load_folder(folder, cls.kind, cls._build, random_init)
        assert isinstance(agent, cls)
        return agent.to(device)

    @classmethod
    def _build(cls, content: dict[str, Any]) -> Agent:
        return cls(
            BackboneConfig.from_dict(content["backbone"]),
            ActionCodec.from_dict(content["actions"]),
            content.get("info"),
        )


def gather_log_prob(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Joint log-probability `(...)` of actions `(..., heads)` under `(..., heads, widest)`: heads add up."""
    return log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1).sum(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy `(...)` in nats of independent heads `(..., heads, widest)`."""
    return -(log_probs.exp() * log_probs).sum((-1, -2))


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Exact KL(p || q) `(...)` in nats of independent heads `(..., heads, widest)`: the sum over heads."""
    return (log_p.exp() * (log_p - log_q)).sum((-1, -2))
