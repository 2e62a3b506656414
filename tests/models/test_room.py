"""A network that this machine has no room for is refused before it takes memory; sketches are what they stand for."""

import pytest
import torch

import lit_align.models.room as room
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.backbone import Backbone
from lit_align.models.config import BackboneConfig
from lit_align.models.heads import PolicyConfig
from lit_align.spaces import ActionCodec, gamepad_space
from tests.helpers import TINY


def test_a_network_larger_than_the_memory_is_refused_at_once(monkeypatch):
    with pytest.raises(UserError, match=r"would take 211,\d{3}\.\d GB; this machine has .* GB of memory"):
        Backbone(BackboneConfig(image_size=0, vector_size=1, width=65536, layers=1024, heads=1024))
    size = 4 * sum(p.numel() for p in Backbone(TINY).parameters())
    monkeypatch.setattr(room, "memory", lambda: size)
    Backbone(TINY)
    monkeypatch.setattr(room, "memory", lambda: size - 1)
    with pytest.raises(UserError, match="use a smaller network"):
        Backbone(TINY)
    with torch.device("meta"):
        Backbone(TINY)  # takes none


@pytest.mark.parametrize("policy", ["independent", "autoregressive"])
def test_a_sketch_has_the_shapes_and_draws_nothing(policy):
    def make():
        return Agent(TINY, ActionCodec(gamepad_space()), policy=PolicyConfig(policy, 4))

    made, before = make(), torch.get_rng_state()
    sketch = room.sketch(make)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.device.type == "meta" for tensor in sketch.state_dict().values())
    assert {n: (t.shape, t.dtype) for n, t in sketch.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in made.state_dict().items()
    }


def test_asking_for_room_does_not_change_the_weights(monkeypatch):
    torch.manual_seed(3)
    asked = Backbone(TINY)
    monkeypatch.setattr("lit_align.models.backbone.check_room", lambda *_: None)
    torch.manual_seed(3)
    plain = Backbone(TINY)
    assert all(torch.equal(a, b) for a, b in zip(asked.parameters(), plain.parameters(), strict=True))
