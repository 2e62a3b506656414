"""Keeping the weights of the best iteration so far."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from lit_align.stages.sharding import whole


class BestWeights:
    """The weights that played the best iteration so far; before any was good enough, those that played the first.

    Only what can change is kept: parameters that train, and buffers.

    Attributes:
        iteration: Which iteration they played.
        reward: Its mean reward.
    """

    def __init__(self) -> None:
        self.iteration, self.reward = 0, -math.inf
        self._weights: dict[str, Tensor] | None = None
        self._playing: dict[str, Tensor] = {}

    def begin(self, network: nn.Module) -> None:
        """An iteration is played with the weights as they are."""
        fixed = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
        self._playing = {k: v.detach().clone() for k, v in network.state_dict().items() if k not in fixed}
        if self._weights is None:
            self._weights = self._playing

    def offer(self, iteration: int, reward: float) -> None:
        """The iteration had this mean reward, and may be the best."""
        if reward > self.reward:
            self.iteration, self.reward, self._weights = iteration, reward, self._playing

    def restore(self, network: nn.Module) -> None:
        """Puts the best weights into the network."""
        if self._weights is not None:
            network.load_state_dict(self._weights, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint at an iteration's end."""
        self.gather()
        return {"iteration": self.iteration, "reward": self.reward, "weights": self._weights}

    def gather(self) -> None:
        """Has the weights be whole, if they are sharded; called by every process."""
        if self._weights is not None:
            self._weights = {name: whole(value) for name, value in self._weights.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.iteration, self.reward, self._weights = state["iteration"], state["reward"], state["weights"]
