"""Acting frame by frame, and acting in fewer bits."""

import json
import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lit_align.data.cache import FrameCache
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.frames import read_frames
from lit_align.models.quantize import Int8Linear
from lit_align.spaces import ActionCodec
from lit_align.stages.training import TrainConfig
from tests.helpers import SIZE, TINY, made_up, record, tiny_agent


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


def shown(action):
    return np.concatenate([np.ravel(part) for part in action.values()]).tolist()


@pytest.mark.parametrize(
    "worlds", [[1], np.array([1]), [False, True], np.array([False, True]), torch.tensor([False, True])]
)
def test_a_world_of_several_begins_anew_by_itself(worlds):
    agent, fresh, episode = tiny_agent(), tiny_agent(), seen(9, 2)
    for frames in episode[:5]:
        agent.act(frames, temperature=0)
    agent.reset(worlds)
    for frames in episode[5:]:
        first, second = agent.act(frames, temperature=0)
        assert shown(second) == shown(fresh.act(frames[1], temperature=0)), "it remembers what was before its reset"
    whole = tiny_agent()
    for frames in episode:
        last = whole.act(frames[0], temperature=0)
    assert shown(first) == shown(last), "the other world was reset too"


@pytest.mark.parametrize("worlds", [[2], [-1], [[0]], [0.5], 1, [True]])
def test_a_world_that_is_not_there_is_not_reset(worlds):
    agent = tiny_agent()
    agent.act(seen(2))
    with pytest.raises(UserError, match="of 2 worlds; expected"):
        agent.reset(worlds)


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
    ("frame", "said"),
    [
        (
            seen()[..., :2],
            r"\(32, 32, 2\); the agent sees uint8 RGB of shape \(H, W, 3\).*has 3 dimensions and 2 channels",
        ),
        (seen()[:16], "it is 32 wide and 16 high: cut, pad or stretch it to a square"),
        (seen() / 255, r"pixels is float64.*up to 1: scale them by \(frames \* 255\).round\(\).astype\(np.uint8\)"),
        (torch.from_numpy(seen() / 255), r"by \(frames \* 255\).round\(\).to\(torch.uint8\)"),
        (seen() * np.float32(0), r"0 to 1 by \(frames \* 255\).round\(\).astype.*of 0 to 255 by .astype\(np.uint8\)$"),
        (
            torch.zeros(SIZE, SIZE, 3),
            r"0 to 1 by \(frames \* 255\).*of 0 to 255 by .to\(torch.uint8\)$",
        ),
        (seen().astype(np.float32), r"float32.*its values fit: convert them by .astype\(np.uint8\)"),
        (seen().astype(int), "int64.*its values fit"),
        (seen() - 300.0, "its values go from -300 to -45: scale them to 0 to 255"),
        (seen() * np.nan, "go from nan to nan"),
        (seen() > 9, r"bool.*\* 255"),
        (seen(1, 1), "it has 5 dimensions"),
        (np.moveaxis(seen(), -1, 0), r"channels come first: put them last by .transpose\(1, 2, 0\)"),
        (np.moveaxis(seen(2), -1, 1), r"put them last by .transpose\(0, 2, 3, 1\)"),
        (torch.from_numpy(seen()).permute(2, 0, 1) / 255, r"by .permute\(1, 2, 0\); its values go up to 1: scale"),
        (np.concatenate((seen(), seen()[..., :1]), axis=-1), r"a fourth channel: drop it by \[..., :3\]"),
        (seen()[..., 0], r"grey: repeat its channel by \[..., None\].repeat\(3, -1\)"),
        (seen(2)[..., :1], r"grey: repeat its channel by .repeat\(3, -1\)"),
        (seen(0), "there is nothing in it"),
        ([], "a list of 0"),
        ([seen(), seen(2)], "a list of 2; expected a frame"),
        (None, "object of shape .*expected numbers"),
        ("frame.png", "expected numbers"),
    ],
)
def test_what_it_does_not_see_is_named_with_how_to_mend_it(frame, said):
    agent = tiny_agent()
    with pytest.raises(UserError, match=said):
        agent.act(frame)
    agent.act(seen())  # and nothing is left of it


def test_what_the_messages_say_mends_it():
    frame, agent = seen(), tiny_agent()
    planes = np.moveaxis(frame, -1, 0)
    for mended in (
        planes.transpose(1, 2, 0),
        torch.from_numpy(planes.copy()).permute(1, 2, 0),
        (frame / 255 * 255).round().astype(np.uint8),
        np.concatenate((frame, frame[..., :1]), axis=-1)[..., :3],
    ):
        agent.reset()
        acted = agent.act(mended, temperature=0)
        agent.reset()
        assert shown(acted) == shown(agent.act(frame, temperature=0))
    assert read_frames(frame[..., 0][..., None].repeat(3, -1), SIZE)[0].shape == (1, SIZE, SIZE, 3)
    assert read_frames(torch.from_numpy(frame[..., :1]).repeat_interleave(3, -1), SIZE)[0].shape == (1, SIZE, SIZE, 3)


