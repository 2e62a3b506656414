"""An ONNX file against the agent that it was made of."""

from __future__ import annotations

from pathlib import Path

import torch

from lit_align.models.agent import Agent
from lit_align.models.onnx_agent import OnnxAgent


@torch.inference_mode()
def largest_difference(agent: Agent, path: str | Path, steps: int, seed: int = 0) -> float:
    """Plays both on noise and compares their log-probabilities of all classes, at temperature 1.

    Autoregressive heads are compared given the classes that the file chose. Half way the first world begins anew.

    Args:
        agent: In evaluation mode, in float32.
        path: The file.
        steps: How many; more than its context, so that the cache goes round.
        seed: Of the noise.

    Returns:
        The largest absolute difference in nats.
    """
    player = OnnxAgent(path)
    worlds = player.facts["cache"][2] or 2
    cache, config = agent.new_cache(worlds), agent.config
    chance = torch.Generator().manual_seed(seed)
    real = torch.arange(max(agent.codec.sizes)) < torch.tensor(agent.codec.sizes)[:, None]  # not the padding
    apart = 0.0
    for step in range(steps):
        if step == steps // 2:
            cache.reset([0])
            player.reset([0])
        frames = torch.randint(0, 256, (worlds, config.image_size, config.image_size, 3), generator=chance).byte()
        vectors = torch.randn(worlds, config.vector_size, generator=chance)
        uniform = torch.rand(worlds, len(agent.codec.heads), generator=chance)
        told = player.step(frames.numpy(), vectors.numpy(), uniform.numpy())
        ours = agent.step(frames, cache, vectors, torch.from_numpy(told["actions"]))
        apart = max(apart, float((ours - torch.from_numpy(told["log_probs"]))[:, real].abs().max()))
    return apart
