"""Which parameters train, and at what price: one field, `model.train`, that every stage shares."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, TypeVar

from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.backbone import Backbone
from lit_align.models.lora import add_lora, merge_lora
from lit_align.models.reward import RewardModel

Network = TypeVar("Network", bound=Agent | RewardModel)


@dataclass
class TrainConfig:
    """What of the network trains, and how its forward and backward passes run.

    Attributes:
        parameters: `all`; `heads`: the last layer alone, the action or reward heads, as the paper's alignment did;
            `last_layers`: these and the last `layers` layers of the transformer with its final norm; `lora`: the heads
            and low-rank adapters of the transformer's matrices, which are merged into them in what the stage leaves.
        layers: Transformer layers that train with `last_layers`.
        rank: Rank of the adapters of `lora`.
        alpha: Scale of the adapters over their rank.
        vision: Whether the vision encoder trains where `parameters` is `all`; false freezes it.
        gradient_checkpointing: Keep each layer's input only for the backward pass, and compute the rest again: less
            memory, about a third more time.
        compile: Compile the network with `torch.compile`, for training and for playing; meant for GPUs (on a CPU it
            gained nothing). The first steps take a minute or more.
    """

    parameters: Literal["all", "heads", "last_layers", "lora"] = "all"
    layers: int = 1
    rank: int = 8
    alpha: float = 16.0
    vision: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False

    def check(self) -> None:
        """Raises ValueError if a number does not fit."""
        if self.parameters not in ("all", "heads", "last_layers", "lora") or min(self.layers, self.rank) < 1:
            raise UserError(
                f"model.train is {self}; expected parameters of all, heads, last_layers or lora, and layers and rank "
                "of 1 or more"
            )

    def apply(self, network: Network) -> None:
        """Freezes what does not train, adds adapters, and sets how the network runs; called once, before training.

        Raises:
            ValueError: More layers are to train than there are.
        """
        backbone: Backbone = network.backbone
        transformer = backbone.transformer
        backbone.checkpointing = self.gradient_checkpointing
        if self.parameters == "all":
            if backbone.vision is not None and not self.vision:
                backbone.vision.requires_grad_(False)
        else:
            backbone.requires_grad_(False)
        if self.parameters == "last_layers":
            if self.layers > len(transformer.layers):
                raise UserError(
                    f"model.train.layers is {self.layers}; the network has {len(transformer.layers)} transformer layers"
                )
            for part in (*list(transformer.layers)[-self.layers :], transformer.norm):
                part.requires_grad_(True)
        if self.parameters == "lora":
            add_lora(transformer.layers, self.rank, self.alpha)
        if self.compile:
            network.compile(dynamic=True)


def as_plain(network: Network) -> Network:
    """The network as others load it: adapters merged, a copy if there are any."""
    if not any("lora_" in name for name, _ in network.named_parameters()):
        return network
    plain = copy.deepcopy(network)
    merge_lora(plain)
    return plain
