"""A reward model watching play: the reward of what was seen so far, of whole recordings or frame by frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_align.errors import UserError
from lit_align.models.acting import Memory
from lit_align.models.observations import read

if TYPE_CHECKING:
    from lit_align.models.observations import Observation, Worlds
    from lit_align.models.reward import RewardModel

_AT_ONCE = 256  # frames in the encoder together: its activations are by far the largest


class Scorer:
    """Says after every frame what the reward of the episode is so far. It keeps the past of each world, as `act` does.

    Args:
        model: The reward model; it is put in evaluation mode.
    """

    def __init__(self, model: RewardModel) -> None:
        self.model = model
        self._memory = Memory(model)
        self._sums: Tensor | None = None

    @torch.inference_mode()  # the sums were made in it
    def reset(self, worlds: Worlds | None = None) -> None:
        """Begins new episodes.

        Args:
            worlds: In which worlds, by their numbers or as a mask `(B,)`; None forgets all of them, so that the next
                call may be of another number.

        Raises:
            ValueError: There is no such world.
        """
        numbers = self._memory.reset(worlds)
        if numbers is None:
            self._sums = None
        elif self._sums is not None:
            self._sums[numbers] = 0

    @torch.inference_mode()
    def step(self, observation: Observation) -> Any:
        """The next frame of one world or of many.

        Args:
            observation: As `Agent.act` takes it.

        Returns:
            The normalised reward of the episode if it ended here: a float, or `(B,)`, float32, of B worlds.

        Raises:
            ValueError: As of `Agent.act`.
        """
        frames, vectors, cache = self._memory.read(observation, "step")
        scores = self.model.scores_of(self.model.backbone.step(frames, cache, vectors)).double()
        if self.model.readout == "sum":
            self._sums = scores if self._sums is None else self._sums.to(scores.device) + scores
            scores = self._sums
        rewards = _normalised(self.model, scores)
        return float(rewards[0]) if self._memory.single else rewards


@torch.inference_mode()
def running(model: RewardModel, observation: Any) -> NDArray[np.float32]:
    """What `Scorer` says at each frame of a recording `(T,)`, in one pass; see `RewardModel.running`."""
    config = model.config
    seen = read(_parts(observation), config.image_size, config.vector_size, "the reward model")
    if seen.single:
        raise UserError("a single frame was given; expected the frames of an episode, (T, H, W, 3)")
    device = model.head.weight.device
    frames, vectors = (torch.split(torch.as_tensor(part), _AT_ONCE) for part in (seen.frames, seen.vectors))
    model.eval()
    seen_each = [model.backbone.embed(f.to(device), v.to(device)) for f, v in zip(frames, vectors, strict=True)]
    scores = model.scores_of(model.backbone.transformer(torch.cat(seen_each)[None])[0]).double()
    return _normalised(model, scores.cumsum(0) if model.readout == "sum" else scores)


def _normalised(model: RewardModel, raw: Tensor) -> NDArray[np.float32]:
    """Raw rewards of every head `(..., K)` to the normalised reward `(...)`."""
    rewards: NDArray[np.float32] = model.normalise(raw).mean(-1).float().cpu().numpy()
    return rewards


def _parts(observation: Any) -> Any:
    """What was seen in a `Trajectory`; anything else is an observation already."""
    if not (hasattr(observation, "frames") and hasattr(observation, "vectors")):
        return observation
    named = {"pixels": observation.frames, "vector": observation.vectors}
    return {name: part for name, part in named.items() if 0 not in part.shape}
