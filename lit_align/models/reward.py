"""The reward model: the agent's backbone with K scalar heads, read at a trajectory's end or summed over its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lit_align.errors import UserError
from lit_align.models.acting import Precision, prepare
from lit_align.models.agent import Agent
from lit_align.models.backbone import Backbone
from lit_align.models.config import BackboneConfig
from lit_align.models.folder import save_folder
from lit_align.models.folder_model import FolderModel
from lit_align.models.quantize import is_quantized
from lit_align.models.scoring import Scorer, running

Readout = Literal["last", "sum"]


class RewardModel(FolderModel):
    """Scores trajectories.

    Args:
        config: Architecture of the backbone.
        heads: K, the number of scalar heads; their mean is the reward, their spread tells how sure it is.
        readout: `last` reads the reward at a trajectory's last frame, `sum` adds up every frame's.
        info: Free JSON facts that travel in `config.json`.
    """

    kind = "reward_model"

    def __init__(
        self, config: BackboneConfig, heads: int = 1, readout: Readout = "last", info: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if heads < 1 or readout not in get_args(Readout):
            raise UserError(
                f"a reward model with {heads} heads and readout {readout!r}; "
                f"expected 1 head or more and one of {get_args(Readout)}"
            )
        self.heads = heads
        self.readout: Readout = readout
        self.info: dict[str, Any] = dict(info or {})
        self.backbone = Backbone(config)
        self.config = self.backbone.config
        self.head = nn.Linear(config.width, heads)
        # Heads of an ensemble start far apart, each with an opinion of its own on what no comparison is about.
        nn.init.normal_(self.head.weight, std=0.02 if heads == 1 or readout == "sum" else config.width**-0.5)
        nn.init.zeros_(self.head.bias)
        # Mean and standard deviation of the raw reward on the starting agent's own rollouts; see `normalise`. Each head
        # has its own: comparisons fix no head's zero, and heads may disagree about episodes alone.
        shape = () if heads == 1 else (heads,)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.mean: Tensor
        self.std: Tensor

    @classmethod
    def from_agent(cls, agent: Agent, heads: int = 1, readout: Readout = "last") -> RewardModel:
        """A reward model whose backbone starts as a copy of the agent's (the paper's "agent encoder")."""
        model = cls(agent.config, heads, readout)
        model.backbone.load_state_dict(agent.backbone.state_dict())
        return model

    def forward(self, frames: Tensor, lengths: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Raw rewards of whole trajectories.

        Args:
            frames: `(B, T, H, W, 3)`, uint8, padded on the right; H and W are 0 where there are no pixels.
            lengths: Number of frames of each trajectory that count `(B,)`, 1 to T.
            vectors: Vector observations `(B, T, V)`, float32; None where V is 0.

        Returns:
            One reward for each trajectory and head `(B, K)`, float32, not normalised.
        """
        return self.read(self.scores(frames, vectors), lengths)

    def scores(self, frames: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Raw scores of every frame `(B, T, K)`, float32; arguments as in `forward`."""
        return self.scores_of(self.backbone(frames, vectors))

    def scores_of(self, features: Tensor) -> Tensor:
        """Raw scores `(..., K)`, float32, from the backbone's features `(..., width)`."""
        # In float32 in every precision: scores that differ little must not be rounded to the same number.
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.head.weight.float(), self.head.bias.float())

    def read(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """What is known of every frame `(B, T, K)`, such as scores, to one row a trajectory `(B, K)` by the readout."""
        if self.readout == "last":
            return scores[torch.arange(len(scores), device=scores.device), lengths - 1]
        kept = torch.arange(scores.shape[1], device=scores.device) < lengths[:, None]
        return (scores * kept[..., None]).sum(1)

    @torch.no_grad()
    def features(self, frames: Tensor, lengths: Tensor, vectors: Tensor | None = None) -> Tensor:
        """All that the heads need of whole trajectories `(B, width)`, float32, without a gradient.

        The trunk's features of the last frame, or their sum over frames, by the readout; arguments as in `forward`.
        """
        return self.read(self.backbone(frames, vectors).float(), lengths)

    def rewards_of(self, features: Tensor, lengths: Tensor) -> Tensor:
        """What `forward` gives `(B, K)`, from `features` `(B, width)` of trajectories of so many frames `(B,)`."""
        with torch.autocast(features.device.type, enabled=False):
            rewards = F.linear(features, self.head.weight.float())
            bias = self.head.bias.float()
            return rewards + (bias * lengths[:, None] if self.readout == "sum" else bias)

    def normalise(self, rewards: Tensor) -> Tensor:
        """Raw rewards to mean 0 and standard deviation 1 on the starting agent's rollouts."""
        return (rewards - self.mean) / self.std

    def score(self, episode: Any) -> float:
        """The normalised reward of an episode: 0 is the mean and 1 the standard deviation over the base agent's own.

        Args:
            episode: A `Trajectory`, or its frames; see `running`.

        Raises:
            ValueError: It is not what the reward model sees.
        """
        return float(running(self, episode)[-1])

    def running(self, episode: Any) -> NDArray[np.float32]:
        """The normalised reward that an episode would have if it ended at each of its frames `(T,)`, float32.

        Args:
            episode: A `Trajectory`, or its frames `(T, H, W, 3)`, uint8, square, NumPy or torch: of another size, they
                are resized by area. With vectors, a dict `{"pixels": ..., "vector": ...}` of `(T, V)`.

        Raises:
            ValueError: It is not what the reward model sees.
        """
        return running(self, episode)

    def scorer(self) -> Scorer:
        """The same frame by frame, while an episode is played, in one world or in many."""
        return Scorer(self)

    def prepare(self, precision: Precision = "fp32", compile: bool = False) -> RewardModel:
        """A copy for scoring only: in fewer bits, compiled. See `lit_align.models.acting.make_ready`."""
        return prepare(self, precision, compile)

    def save(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`; the folder appears whole or not at all.

        Raises:
            ValueError: The reward model was prepared in 8 bits, which cannot be trained on or loaded again.
        """
        if is_quantized(self):
            raise UserError("a reward model in int8 is for scoring only; save the one that it was prepared from")
        content = {
            "kind": self.kind,
            "backbone": self.config.to_dict(),
            "heads": self.heads,
            "readout": self.readout,
            "info": self.info,
        }
        save_folder(folder, content, self)

    @classmethod
    def _build(cls, content: dict[str, Any]) -> RewardModel:
        return cls(
            BackboneConfig.from_dict(content["backbone"]), content["heads"], content["readout"], content.get("info")
        )
