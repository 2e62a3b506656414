"""The sizes that are shipped, counted without allocating them."""

from pathlib import Path

import pytest
import torch
import yaml

from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec, gamepad_space

ROOT = Path(__file__).parents[2]
SIZES = ROOT / "configs" / "sizes"


def build(name):
    content = yaml.safe_load((SIZES / f"{name}.yaml").read_text())
    with torch.device("meta"):
        return Agent(BackboneConfig.from_dict(content["model"]["backbone"]), ActionCodec(gamepad_space()))


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "tolerance"),
    [("tiny", 1.4e6, 0.05), ("small", 12e6, 0.05), ("paper", 103e6, 0.01), ("300m", 300e6, 0.05), ("1b", 1e9, 0.05)],
)
def test_a_size_is_what_its_name_and_the_docs_say(name, parameters, tolerance):
    agent = build(name)
    assert all(p.device.type == "meta" for p in agent.parameters())
    assert count(agent) == pytest.approx(parameters, rel=tolerance)
    assert f"| `configs/sizes/{name}.yaml` | {count(agent):,} |" in (ROOT / "docs" / "network.md").read_text()


def test_every_size_is_counted_here():
    assert {path.stem for path in SIZES.glob("*.yaml")} == {"tiny", "small", "paper", "300m", "1b"}


def test_the_papers_size_by_hand():
    """The arithmetic of docs/network.md: layers, encoder, heads."""
    agent = build("paper")
    d = 1024
    layer = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    assert count(agent.backbone.transformer) == 8 * layer + 2 * d
    stem = 8 * 8 * 3 * 16 + 16
    stages = 0
    for c in (16, 32, 64, 128):  # 32x32 down to 2x2, a block and a halving each
        block = (49 * c + c) + 2 * c + (4 * c * c + 4 * c) + (4 * c * c + c)
        stages += block + 2 * c + (9 * c * 2 * c + 2 * c)
    projection = 2 * 1024 + 1024 * d + d
    assert count(agent.backbone.vision) == stem + stages + projection
    assert count(agent.head) == 68 * d + 68
    assert agent.codec.sizes == (2,) * 12 + (11,) * 4
    assert count(agent) == 102_476_676
