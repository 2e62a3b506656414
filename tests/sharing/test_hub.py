"""Names on the Hub: what is one, what comes from there, and what is said when it does not."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lit_align import hub as our_hub
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.folder import fingerprint, read_config
from lit_align.models.reward import RewardModel
from tests.helpers import tiny_agent


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def shared(tmp_path, hub) -> Agent:
    """An agent that is on the Hub as alice/agent."""
    agent = tiny_agent()
    agent.save(tmp_path / "made" / "agent")
    hub.put("alice/agent", files_of(tmp_path / "made" / "agent"))
    return agent


def same_weights(one, other) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("text", ["alice/agent", "a/b", "alice/my-agent_2.0@main", "alice/agent@refs/pr/1"])
def test_names_on_the_hub(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert our_hub.is_id(text)
    (tmp_path / text).mkdir(parents=True)
    assert not our_hub.is_id(text), "what is on this disk is meant"


@pytest.mark.parametrize(
    "text", ["agent", "/alice/agent", "./alice/agent", "../agent", "a/b/c", "alice/", "alice/agent@", "al ice/a", "~/a"]
)
def test_no_names_on_the_hub(text):
    assert not our_hub.is_id(text)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=30))
def test_any_text_is_a_name_that_can_be_split_or_none(text):
    if our_hub.is_id(text):
        repo_id, revision = our_hub.split_id(text)
        assert text == repo_id + (f"@{revision}" if revision else "")


def test_an_agent_from_the_hub_is_the_same_and_acts_the_same(shared):
    found = Agent.from_pretrained("alice/agent")
    assert same_weights(found, shared)
    frames = np.random.default_rng(0).integers(0, 256, (5, shared.config.image_size, shared.config.image_size, 3))
    for agent in (found, shared):
        agent.reset(seed=3)
    for frame in frames.astype(np.uint8):
        one, other = found.act(frame), shared.act(frame)
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_every_reader_of_folders_takes_a_name(shared, tmp_path):
    assert same_weights(Agent.load("alice/agent"), shared)
    assert read_config("alice/agent")["kind"] == "agent"
    assert fingerprint("alice/agent") == fingerprint(tmp_path / "made" / "agent")


def test_a_reward_model_from_the_hub(hub, tmp_path):
    model = RewardModel.from_agent(tiny_agent(), heads=2)
    model.save(tmp_path / "reward_model")
    hub.put("alice/reward", files_of(tmp_path / "reward_model"))
    assert same_weights(RewardModel.from_pretrained("alice/reward"), model)
    with pytest.raises(UserError, match="is of kind 'reward_model'; expected 'agent'"):
        Agent.from_pretrained("alice/reward")


def test_revisions_by_branch_by_commit_and_in_the_name(hub, tmp_path, shared):
    first = hub.repos["model", "alice/agent"].branches["main"]
    other = tiny_agent(1)
    other.save(tmp_path / "other")
    hub.put("alice/agent", files_of(tmp_path / "other"), branch="dev")
    hub.put("alice/agent", files_of(tmp_path / "other"))
    for revision in ("dev", "main", None):
        assert same_weights(Agent.from_pretrained("alice/agent", revision), other)
    assert same_weights(Agent.from_pretrained("alice/agent", first), shared)
    assert same_weights(Agent.load(f"alice/agent@{first}"), shared)
    assert our_hub.pin("alice/agent@dev") == f"alice/agent@{hub.repos['model', 'alice/agent'].branches['dev']}"
    with pytest.raises(UserError, match="has no revision 'nope'; expected one of its branches"):
        Agent.from_pretrained("alice/agent", "nope")
    with pytest.raises(UserError, match="names the revision 'dev', and revision is 'main'"):
        Agent.from_pretrained("alice/agent@dev", "main")


def test_a_missing_repository_says_what_to_do(hub):
    with pytest.raises(UserError, match=r"there is no model alice/nothing .* no folder of that name here"):
        Agent.load("alice/nothing")


def test_a_wrong_token_and_none(hub, tmp_path, shared, monkeypatch):
    hub.repos["model", "alice/agent"].private = True
    assert same_weights(Agent.from_pretrained("alice/agent", token=hub.token), shared)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "c" * 34)
    with pytest.raises(UserError, match="does not know your token; log in with `hf auth login`, or set HF_TOKEN"):
        Agent.load("alice/agent")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="if it is private, log in"):
        Agent.load("alice/agent")
    with pytest.raises(UserError, match="there is no model alice/agent .* that you may read"):
        Agent.from_pretrained("alice/agent", token="hf_" + "b" * 34)


def test_a_gated_repository(hub, shared):
    hub.repos["model", "alice/agent"].gated = True
    with pytest.raises(UserError, match=r"alice/agent is gated: ask for access at http://127"):
        Agent.from_pretrained("alice/agent", token="hf_" + "b" * 34)


def test_a_hub_that_is_down_or_gone_is_served_from_the_cache_if_it_holds_it(hub, shared, monkeypatch):
    hub.fail("GET /api/models/alice/agent", status=503)
    with pytest.raises(UserError, match="is not in the cache"):
        Agent.load("alice/agent")
    Agent.load("alice/agent")
    hub.fail("/alice/agent", status=503, times=9)
    assert same_weights(Agent.load("alice/agent"), shared)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert same_weights(Agent.load("alice/agent"), shared)
    seen = len(hub.seen)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_weights(Agent.load("alice/agent"), shared)
    assert len(hub.seen) == seen, "offline asks nobody"
    with pytest.raises(UserError, match="alice/other is not in the cache"):
        Agent.load("alice/other")


class _Bomb:
    def __reduce__(self):
        return (print, ("boom",))


@pytest.mark.parametrize("name", ["model.bin", "data/x.pkl", "modeling.py", "Weights.PT", "a/b.ckpt", "x.npz"])
def test_a_repository_that_can_run_code_is_refused_and_not_downloaded(hub, shared, name):
    hub.put("alice/agent", {name: pickle.dumps(_Bomb())})
    with pytest.raises(UserError, match=f"alice/agent holds {name}, which can run code"):
        Agent.load("alice/agent")
    assert not [line for line in hub.seen if "/resolve/" in line], "no file was asked for"


def test_a_repository_of_something_else_is_named_before_anything_comes(hub):
    hub.put("alice/llm", {"config.json": b"{}", "tokenizer.json": b"{}"})
    with pytest.raises(
        UserError, match=r"alice/llm holds no model.safetensors; expected a model that 'lit-align push'"
    ):
        Agent.load("alice/llm")


def test_only_what_is_needed_comes(hub, shared):
    hub.put("alice/agent", {"notes.txt": b"x", "replay.mp4": b"y" * 1000, "README.md": b"# card"})
    folder = our_hub.fetch("alice/agent")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    whole = our_hub.fetch("alice/agent", whole=True)
    assert {"README.md", "replay.mp4"} < {path.name for path in whole.iterdir()}
    assert "notes.txt" not in {path.name for path in whole.iterdir()}


# A config.json or weights that somebody made by hand


def change(folder, edit) -> None:
    content = json.loads((folder / "config.json").read_text())
    edit(content)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(backbon={}), r"unknown key 'backbon'; did you mean backbone\?"),
        (lambda c: c.update(zzz=1, info=[]), "unknown key 'zzz'; known are schema, kind, backbone"),
        (lambda c: c.update(info=[]), r"'info' in .* is \[\]; expected an object"),
        (lambda c: c.update(backbone=3), "'backbone' in .* is 3; expected an object"),
        (lambda c: c.update(actions="gamepad"), "'actions' in .* expected an object"),
        (lambda c: c.pop("actions"), "lacks the key 'actions'"),
        (lambda c: c.update(schema=True), "has schema True"),
        (lambda c: c.update(schema=2), "has schema 2; this version reads schema 1"),
        (lambda c: c.update(kind="llm"), "is of kind 'llm'; expected 'agent'"),
        (lambda c: c.update(kind=["agent"]), "is of kind .*agent.*; expected 'agent'"),
        (
            lambda c: c["backbone"].update(width="big"),
            "config.json: 'width' in the backbone's config is 'big'; expected int",
        ),
        (lambda c: c["backbone"].update(dropout=0.1), r"unknown keys \['dropout'\] in the backbone's config"),
        (lambda c: c["backbone"].update(layers=10**12), "layers is 1000000000000; expected 1024 at most"),
        (lambda c: c["backbone"].update(mlp_ratio=float("nan")), "mlp_ratio is nan"),
        (lambda c: c["backbone"].update(rope_base=2**70), r"rope_base 1180591620717411303424; expected .* 1e\+12 at"),
        (lambda c: c["policy"].update(depth=2), "the policy's config is .*depth"),
        (lambda c: c["policy"].update(width=2.5), "policy.width is 2.5; expected a whole number"),
        (lambda c: c["policy"].update(heads=["independent"]), "policy.heads is .*expected independent"),
        (lambda c: c["actions"].update(kind="Hypercube"), "unknown kind of space 'Hypercube'"),
        (lambda c: c["actions"].update(spaces=[]), "not complete"),
        (lambda c: c["actions"].update(size=3), "a Dict space holds the unknown key 'size'; known are"),
        (lambda c: c["actions"]["spaces"]["buttons"].update(n=3), "a MultiBinary space holds the unknown key 'n'"),
    ],
)
def test_a_config_with_unknown_keys_or_wrong_types_is_refused_by_name(tmp_path, edit, message):
    tiny_agent().save(tmp_path / "agent")
    change(tmp_path / "agent", edit)
    with pytest.raises(UserError, match=message):
        Agent.load(tmp_path / "agent")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 5_000, "9" * 5_000, "\x00", "nul", "[]", '"x"', "1", "{}"])
def test_json_that_is_none_of_a_models_is_one_error(tmp_path, text):
    tiny_agent().save(tmp_path / "agent")
    (tmp_path / "agent" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        Agent.load(tmp_path / "agent")


def test_a_config_larger_than_any_is_not_read(tmp_path):
    tiny_agent().save(tmp_path / "agent")
    with (tmp_path / "agent" / "config.json").open("wb") as file:
        file.truncate(2**33)  # sparse
    with pytest.raises(UserError, match="8589934592 bytes; expected 16777216 at most"):
        Agent.load(tmp_path / "agent")


def test_a_config_that_asks_for_more_memory_than_there_is_is_refused_by_its_weights(tmp_path):
    tiny_agent().save(tmp_path / "agent")
    change(tmp_path / "agent", lambda c: c["backbone"].update(width=2**16, heads=64))
    with pytest.raises(
        UserError, match="does not fit config.json beside it: the tensor .* of shape .*32.*, expected .*65536"
    ):
        Agent.load(tmp_path / "agent")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w, n: w.pop(n), "it lacks the tensor {n}$"),
        (lambda w, n: w.update(extra=torch.zeros(2)), "it holds the tensor extra, which is none of the model's$"),
        (lambda w, n: w.update({n: torch.zeros(3, 5)}), r"the tensor {n} is of shape \[3, 5\], expected"),
        (
            lambda w, n: w.update({n: w[n].to(torch.int32)}),
            "the tensor {n} is of type torch.int32, expected torch.float32",
        ),
        (lambda w, n: w.update({n: w[n].to(torch.float8_e4m3fn)}), "the tensor {n} is of type F8_E4M3"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, edit, message):
    tiny_agent().save(tmp_path / "agent")
    path = tmp_path / "agent" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.startswith("head"))
    edit(weights, name)
    save_file(weights, path)
    with pytest.raises(UserError, match=message.format(n=name)):
        Agent.load(tmp_path / "agent")


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_weights_that_were_cut_short_are_one_error(tmp_path, keep):
    tiny_agent().save(tmp_path / "agent")
    path = tmp_path / "agent" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"model\.safetensors is not a readable safetensors file: .*cut short"):
        Agent.load(tmp_path / "agent")


def test_half_precision_weights_still_load(tmp_path):
    agent = tiny_agent()
    agent.save(tmp_path / "agent")
    path = tmp_path / "agent" / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    found = Agent.load(tmp_path / "agent")
    assert all(torch.equal(v.bfloat16().float(), found.state_dict()[k]) for k, v in agent.state_dict().items())
