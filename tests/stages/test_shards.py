"""Folders of shards: read without running code, and what is not whole is refused."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from lit_align.errors import UserError
from lit_align.stages.sharding import hollow, whole_state
from lit_align.stages.shards import is_shards, read_facts, read_into, read_plan, weight_names, write_facts
from tests.helpers import tiny_agent
from tests.stages.test_resume import Trap


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """What one process writes: weights, and an optimizer's settings, which are no tensors."""
    folder = tmp_path_factory.mktemp("shards") / "last.ckpt"
    settings = {"param_groups": [{"lr": 0.5, "betas": (0.9, 0.95), "params": ["a", "b"]}]}
    state = {"state_dict": {"a": torch.arange(6.0), "b": torch.ones(2, 3)}, "optimizer_0": settings}
    save(state, checkpoint_id=folder, no_dist=True)
    write_facts({"global_step": 7}, folder)
    return folder


def empty() -> dict[str, Any]:
    settings = {"param_groups": [{"lr": 0.0, "betas": (0.0, 0.0), "params": ["", ""]}]}
    return {"state_dict": {"a": torch.zeros(6), "b": torch.zeros(2, 3)}, "optimizer_0": settings}


def test_what_was_written_is_read(written):
    assert is_shards(written)
    assert weight_names(written) == {"a", "b"}
    assert read_facts(written) == {"global_step": 7}
    state = empty()
    read_into(state, written, alone=True)
    assert torch.equal(state["state_dict"]["a"], torch.arange(6.0))
    assert state["optimizer_0"]["param_groups"] == [{"lr": 0.5, "betas": (0.9, 0.95), "params": ["a", "b"]}]


@pytest.fixture
def copied(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "last.ckpt"))


def test_a_plan_that_holds_code_is_refused_and_the_code_not_run(copied, tmp_path):
    sprung = tmp_path / "sprung"
    plan = read_plan(copied)
    plan.planner_data = Trap(sprung)
    (copied / ".metadata").write_bytes(pickle.dumps(plan))
    for read in (read_plan, weight_names, lambda path: read_into(empty(), path, alone=True)):
        with pytest.raises(UserError, match="holds code, which is not run"):
            read(copied)
    assert not sprung.exists()
    pickle.loads((copied / ".metadata").read_bytes())  # the trap is one
    assert sprung.exists()


def test_shards_and_facts_that_hold_code_are_refused_and_the_code_not_run(tmp_path):
    sprung, folder = tmp_path / "sprung", tmp_path / "evil.ckpt"
    save(
        {"state_dict": {"a": torch.zeros(1)}, "optimizer_0": {"trap": Trap(sprung)}}, checkpoint_id=folder, no_dist=True
    )
    torch.save({"trap": Trap(sprung)}, folder / "meta.pt")
    with pytest.raises(UserError, match="holds code, which is not run"):
        read_facts(folder)
    with pytest.raises(UserError, match="holds code, which is not run"):
        read_into({"state_dict": {"a": torch.zeros(1)}, "optimizer_0": {"trap": 0}}, folder, alone=True)
    assert not sprung.exists()


@pytest.mark.parametrize("lost", ["__0_0.distcp", ".metadata", "meta.pt"])
@pytest.mark.parametrize("how", ["gone", "short"])
def test_a_file_that_is_gone_or_cut_short_is_said(copied, lost, how):
    content = (copied / lost).read_bytes()
    (copied / lost).unlink()
    if how == "short":
        (copied / lost).write_bytes(content[: len(content) // 3])
    with pytest.raises(UserError, match=r"last\.ckpt is no whole checkpoint"):
        read_facts(copied) if lost == "meta.pt" else read_into(empty(), copied, alone=True)


def test_weights_that_are_not_there_or_of_another_size_are_said(written):
    for wrong in ({"c": torch.zeros(1)}, {"a": torch.zeros(5)}):
        with pytest.raises(UserError, match="no whole checkpoint of this network"):
            read_into({"state_dict": wrong}, written, alone=True)


def test_a_hollow_copy_has_no_weights_and_is_filled(tmp_path):
    from lit_align.stages.sharding import fill

    agent = tiny_agent()
    assert agent.backbone.vision is not None
    agent.backbone.vision.requires_grad_(False)
    twin = hollow(agent)
    assert all(parameter.is_meta for parameter in twin.parameters())
    fill(twin, whole_state(agent), torch.device("cpu"))
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in agent.parameters()]
    frames = torch.randint(256, (2, 5, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(twin(frames), agent(frames))
    agent.head.weight.data.add_(1)  # type: ignore[operator]
    assert not torch.equal(twin(frames), agent(frames))  # weights of its own
    fill(twin, whole_state(agent), torch.device("cpu"))
    assert torch.equal(twin(frames), agent(frames))
