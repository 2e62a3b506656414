"""The sizes that the docs speak of, counted without allocating them."""

import pytest
import torch

from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec, gamepad_space


def count(**shape):
    with torch.device("meta"):
        agent = Agent(BackboneConfig(**shape), ActionCodec(gamepad_space()))
    return sum(p.numel() for p in agent.parameters())


def test_eight_layers_of_width_1024_at_128_pixels_are_the_papers_103_million():
    found = count(image_size=128, channels=16, blocks=1, width=1024, layers=8, heads=8)
    assert found == pytest.approx(103e6, rel=0.01)
    # By hand, what the layers hold: four norms' worth of vectors, the attention's four matrices, the MLP's two.
    d = 1024
    layer = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
    heads = d * 68 + 68
    encoder = found - 8 * layer - 2 * d - heads
    assert 0 < encoder < 2e6


def test_the_default_is_the_tiny_size():
    assert count() == pytest.approx(1.43e6, rel=0.01)
