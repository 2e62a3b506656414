"""`lit_align.load`: whichever it is, from a folder or the Hub, ready for use."""

import json
import subprocess
import sys
from pathlib import Path

import markdown_pages
import numpy as np
import pytest
import torch

import lit_align
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.reward import RewardModel
from tests.helpers import made_up, tiny_agent


@pytest.fixture
def folders(tmp_path):
    agent = tiny_agent()
    agent.save(tmp_path / "agent")
    RewardModel.from_agent(agent, heads=2).save(tmp_path / "reward_model")
    return tmp_path


def frames(n=6):
    return made_up(0, n - 1).frames


def test_an_agent_acts_as_the_one_that_was_saved(folders):
    agent = lit_align.load(folders / "agent")
    assert isinstance(agent, Agent)
    assert not agent.training
    assert not any(parameter.requires_grad for parameter in agent.parameters())
    saved = tiny_agent()
    for frame in frames():
        ours, theirs = agent.act(frame, temperature=0), saved.act(frame, temperature=0)
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_reward_model_scores_as_the_one_that_was_saved(folders):
    model = lit_align.load(str(folders / "reward_model"))
    assert isinstance(model, RewardModel)
    saved = RewardModel.load(folders / "reward_model")
    assert model.score(frames()) == saved.score(frames())


@pytest.mark.parametrize(
    ("told", "fps"), [(8.75, 8.75), (30, 30.0), (None, None), ("30", None), (True, None), (0, None), (10**400, None)]
)
def test_the_speed_that_an_agent_acts_at_travels_with_it(tmp_path, told, fps):
    agent = tiny_agent()
    agent.info["fps"] = told
    agent.save(tmp_path / "agent")
    assert lit_align.load(tmp_path / "agent").fps == fps


@pytest.mark.parametrize("kind", ["agent", "reward_model"])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_it_is_loaded_in_fewer_bits_as_prepare_makes_it(folders, kind, precision):
    loaded = lit_align.load(folders / kind, precision=precision)
    prepared = type(loaded).load(folders / kind).prepare(precision)
    ours, theirs = loaded.state_dict(), prepared.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)


def test_what_cannot_be_loaded_is_named(folders, monkeypatch):
    agent = folders / "agent"
    with pytest.raises(UserError, match="device is 'gpu'; expected cpu, cuda, cuda:1, mps or auto"):
        lit_align.load(agent, device="gpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UserError, match=f"device is '{device}'; torch .* finds 0 of them here: use cpu or auto"):
            lit_align.load(agent, device=device)
    assert next(lit_align.load(agent, device="auto").parameters()).device.type == "cpu"
    with pytest.raises(UserError, match="precision is 'fp8'; expected fp32, bf16 or int8"):
        lit_align.load(agent, precision="fp8")
    with pytest.raises(UserError, match="has no revision 'main'"):
        lit_align.load(agent, revision="main")
    for nowhere in (folders / "nope", str(folders / "nope")):
        with pytest.raises(UserError, match=f"^there is no folder '{folders / 'nope'}'; expected .*user/name"):
            lit_align.load(nowhere)
    (folders / "empty").mkdir()
    with pytest.raises(UserError, match=f"^no config.json in '{folders / 'empty'}'; expected a folder"):
        lit_align.load(folders / "empty")
    with pytest.raises(UserError, match="did you mean .*agent"):
        lit_align.load(folders)
    config = json.loads((agent / "config.json").read_text())
    (agent / "config.json").write_text(json.dumps({**config, "kind": "planner"}))
    with pytest.raises(UserError, match="'planner'"):
        lit_align.load(agent)


def test_a_precision_of_another_device_is_found_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(UserError, match="int8 on cuda; 8-bit weights are for acting on a CPU"):
        lit_align.load("nowhere/at-all", device="auto", precision="int8")
    with pytest.raises(UserError, match="device is 'cuda:1'; torch .* finds 1 of them"):
        lit_align.load("nowhere/at-all", device="cuda:1")


def test_a_name_on_the_hub_goes_through_the_hub(folders, monkeypatch):
    asked = []

    def fetch(name, kind="model", revision=None, token=None):
        if "/" in str(name) and not str(name).startswith("/"):
            asked.append((name, kind, revision, token))
            return folders / "agent"
        return name

    monkeypatch.setattr(lit_align.hub, "fetch", fetch)
    assert isinstance(lit_align.load("user/name", revision="v1", token="hf_x"), Agent)
    assert asked == [("user/name", "model", "v1", "hf_x")]


def test_the_package_stays_light_and_load_stays_a_function():
    code = (
        "import sys, lit_align\n"
        "assert not {'torch', 'lightning', 'huggingface_hub', 'numpy'} & set(sys.modules)\n"
        "load = lit_align.load\n"
        "import lit_align.loading, lit_align.models.agent\n"
        "assert callable(lit_align.load) and lit_align.load is load\n"
        "assert 'huggingface_hub' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_many_worlds_and_the_mask_of_those_that_are_over(folders):
    """A vector environment's `terminated | truncated` goes into `reset` as it is."""
    agent, fresh = lit_align.load(folders / "agent"), tiny_agent()
    for frame in frames(4):
        agent.act(np.stack((frame, frame)))
    agent.reset(np.array([True, False]))
    first, _ = agent.act(np.stack([frames()[0]] * 2), temperature=0)
    alone = fresh.act(frames()[0], temperature=0)
    assert all(np.array_equal(first[name], alone[name]) for name in alone)
    assert agent.codec.space.contains(first)


def test_what_the_page_shows_runs(tmp_path, monkeypatch, capsys):
    """In a world whose frames are not of the agent's size."""
    page = Path(__file__).parents[2] / "docs" / "acting.md"
    tiny_agent().save(tmp_path / "outputs" / "quickstart" / "align_left" / "agent")
    RewardModel.from_agent(tiny_agent()).save(tmp_path / "outputs" / "quickstart" / "reward_left" / "reward_model")
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in markdown_pages.blocks(page, "python") if "lit_align.load" in block]
    assert len(blocks) == 2
    for block in blocks:
        code = block.replace("LitAlign/Jumppads-v0", "LitAlign-test/Light-v0")
        exec(compile(code, "acting.md", "exec"), {})  # a reader would type it in just so
    outcome, score, shape = capsys.readouterr().out.splitlines()
    assert outcome in ("left", "right")
    assert np.isfinite(float(score))
    assert shape == "(51,)"


def test_saved_again_the_new_model_is_there_alone(tmp_path):
    for seed in (1, 2):
        tiny_agent(seed).save(tmp_path / "agent")
        (tmp_path / "agent" / f"{seed}.txt").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]
    assert sorted(path.name for path in (tmp_path / "agent").iterdir()) == ["2.txt", "config.json", "model.safetensors"]
    loaded, saved = Agent.load(tmp_path / "agent").state_dict(), tiny_agent(2).state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