def test_any_way_to_hold_the_same_pixels_is_the_same_frame(tmp_path):
    frames = seen(2)
    frozen = frames.copy()
    frozen.flags.writeable = False
    frames.tofile(tmp_path / "frames")
    ways = [
        np.asfortranarray(frames),
        frames[:, ::-1][:, ::-1],
        np.moveaxis(np.moveaxis(frames, -1, 0).copy(), 0, -1),
        frozen,
        np.memmap(tmp_path / "frames", np.uint8, "r", shape=frames.shape),
        torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        list(frames),
        [Image.fromarray(frame) for frame in frames],
        [torch.from_numpy(frames[0]), frames[1]],
    ]
    agent = tiny_agent()
    expected = [shown(action) for action in agent.act(frames, temperature=0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that are read-only
        for way in ways:
            agent.reset()
            assert [shown(action) for action in agent.act(way, temperature=0)] == expected
            assert np.array_equal(read_frames(way, SIZE)[0], frames)
    agent.reset()
    assert shown(agent.act(Image.fromarray(frames[0]), temperature=0)) == expected[0]


@pytest.mark.parametrize("size", [24, 33, 96])
def test_a_frame_of_another_size_is_resized_as_training_does_bit_for_bit(tmp_path, size):
    trajectory = made_up(0, 7, size=size)
    trained_on = FrameCache(record(tmp_path / "play", [trajectory]), SIZE).frames
    many, _ = read_frames(trajectory.frames, SIZE)
    assert np.array_equal(many, trained_on)
    tensors, _ = read_frames(torch.from_numpy(trajectory.frames), SIZE)
    assert np.array_equal(tensors.numpy(), trained_on)
    small, large = tiny_agent(), tiny_agent()
    for original, resized in zip(trajectory.frames, trained_on, strict=True):
        assert shown(large.act(original, temperature=0)) == shown(small.act(resized, temperature=0))
    if size % SIZE == 0:  # then the area is a mean over whole pixels
        mean = trajectory.frames.reshape(8, SIZE, size // SIZE, SIZE, size // SIZE, 3).mean((2, 4))
        assert np.abs(mean - many).max() <= 1


def test_windows_of_different_sizes_act_in_one_batch():
    agent, one, other = tiny_agent(), np.kron(seen(), np.ones((2, 2, 1), np.uint8)), seen(seed=1)
    together = agent.act([one, other], temperature=0)
    for frame, action in zip((seen(), other), together, strict=True):  # doubled and halved again
        agent.reset()
        assert shown(agent.act(frame, temperature=0)) == shown(action)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        st.one_of(
            arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes(), arrays.boolean_dtypes()
        ),
        arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    ),
    st.booleans(),
)
def test_any_array_is_frames_or_an_error_that_says_why(array, as_tensor):
    part = array
    if as_tensor:
        try:
            part = torch.from_numpy(array)
        except (TypeError, ValueError):  # torch has no such type
            return
    frames_it_is = array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3 and array.size > 0
    if frames_it_is and array.shape[-2] == array.shape[-3]:
        frames, single = read_frames(part, 4)
        assert frames.shape == (1 if single else len(array), 4, 4, 3)
        assert single == (array.ndim == 3)
    else:
        with pytest.raises(UserError, match="the agent sees"):
            read_frames(part, 4)


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        (np.zeros(4, int), r"vector is int64; expected floats: convert it by .astype\(np.float32\)"),
        (torch.zeros(4).long(), r"convert it by .float\(\)"),
        (np.zeros(3), r"of shape \(3,\); the agent sees \(4,\)"),
        (np.zeros((1, 1, 4)), r"of shape \(1, 1, 4\)"),
        ([0.0, np.inf, 0.0, 0.0], "not finite"),
        ([1e300, 0.0, 0.0, 0.0], "not finite"),
        ([[0.0] * 4, [0.0] * 3], "vector is no array"),
    ],
)
def test_a_vector_that_it_does_not_see_is_named(vector, said):
    agent = tiny_agent(image_size=0, vector_size=4)
    with pytest.raises(UserError, match=said):
        agent.act(vector)
    assert agent.act(np.zeros(4, ">f8")) is not None  # of another byte order
    with pytest.raises(UserError, match="pixels is of one world and vector of 2 worlds"):
        tiny_agent(vector_size=4).act({"pixels": seen(), "vector": np.zeros((2, 4))})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_agent_on_a_gpu_takes_frames_of_any_device():
    agent, frames = tiny_agent(), seen(5, 2)
    expected = [[shown(one) for one in agent.act(each, temperature=0)] for each in frames]
    on_gpu = tiny_agent().to("cuda")
    for each, known in zip(frames, expected, strict=True):
        found = [shown(one) for one in on_gpu.act(torch.from_numpy(each).cuda(), temperature=0)]
        assert found == known
    agent.reset()
    agent.act(frames[0])
    agent.to("cuda").act(frames[1])  # the memory moves with the agent


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
