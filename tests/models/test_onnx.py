"""An exported step is the agent's own step: on another runtime, with another memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import markdown_pages as shown
import numpy as np
import pytest
import torch

from lit_align.cli import main
from lit_align.errors import UserError
from lit_align.models import onnx_export
from lit_align.models.agent import gather_log_prob
from lit_align.models.onnx_agent import OnnxAgent
from lit_align.models.reward import RewardModel
from lit_align.stages.training import TrainConfig
from tests.helpers import SIZE, made_up, tiny_agent
from tests.models.test_one_forward import make_agent

# Every encoder, both kinds of heads, both norms, vectors; the window is 5 frames, and 1 in the last.
KINDS: dict[str, dict[str, Any]] = {
    "convnext": {"blocks": 1},
    "impala": {"encoder": "impala", "blocks": 1, "norm": "rmsnorm", "qk_norm": True, "heads": "autoregressive"},
    "patch beside a vector": {"encoder": "patch", "vector_size": 3},
    "a vector alone, one frame": {"image_size": 0, "vector_size": 3, "context": 1, "heads": "autoregressive"},
}
WORLDS, STEPS = 3, 17
SAMPLING = [(1.0, 1.0), (0.7, 0.8), (0.0, 1.0), (1.5, 0.4), (0.0, 0.5)]


def observed(agent, steps=STEPS, worlds=WORLDS):
    generator = torch.Generator().manual_seed(0)
    size, vector = agent.config.image_size, agent.config.vector_size
    for _ in range(steps):
        yield (
            torch.randint(0, 256, (worlds, size, size, 3), dtype=torch.uint8, generator=generator),
            torch.randn(worlds, vector, generator=generator),
            torch.rand(worlds, len(agent.codec.heads), generator=generator),
        )


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_it_is_torch_over_an_episode_longer_than_the_window_with_a_reset(tmp_path, kind):
    agent = make_agent(layers=2, **KINDS[kind])
    player = OnnxAgent(onnx_export.export_onnx(agent, tmp_path / "agent.onnx"), threads=1)
    cache = agent.new_cache(WORLDS)
    real = torch.arange(max(agent.codec.sizes)) < torch.tensor(agent.codec.sizes)[:, None]
    for step, (frames, vectors, uniform) in enumerate(observed(agent)):
        if step == 8:
            cache.reset([1])
            player.reset([1])
        temperature, top_p = SAMPLING[step % len(SAMPLING)]
        told = {
            name: torch.from_numpy(part)
            for name, part in player.step(frames.numpy(), vectors.numpy(), uniform.numpy(), temperature, top_p).items()
        }
        features = agent.backbone.step(frames, cache, vectors)
        actions, log_prob = agent.head.sample(features, uniform, temperature, top_p)
        log_probs = agent.log_probs_of(features, actions, temperature or 1.0)
        assert torch.equal(told["actions"], actions)
        torch.testing.assert_close(told["log_probs"][:, real], log_probs[:, real], atol=1e-4, rtol=0)
        torch.testing.assert_close(told["log_prob"], log_prob, atol=1e-4, rtol=0)
        assert (told["log_probs"][:, ~real].exp() == 0).all()
        if top_p == 1:
            told_by_all = gather_log_prob(told["log_probs"], told["actions"])
            torch.testing.assert_close(told["log_prob"], told_by_all, atol=1e-4, rtol=0)
    assert player._steps.tolist() == [STEPS, STEPS - 8, STEPS]


@pytest.mark.slow
def test_the_command_makes_a_file_that_plays_without_torch(tmp_path, capsys, monkeypatch):
    """One world, fixed; played in a process that never imports torch, beside the agent itself."""
    monkeypatch.chdir(tmp_path)
    agent = tiny_agent()
    agent.save("agent")
    assert main(["export", "agent", "--out=made/agent.onnx", "--format=onnx", "--worlds=1"]) == 0
    assert "from torch's" in capsys.readouterr().out
    assert sorted(path.name for path in Path("made").iterdir()) == ["agent.onnx"]
    frames = made_up(0, 11, size=2 * SIZE).frames
    np.save("frames.npy", frames)
    code = (
        "import sys, json, numpy as np\n"
        "from lit_align.models.onnx_agent import OnnxAgent\n"
        "agent = OnnxAgent('made/agent.onnx', threads=1)\n"
        "acted = [agent.act(frame, temperature=0) for frame in np.load('frames.npy')]\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps([[part.tolist() for part in action.values()] for action in acted]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    ours = [[part.tolist() for part in agent.act(frame, temperature=0).values()] for frame in frames]
    assert json.loads(done.stdout) == ours
    player = OnnxAgent("made/agent.onnx", threads=1)
    assert player.codec == agent.codec
    assert [head["classes"] for head in player.facts["heads"]] == list(agent.codec.sizes)
    with pytest.raises(UserError, match="for 1 worlds at a time, and 2 were given"):
        player.act(frames[:2])
    with pytest.raises(UserError, match="the agent sees uint8 RGB"):
        player.act(frames[0] / 255)
    player.reset(seed=1)
    first = [player.act(frame)["left_stick"].tolist() for frame in frames]
    player.reset(seed=1)
    assert [player.act(frame)["left_stick"].tolist() for frame in frames] == first
    page = Path(__file__).parents[2] / "docs" / "acting.md"
    block = next(block for block in shown.blocks(page, "python") if "OnnxAgent" in block)
    Path("made/agent.onnx").rename("agent.onnx")
    exec(compile(block, "acting.md", "exec"), {})  # a reader would type it in just so


@pytest.mark.slow
@torch.no_grad()
def test_adapters_and_bfloat16_are_exported_as_what_they_compute(tmp_path):
    adapted = tiny_agent(image_size=0, vector_size=3, layers=1)
    TrainConfig("lora", rank=2).apply(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_b" in name:
            parameter.data.normal_(std=0.5)
    halved = adapted.prepare("bf16")
    names = set(adapted.state_dict())
    path = onnx_export.export_onnx(halved, tmp_path / "agent.onnx", worlds=2)
    assert halved.backbone.transformer.norm.weight.dtype == torch.bfloat16
    assert set(adapted.state_dict()) == names, "the agent that was exported was changed"
    player, cache = OnnxAgent(path, threads=1), adapted.new_cache(2)
    plain = tiny_agent(image_size=0, vector_size=3, layers=1)
    plain_cache = plain.new_cache(2)
    near, far = [], []
    for frames, vectors, uniform in observed(adapted, worlds=2):
        told = torch.from_numpy(player.step(frames.numpy(), vectors.numpy(), uniform.numpy())["log_probs"]).exp()
        near.append((adapted.step(frames, cache, vectors).exp() - told).abs().max())
        far.append((plain.step(frames, plain_cache, vectors).exp() - told).abs().max())
    assert 0 < max(near) < 0.1 * max(far)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line_that_names_the_extra(missing, monkeypatch, tmp_path, capsys):
    tiny_agent().save(tmp_path / "agent")
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["export", str(tmp_path / "agent"), f"--out={tmp_path / 'agent.onnx'}", "--format=onnx"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: an ONNX file needs {missing}: pip install 'lit-align[onnx]'\n"
    if missing == "onnxruntime":
        with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'lit-align\[onnx\]'"):
            OnnxAgent(tmp_path / "agent.onnx")


def test_what_cannot_be_exported_is_named(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    reward = tmp_path / "reward_model"
    RewardModel.from_agent(tiny_agent()).save(reward)

    def refused(*argv):
        assert main(["export", *map(str, argv)]) == 2
        return capsys.readouterr().err

    file = f"--out={tmp_path / 'agent.onnx'}"
    assert "expected a file that ends in .onnx" in refused(reward, f"--out={tmp_path / 'x'}", "--format=onnx")
    assert "is of kind 'reward_model'; expected 'agent'" in refused(reward, file, "--format=onnx")
    assert f"expected an agent's folder: {tmp_path / 'run' / 'agent'}" in refused(
        tmp_path / "run", file, "--format=onnx"
    )
    assert "is for --format onnx" in refused(reward, f"--out={tmp_path / 'x'}", "--worlds=2")
    with pytest.raises(UserError, match="export the one that it was prepared from"):
        onnx_export.export_onnx(tiny_agent().prepare("int8"), tmp_path / "agent.onnx")
    with pytest.raises(UserError, match="worlds is 0"):
        onnx_export.export_onnx(tiny_agent(), tmp_path / "agent.onnx", worlds=0)
    assert not (tmp_path / "agent.onnx").exists()


def test_a_file_that_is_no_agent_is_named(tmp_path):
    import onnx

    with pytest.raises(UserError, match=r"there is no file '.*'; make one by: lit-align export"):
        OnnxAgent(tmp_path / "agent.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07nothing")
    with pytest.raises(UserError, match="cannot be read by ONNX Runtime"):
        OnnxAgent(tmp_path / "broken.onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "other", [value], [value])
    graph.output[0].name = "y"
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="does not say what it is"):
        OnnxAgent(tmp_path / "other.onnx")
    onnx.helper.set_model_props(model, {"lit_align": json.dumps({"schema": 9})})
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(UserError, match="has schema 9; this version plays schema 1"):
        OnnxAgent(tmp_path / "newer.onnx")


def test_the_facts_say_what_each_class_stands_for():
    agent = tiny_agent()
    facts = json.loads(json.dumps(onnx_export.describe(agent, None)))
    assert facts["cache"] == [2, 2, None, 2, 6, 16]
    classes = np.array([size - 1 for size in agent.codec.sizes])
    action = agent.codec.decode(classes)
    values = [head["values"][c] for head, c in zip(facts["heads"], classes, strict=True)]
    flat = np.concatenate([np.ravel(part) for part in action.values()])
    np.testing.assert_allclose(values, flat, rtol=1e-6)
