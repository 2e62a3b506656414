"""Acting frame by frame, and acting in fewer bits."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.quantize import Int8Linear
from lit_align.spaces import ActionCodec
from lit_align.stages.training import TrainConfig
from tests.helpers import SIZE, TINY, tiny_agent


def seen(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, SIZE, SIZE, 3), dtype=np.uint8)


def test_one_world_acts_as_the_whole_sequence_says():
    agent = tiny_agent()
    episode = seen(20)
    acted = [agent.act(frame, temperature=0) for frame in episode]
    with torch.no_grad():
        best = agent(torch.from_numpy(episode)[None])[0].argmax(-1)
    for action, classes in zip(acted, best.numpy(), strict=True):
        expected = agent.codec.decode(classes)
        assert all(np.array_equal(action[name], expected[name]) for name in expected)


def test_many_worlds_and_one_choose_alike_and_a_reset_forgets():
    agent, episode = tiny_agent(), seen(6, 3)
    many = [agent.act(frames, temperature=0) for frames in episode]
    agent.reset()
    alone = [agent.act(torch.from_numpy(frames[1]), temperature=0) for frames in episode]
    for at_once, single in zip(many, alone, strict=True):
        assert np.array_equal(at_once[1]["buttons"], single["buttons"])
    agent.reset(seed=3)
    first = [agent.act(frames)[0]["left_stick"].tolist() for frames in episode]
    agent.reset(seed=3)
    assert [agent.act(frames)[0]["left_stick"].tolist() for frames in episode] == first
    assert [agent.act(frames)[0]["left_stick"].tolist() for frames in episode] != first


def test_a_world_of_several_begins_anew_by_itself():
    agent, episode = tiny_agent(), seen(5, 2)
    for frames in episode:
        agent.act(frames, temperature=0)
    agent.reset([1])
    actor = agent._actor
    assert actor is not None
    assert actor.cache is not None
    assert actor.cache.steps.tolist() == [5, 0]


def test_a_vector_alone_and_beside_pixels():
    torch.manual_seed(0)
    codec = ActionCodec(spaces.Discrete(3))
    vector = Agent(BackboneConfig.from_dict({**TINY.to_dict(), "image_size": 0, "vector_size": 4}), codec)
    assert vector.act(np.zeros(4, np.float64)) in (0, 1, 2)
    vector.reset()
    assert len(vector.act({"vector": torch.zeros(5, 4)})) == 5
    both = Agent(BackboneConfig.from_dict({**TINY.to_dict(), "vector_size": 4}), codec)
    assert both.act({"pixels": seen(), "vector": np.zeros(4, np.float32)}) in (0, 1, 2)
    with pytest.raises(UserError, match=r"holds \['pixels'\]; the agent sees \['pixels', 'vector'\]"):
        both.act(seen())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (seen()[..., :2], r"pixels is of shape \(32, 32, 2\); the agent sees \(32, 32, 3\)"),
        (seen()[:16], r"of shape \(16, 32, 3\)"),
        (seen() / 255, "pixels is torch.float64; expected uint8"),
        (seen(1, 1), "of one world or of a batch"),
        (np.moveaxis(seen(), -1, 0), r"of shape \(3, 32, 32\)"),
    ],
)
def test_what_it_does_not_see_is_named(given, said):
    with pytest.raises(UserError, match=said):
        tiny_agent().act(given)


def test_another_number_of_worlds_without_a_reset_is_refused():
    agent = tiny_agent()
    agent.act(seen(2))
    with pytest.raises(UserError, match="given a batch of 3 after a batch of 2"):
        agent.act(seen(3))
    with pytest.raises(UserError, match="given one world after a batch of 2"):
        agent.act(seen())


@pytest.mark.parametrize(("temperature", "top_p"), [(-1.0, 1.0), (1.0, 0.0), (1.0, 1.1), (float("nan"), 1.0)])
def test_actions_that_cannot_be_drawn_so_are_refused(temperature, top_p):
    with pytest.raises(UserError, match="expected a temperature of 0 or more"):
        tiny_agent().act(seen(), temperature, top_p)


@torch.no_grad()
@pytest.mark.parametrize(("precision", "allowed"), [("bf16", 0.1), ("int8", 0.15)])
def test_fewer_bits_choose_almost_alike(precision, allowed):
    agent = tiny_agent()
    small = agent.prepare(precision)
    frames = torch.from_numpy(seen(12, 4))
    caches = agent.new_cache(4), small.new_cache(4)
    assert caches[1].pairs.dtype == torch.bfloat16
    far = []
    for step in frames:
        p, q = (a.step(step, c).exp() for a, c in zip((agent, small), caches, strict=True))
        far.append((p - q).abs().sum(-1).mean() / 2)  # total variation of a head
    assert 0 < float(torch.stack(far).mean()) < allowed
    whole = [p for p in agent.parameters() if p.dtype != torch.float32]
    assert not whole, "the agent that was copied was changed"


@torch.no_grad()
def test_an_int8_layer_rounds_to_half_a_step_of_each_row():
    linear = torch.nn.Linear(64, 96)
    linear.weight.data *= torch.logspace(-3, 1, 96)[:, None]
    small = Int8Linear(linear)
    restored = small.weight.float() * small.scale.float()[:, None]
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    # Half a step of rounding, and what bfloat16 keeps of the scale (8 bits).
    assert ((restored - linear.weight).abs() <= 0.5 * step + linear.weight.abs() * 2**-8 + 1e-9).all()
    x = torch.randn(3, 5, 64, dtype=torch.bfloat16)
    expected = x.float() @ restored.T + linear.bias.to(torch.bfloat16).float()
    scale = expected.abs().amax()
    assert float((small(x).float() - expected).abs().max() / scale) < 0.02


@torch.no_grad()
def test_a_copy_for_acting_can_be_made_of_any_agent():
    agent = tiny_agent()
    agent.act(seen(2))
    copied = agent.prepare()
    assert copied._actor is None
    compiled = agent.prepare(compile=True)
    agent.head.bias.data += 1
    again = compiled.prepare("bf16")  # from the weights of the one that was compiled, by steps of its own
    assert "step" not in vars(again.backbone)
    adapted = tiny_agent()
    TrainConfig("lora", rank=2).apply(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_b" in name:
            parameter.data.normal_(std=0.5)
    frames, plain = torch.from_numpy(seen(4)), tiny_agent().prepare("int8")
    told = [a.step(frames, a.new_cache(4)).exp() for a in (adapted, adapted.prepare("int8"), plain)]
    near, far = ((told[0] - other).abs().sum(-1).mean() for other in told[1:])
    assert near < 0.3 * far, "8 bits lost the adapters"


def test_what_cannot_be_prepared_or_saved_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected fp32, bf16 or int8"):
        tiny_agent().prepare("int4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="int8 is for acting only"):
        tiny_agent().prepare("int8").save(tmp_path / "agent")


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_step_is_the_step():
    agent = tiny_agent()
    compiled = agent.prepare(compile=True)
    caches = agent.new_cache(2), compiled.new_cache(2)
    for frames in torch.from_numpy(seen(8, 2)):
        torch.testing.assert_close(
            compiled.step(frames, caches[1]), agent.step(frames, caches[0]), atol=1e-5, rtol=1e-5
        )


def test_a_folder_of_before_there_were_encoders_and_policies_is_read(tmp_path):
    agent = tiny_agent()
    agent.save(tmp_path / "agent")
    path = tmp_path / "agent" / "config.json"
    content = json.loads(path.read_text())
    del content["policy"]
    for name in ("vector_size", "encoder", "pretrained", "pretrained_config"):
        del content["backbone"][name]
    path.write_text(json.dumps(content))
    frames = torch.from_numpy(seen(1, 5))
    assert torch.equal(Agent.load(tmp_path / "agent")(frames), agent(frames))
