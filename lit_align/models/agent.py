"""The agent: backbone and action heads, pi(a_t | o_t, o_{t-1}, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.models.acting import Actor, Precision, prepare
from lit_align.models.backbone import Backbone
from lit_align.models.config import BackboneConfig
from lit_align.models.folder import save_folder
from lit_align.models.folder_model import FolderModel
from lit_align.models.heads import PolicyConfig, make_heads
from lit_align.models.quantize import is_quantized
from lit_align.models.transformer import KVCache
from lit_align.spaces import ActionCodec

if TYPE_CHECKING:
    from lit_align.models.observations import Observation, Worlds

MOST_FPS = 1e6
"""Above it a number is no speed."""


class Agent(FolderModel):
    """A policy over categorical action heads.

    Args:
        config: Architecture of the backbone.
        codec: The action space, one head for each dimension.
        info: Free JSON facts that travel in `config.json`: lineage, frames trained on, the environment.
        policy: How the heads depend on each other; independent by default.
    """

    kind = "agent"

    def __init__(
        self,
        config: BackboneConfig,
        codec: ActionCodec,
        info: dict[str, Any] | None = None,
        policy: PolicyConfig | None = None,
    ) -> None:
        super().__init__()
        self.codec = codec
        self.info: dict[str, Any] = dict(info or {})
        self.policy = policy or PolicyConfig()
        self.policy.check()
        self.backbone = Backbone(config)
        self.config = self.backbone.config
        self.head = make_heads(self.policy, config.width, codec.sizes)
        self._actor: Actor | None = None

    @property
    def fps(self) -> float | None:
        """Env steps a second of the play that it learned from; None where its `info` does not tell."""
        told = self.info.get("fps")
        if isinstance(told, bool) or not isinstance(told, int | float):  # a `config.json` may come from anybody
            return None
        return float(told) if 0 < told <= MOST_FPS else None

    def log_probs_of(self, features: Tensor, actions: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Log-probabilities `(..., heads, widest)` of every class given features `(..., width)`, float32.

        Classes that a head lacks have probability 0. Autoregressive heads are conditioned on `actions` `(..., heads)`.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self.head.log_probs(features, actions, temperature)

    def forward(
        self, frames: Tensor, vectors: Tensor | None = None, actions: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Log-probabilities of every class at every frame of whole sequences.

        Args:
            frames: `(B, T, H, W, 3)`, uint8; H and W are 0 where there are no pixels.
            vectors: Vector observations `(B, T, V)`, float32; None where V is 0.
            actions: Classes `(B, T, heads)` that were chosen; autoregressive heads need them.
            temperature: Divides the logits.

        Returns:
            `(B, T, heads, widest)`, float32; of autoregressive heads, given the classes before.
        """
        return self.log_probs_of(self.backbone(frames, vectors), actions, temperature)

    def step(
        self,
        frames: Tensor,
        cache: KVCache,
        vectors: Tensor | None = None,
        actions: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """The same for each world's next frame; moves the cache on.

        Args:
            frames: `(B, H, W, 3)`, uint8.
            cache: What the worlds saw before.
            vectors: `(B, V)`, float32; None where V is 0.
            actions: Classes `(B, heads)` on which autoregressive heads are conditioned.
            temperature: Divides the logits.

        Returns:
            `(B, heads, widest)`, float32.
        """
        return self.log_probs_of(self.backbone.step(frames, cache, vectors), actions, temperature)

    def choose(
        self,
        frames: Tensor,
        cache: KVCache,
        vectors: Tensor | None,
        uniform: Tensor,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Each world's next action; moves the cache on. Static shapes, no branch on values: it can be compiled.

        Args:
            frames: `(B, H, W, 3)`, uint8.
            cache: What the worlds saw before.
            vectors: `(B, V)`, float32; None where V is 0.
            uniform: Noise `(B, heads)` in [0, 1), float32.
            temperature: Divides the logits; 0 takes the likeliest class of every head.
            top_p: Draw from the smallest set of classes that holds this much probability.

        Returns:
            Classes `(B, heads)`, int64, and their joint log-probability `(B,)`, float32, under what they were drawn
            from; of a greedy choice, at temperature 1.
        """
        return self.head.sample(self.backbone.step(frames, cache, vectors), uniform, temperature, top_p)

    def new_cache(self, worlds: int) -> KVCache:
        """An empty KV cache for `worlds` worlds."""
        return self.backbone.new_cache(worlds)

    def act(self, observation: Observation, temperature: float = 1.0, top_p: float = 1.0) -> Any:
        """What to do now, in one world or in many: the past is kept between calls.

        The first call decides how many worlds there are, and puts the agent in evaluation mode; `reset` begins new
        episodes.

        Args:
            observation: A frame `(H, W, 3)`, or frames of B worlds `(B, H, W, 3)`, uint8, RGB, square: NumPy, torch on
                any device, a Pillow image, or a list of frames. Frames of another size are resized by area, as training
                does it. An agent that sees a vector takes a dict `{"pixels": ..., "vector": ...}`, or the vector alone
                if it sees no pixels.
            temperature: Divides the logits; 0 takes the likeliest class of every head.
            top_p: Draw from the smallest set of classes that holds this much probability.

        Returns:
            An action of the action space, or a list of B of them.

        Raises:
            ValueError: The observation is of a type or shape that the agent cannot see, or of another number of worlds
                than before, or temperature or top_p are out of range.
        """
        if self._actor is None:
            self._actor = Actor(self)
        return self._actor.act(observation, temperature, top_p)

    def reset(self, worlds: Worlds | None = None, seed: int | None = None) -> None:
        """Begins new episodes for `act`.

        Args:
            worlds: In which worlds, by their numbers or as a mask `(B,)`; None forgets all of them, so that the next
                call may be of another number.
            seed: Draws anew from here on; None goes on drawing.

        Raises:
            ValueError: There is no such world.
        """
        if self._actor is None:
            self._actor = Actor(self)
        self._actor.reset(worlds, seed)

    def prepare(self, precision: Precision = "fp32", compile: bool = False) -> Agent:
        """A copy of this agent for acting only: in fewer bits, compiled. See `lit_align.models.acting.make_ready`."""
        return prepare(self, precision, compile)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the agent does not remember what this one saw."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "_actor": None}

    def save(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`; the folder appears whole or not at all.

        Raises:
            ValueError: The agent was prepared for acting in 8 bits, which cannot be trained on or loaded again.
        """
        if is_quantized(self):
            raise UserError("an agent in int8 is for acting only; save the one that it was prepared from")
        content = {
            "kind": self.kind,
            "backbone": self.config.to_dict(),
            "policy": self.policy.to_dict(),
            "actions": self.codec.to_dict(),
            "info": self.info,
        }
        save_folder(folder, content, self)

    @classmethod
    def _build(cls, content: dict[str, Any]) -> Agent:
        return cls(
            BackboneConfig.from_dict(content["backbone"]),
            ActionCodec.from_dict(content["actions"]),
            content.get("info"),
            PolicyConfig.from_dict(content.get("policy", {})),
        )


def gather_log_prob(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Joint log-probability `(...)` of actions `(..., heads)` under `(..., heads, widest)`: heads add up."""
    return log_probs.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1).sum(-1)


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy `(...)` in nats of heads `(..., heads, widest)`: exact if they are independent.

    For autoregressive heads it is that of each head given the classes before it, an estimate of the joint one.
    """
    return -(log_probs.exp() * log_probs).sum((-1, -2))


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) `(...)` in nats of heads `(..., heads, widest)`: the sum over heads, exact if they are independent.

    For autoregressive heads it is conditioned on an action. If p chose the action, it is an unbiased estimate of the
    joint one (chain rule).
    """
    return (log_p.exp() * (log_p - log_q)).sum((-1, -2))
