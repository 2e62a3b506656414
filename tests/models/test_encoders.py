"""Vision encoders: against convolutions of their own, in an agent's folder, and what happens without Transformers."""

import json
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.vector import VectorEncoder
from lit_align.models.vision import make_encoder
from lit_align.models.vision.patch import PatchEncoder
from lit_align.spaces import ActionCodec, gamepad_space

SMALL: dict[str, Any] = {"channels": 4, "width": 32, "layers": 1, "heads": 2, "context": 4}


def frames(n, size):
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("encoder", ["convnext", "impala", "patch"])
@pytest.mark.parametrize(("size", "blocks"), [(32, 0), (64, 1), (128, 2)])
def test_an_embedding_a_frame_and_every_part_learns(encoder, size, blocks):
    made = make_encoder(BackboneConfig(image_size=size, encoder=encoder, blocks=blocks, **SMALL))
    out = made(frames(3, size))
    assert out.shape == (3, 32)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


@torch.no_grad()
def test_patches_are_convolutions_whose_stride_is_their_size():
    made = PatchEncoder(BackboneConfig(image_size=64, encoder="patch", **SMALL))
    x = frames(2, 64).permute(0, 3, 1, 2) / 127.5 - 1

    def as_convolution(linear, side, x):
        # A merged cell holds (row, column, channel), a convolution's weight (channel, row, column).
        weight = linear.weight.view(len(linear.weight), side, side, -1).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, linear.bias, stride=side)

    y = as_convolution(made.stem, 8, x).relu()
    for norm, linear in zip(made.norms, made.merges, strict=True):
        y = as_convolution(linear, 2, norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).relu()
    expected = made.project(made.norm(y.permute(0, 2, 3, 1).flatten(1)))
    torch.testing.assert_close(made(frames_of(x)), expected, atol=1e-4, rtol=1e-4)


def frames_of(x):
    return ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_impala_has_the_weights_that_its_paper_says():
    made = make_encoder(BackboneConfig(image_size=64, encoder="impala", channels=16, blocks=2, width=256, heads=4))
    convolution = lambda a, b: 9 * a * b + b  # noqa: E731
    stacks = [convolution(a, b) + 4 * convolution(b, b) for a, b in ((3, 16), (16, 32), (32, 32))]
    features = 32 * 8 * 8
    assert count(made) == sum(stacks) + 2 * features + features * 256 + 256


@torch.no_grad()
def test_vectors_of_any_scale_and_both_signs_arrive():
    made = VectorEncoder(BackboneConfig(image_size=0, vector_size=3, **SMALL))
    squashed = []
    made.body[0].register_forward_pre_hook(lambda _, given: squashed.append(given[0]))
    out = made(torch.tensor([[0.0, 1e6, -1e6], [0.0, 1.0, -1.0]]))
    assert out.shape == (2, 32)
    big, one = torch.tensor(1e6).log1p(), torch.tensor(1.0).log1p()
    torch.testing.assert_close(
        squashed[0], torch.stack([torch.stack([0 * big, big, -big]), torch.stack([0 * one, one, -one])])
    )


