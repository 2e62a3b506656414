"""Folders of shards: read without running code, and what is not whole is refused."""

import json
import pickle
import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict_saver import save

from lit_align.commands.run_folder import RunFolder
from lit_align.errors import UserError
from lit_align.stages.sharding import hollow, whole_state
from lit_align.stages.shards import (
    is_shards,
    read_facts,
    read_into,
    read_plan,
    weight_names,
    write_checksums,
    write_facts,
)
from lit_align.stages.torn import CHECKSUMS, checksums, damage
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


@pytest.fixture
def summed(copied) -> Path:
    write_checksums(copied, checksums(copied, ["__0_0.distcp"]))
    assert damage(copied) == ""
    return copied


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "meta.pt", CHECKSUMS])
@pytest.mark.parametrize("how", ["gone", "short", "flipped", "zeroed"])
def test_damage_of_any_file_is_recognised(summed, name, how):
    file, content = summed / name, bytearray((summed / name).read_bytes())
    if how == "gone" and name == CHECKSUMS:
        return  # an older version wrote none
    file.unlink()
    if how == "short":
        file.write_bytes(content[:-10])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif how == "zeroed":
        file.write_bytes(bytes(len(content)))
    assert damage(summed) != ""


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_of_a_shard_is_recognised_wherever_it_is(summed, data):
    file = summed / "__0_0.distcp"
    content = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    file.write_bytes(flipped)
    assert damage(summed) == "its part __0_0.distcp does not match its checksum"
    file.write_bytes(content)


def test_checksums_are_those_of_zlib_of_files_of_any_length(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_align.stages.torn.CHUNK", 7)
    contents = {f"{n}": bytes(range(n)) for n in (0, 1, 6, 7, 8, 14, 100)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {name: [len(content), zlib.crc32(content)] for name, content in contents.items()}
    assert checksums(tmp_path, contents) == expected
    write_checksums(tmp_path, {"0": expected["0"]})
    assert json.loads((tmp_path / CHECKSUMS).read_text()) == expected


def test_shards_of_a_version_without_checksums_are_gone_on_from(copied):
    assert damage(copied) == ""
    (copied / "meta.pt").write_bytes((copied / "meta.pt").read_bytes()[:-50])
    assert damage(copied).startswith("its meta.pt: it was cut short")


def test_of_damaged_shards_the_ones_before_are_used_and_said(summed):
    folder = RunFolder(summed.parent)
    kept = folder.checkpoints
    kept.mkdir()
    for name in ("previous.ckpt", "last.ckpt"):
        shutil.copytree(summed, kept / name)
    assert folder.checkpoint("last") == kept / "last.ckpt"
    shard = kept / "last.ckpt" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert folder.checkpoint("last") == kept / "previous.ckpt"
    assert "its __0_0.distcp has" in folder.warning
    assert "Going on from the one before it, previous.ckpt" in folder.warning
    folder.mend(kept / "previous.ckpt")
    assert damage(kept / "last.ckpt") == ""
    (kept / "last.ckpt" / "meta.pt").unlink()
    with pytest.raises(UserError, match="no checkpoint is whole"):
        RunFolder(summed.parent).checkpoint("auto")


def test_what_a_killed_save_left_is_swept_away(tmp_path):
    folder = RunFolder(tmp_path)
    aside = folder.checkpoints / ".last.ckpt.shards.tmp"
    aside.mkdir(parents=True)
    (aside / "__0_0.distcp").write_bytes(b"half")
    (folder.checkpoints / ".last.ckpt.123.tmp").write_bytes(b"half")
    (tmp_path / ".run.json.x.tmp").write_text("{")
    folder.sweep()
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints"]


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
