"""The pasts of many clients in one KV cache: a batched step moves on those that have a frame, and no other."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_align.models.agent import Agent
from lit_align.models.transformer import KVCache


@dataclass(slots=True)
class Step:
    """One client's frame, waiting to be acted on.

    Attributes:
        row: The client's slot.
        fresh: Whether it is the first of an episode: what the slot held before is forgotten.
        pixels: `(S, S, 3)`, uint8; S is 0 where the agent sees no pixels.
        vector: `(V,)`, float32.
        uniform: Noise `(heads,)` in [0, 1), float32.
        temperature: Divides the logits.
        top_p: Draw from the smallest set of classes that holds this much probability.
    """

    row: int
    fresh: bool
    pixels: NDArray[np.uint8]
    vector: NDArray[np.float32]
    uniform: NDArray[np.float32]
    temperature: float = 1.0
    top_p: float = 1.0


class Part(KVCache):
    """Some rows of a cache, as a cache: a view of rows that lie side by side, a copy of others.

    Args:
        cache: The whole.
        rows: Which, ascending.
    """

    def __init__(self, cache: KVCache, rows: Sequence[int]) -> None:
        self.cache = cache
        self.ring = cache.ring
        self.rows = cache.rows[: len(rows)]
        self.index: Tensor | None = None
        if rows[-1] - rows[0] + 1 == len(rows):
            part = slice(rows[0], rows[-1] + 1)
            self.pairs, self.steps = cache.pairs[:, :, part], cache.steps[part]
        else:
            self.index = torch.tensor(rows, device=cache.pairs.device)
            self.pairs, self.steps = cache.pairs.index_select(2, self.index), cache.steps[self.index]

    def put_back(self) -> None:
        """Writes what a step wrote into the whole: one frame's keys and values a row."""
        if self.index is None:
            return
        slots = (self.steps - 1) % len(self.ring)
        self.cache.pairs[:, :, self.index, :, slots] = self.pairs[:, :, self.rows, :, slots]
        self.cache.steps[self.index] = self.steps


class Slots:
    """The places of the clients, and the batched step over those that have a frame.

    Args:
        agent: Who acts; put in evaluation mode.
        count: How many clients there may be.
    """

    def __init__(self, agent: Agent, count: int) -> None:
        self.agent = agent.eval()
        self.device = next(agent.parameters()).device
        with torch.inference_mode():
            self.cache = agent.new_cache(count)
        self._free = list(range(count))

    def take(self) -> int | None:
        """The lowest free slot, so that those in use lie side by side; None where all are taken."""
        return heapq.heappop(self._free) if self._free else None

    def give_back(self, row: int) -> None:
        """Frees a slot."""
        heapq.heappush(self._free, row)

    @torch.inference_mode()
    def act(self, steps: Sequence[Step]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Acts on some clients' frames at once; nothing changes for the others.

        Args:
            steps: At most one for each slot.

        Returns:
            Classes `(B, heads)` and their joint log-probabilities `(B,)`, in the order of `steps`.
        """
        order = sorted(range(len(steps)), key=lambda i: steps[i].row)
        batch = [steps[i] for i in order]
        self._forget([step.row for step in batch if step.fresh])
        part = Part(self.cache, [step.row for step in batch])
        frames = self._stack([step.pixels for step in batch])
        vectors = self._stack([step.vector for step in batch])
        noise = self._stack([step.uniform for step in batch])
        features = self.agent.backbone.step(frames, part, vectors)
        part.put_back()
        actions, log_probs = self._draw(features, noise, batch)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return actions.to(torch.uint8).cpu().numpy()[back], log_probs.cpu().numpy()[back]

    def _forget(self, rows: list[int]) -> None:
        """Begins episodes.

        Keys and values are cleared too: a number that is not finite would spoil what follows through a mask.
        """
        if rows:
            self.cache.reset(rows)
            self.cache.pairs[:, :, rows] = 0

    def _stack(self, parts: Sequence[NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.stack(parts)).to(self.device)

    def _draw(self, features: Tensor, noise: Tensor, batch: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """Draws as each client wants; those that want the same, together."""
        wanted = [(step.temperature, step.top_p) for step in batch]
        kinds = list(dict.fromkeys(wanted))
        if len(kinds) == 1:
            return self.agent.head.sample(features, noise, *kinds[0])
        actions = torch.empty(noise.shape, dtype=torch.int64, device=self.device)
        log_probs = torch.empty(len(noise), device=self.device)
        for kind in kinds:
            rows = torch.tensor([i for i, each in enumerate(wanted) if each == kind], device=self.device)
            actions[rows], log_probs[rows] = self.agent.head.sample(features[rows], noise[rows], *kind)
        return actions, log_probs