@pytest.fixture(scope="module")
def vision_models(tmp_path_factory):
    """Two small vision models of different kinds as folders, with what their processors would say."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vision")
    dino = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    transformers.AutoModel.from_config(dino).save_pretrained(folder / "dino")
    mean = "[0.5, 0.4, 0.3]"
    (folder / "dino" / "preprocessor_config.json").write_text(
        f'{{"image_mean": {mean}, "image_std": [0.2, 0.2, 0.2], "crop_size": {{"height": 28, "width": 28}}}}'
    )
    convnext = transformers.ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32)
    transformers.AutoModel.from_config(convnext).save_pretrained(folder / "convnext")
    words = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    transformers.AutoModel.from_config(words).save_pretrained(folder / "words")
    return folder


def agent_on(model, size=40):
    torch.manual_seed(0)
    config = BackboneConfig(image_size=size, encoder="pretrained", pretrained=str(model), **SMALL)
    return Agent(config, ActionCodec(gamepad_space())).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["dino", "convnext"])
def test_a_pretrained_backbone_starts_from_its_weights_and_travels_in_the_agents_folder(
    vision_models, tmp_path, name, monkeypatch
):
    import transformers

    agent = agent_on(vision_models / name)
    theirs = transformers.AutoModel.from_pretrained(vision_models / name)
    for key, weight in theirs.state_dict().items():
        assert torch.equal(agent.backbone.vision.model.state_dict()[key], weight), key
    agent.save(tmp_path / "agent")
    # Neither the Hub nor the folder is looked at again.
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("fetched again"))
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("fetched again"))
    again = Agent.load(tmp_path / "agent").eval()
    seen = frames(3, 40)[None]
    assert torch.equal(again(seen), agent(seen))
    with torch.device("meta"):
        Agent.load(tmp_path / "agent", "meta", random_init=True)


@torch.no_grad()
def test_pixels_are_scaled_as_the_checkpoint_was_trained(vision_models):
    given = []
    encoder = agent_on(vision_models / "dino", size=28).backbone.vision
    encoder.model.register_forward_pre_hook(lambda _, __, kw: given.append(kw["pixel_values"]), with_kwargs=True)
    seen = frames(2, 28)
    encoder(seen)
    expected = (seen.permute(0, 3, 1, 2) / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / 0.2
    torch.testing.assert_close(given[0], expected)
    assert encoder.pixels == 28


def test_the_model_plays_as_it_trains_and_takes_no_orders_from_a_folder(vision_models, tmp_path, monkeypatch):
    agent = agent_on(vision_models / "dino").train()
    assert not agent.backbone.vision.model.training
    assert agent.backbone.vision.project.training
    frozen = [name for name, p in agent.named_parameters() if not p.requires_grad]
    assert all(name.endswith("mask_token") for name in frozen)
    agent.save(tmp_path / "agent")
    path = tmp_path / "agent" / "config.json"
    content = json.loads(path.read_text())
    hostile = {"auto_map": {"AutoModel": "evil/repo--code.Model"}, "attn_implementation": "kernels-community/evil"}
    content["backbone"]["pretrained_config"]["model"] |= {**hostile, "dtype": "float16", "backbone": "evil/other"}
    path.write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    again = Agent.load(tmp_path / "agent")
    assert all(p.dtype == torch.float32 for p in again.parameters())
    content["backbone"]["pretrained_config"]["model"] = ["not", "a", "model"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be loaded"):
        Agent.load(tmp_path / "agent")


def test_two_agents_of_one_config_start_alike_and_half_precision_is_read(vision_models, tmp_path):
    import transformers

    half = transformers.AutoModel.from_pretrained(vision_models / "dino").to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    config = BackboneConfig(image_size=28, encoder="pretrained", pretrained=str(tmp_path / "half"), **SMALL)
    one, two = (Agent(config, ActionCodec(gamepad_space())) for _ in range(2))
    assert config.pretrained_config is None
    assert one.config.pretrained_config is not None
    first, second = (agent.backbone.get_submodule("vision.model").state_dict() for agent in (one, two))
    for name, weight in first.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, second[name]), name
    one(frames(2, 28)[None]).sum().backward()


def test_a_pooling_layer_that_the_checkpoint_lacks_is_not_read(vision_models, tmp_path):
    import transformers

    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    whole = transformers.ViTModel(transformers.ViTConfig(intermediate_size=32, **shape), add_pooling_layer=False)
    whole.save_pretrained(tmp_path / "vit")
    agent = agent_on(tmp_path / "vit", size=32)
    assert not agent.backbone.vision.pooled
    agent.save(tmp_path / "agent")
    again = Agent.load(tmp_path / "agent").eval()
    with torch.no_grad():
        assert torch.equal(again(seen := frames(2, 32)[None]), agent(seen))


def test_what_is_no_vision_backbone_is_named(vision_models):
    with pytest.raises(UserError, match="'bert' is no vision backbone"):
        agent_on(vision_models / "words")
    with pytest.raises(UserError, match="cannot be loaded"):
        agent_on(vision_models / "missing")
    with pytest.raises(UserError, match="set pretrained to a Hub id"):
        Agent(BackboneConfig(encoder="pretrained"), ActionCodec(gamepad_space()))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'lit-align\[vision\]'"):
        agent_on("anywhere")


def test_configs_that_cannot_be_name_all_that_is_wrong():
    with pytest.raises(UserError, match=r"image_size is 0 and vector_size 0.*width is 0"):
        BackboneConfig(image_size=0, width=0).check()
    with pytest.raises(UserError, match="encoder is 'resnet'"):
        BackboneConfig.from_dict({"encoder": "resnet"})
    with pytest.raises(UserError, match=r"'vector_size' .* is True; expected int"):
        BackboneConfig.from_dict({"vector_size": True})
    assert isinstance(make_encoder(BackboneConfig()), nn.Module)
