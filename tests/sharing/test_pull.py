"""`lit-align pull`: what was pushed comes back as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_align.cli import main
from lit_align.commands.compare import Rule
from lit_align.commands.compare import run as compare
from lit_align.commands.hub_names import pin_names
from lit_align.commands.pull import run as pull
from lit_align.commands.push import run as push
from lit_align.data.pairs import PreferenceDataModule
from lit_align.data.preferences import PreferenceMeta, Preferences, read_preferences, write_preferences
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError
from lit_align.hub import source_of
from lit_align.models.folder import read_config
from tests.helpers import made_up, record, tiny_agent
from tests.stages.runs import CPU

ROOT = Path(__file__).parents[2]


def files_of(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.slow
def test_an_agent_comes_as_it_went_through_the_command_line(hub, tmp_path, card):
    agent = tiny_agent()
    agent.save(tmp_path / "run" / "agent")
    before = files_of(tmp_path / "run" / "agent")
    environment = {
        **os.environ,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(ROOT),
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lit_align", *words], env=environment, capture_output=True, text=True, check=False
        )

    done = run("push", "run", "alice/agent", "--card", card, "--private")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("pull", "alice/agent", "got")
    assert done.returncode == 0, done.stdout + done.stderr
    commit = hub.repos["model", "alice/agent"].branches["main"]
    assert f"got: agent of alice/agent@{commit}" in done.stdout
    found = files_of("got")
    assert {name: found[name] for name in before} == before
    assert source_of("got") == ("alice/agent", commit)
    done = run("pull", "alice/nothing", "--out", "other")
    assert done.returncode != 0
    assert "alice/nothing on the Hub" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("other").exists()


def test_trajectories_and_preferences_come_as_they_went(hub, tmp_path, card):
    frames = record(tmp_path / "frames", [made_up(i, 5) for i in range(3)])
    pairs = Preferences(np.array([0, 1]), np.array([1, 2]), annotator="rule")
    write_preferences(tmp_path / "pairs", {"train": pairs, "test": pairs}, PreferenceMeta(frames), "2026-01-01")
    push(frames, "alice/frames", card=card)
    push(str(tmp_path / "pairs"), "alice/pairs", card=card, trajectories="alice/frames")
    pull("alice/frames", "got/frames")
    pull("alice/pairs", "got/pairs")
    for name, content in files_of(tmp_path / "frames").items():
        assert files_of("got/frames")[name] == content
    one, other = TrajectoryDataset(frames), TrajectoryDataset("got/frames")
    assert all(np.array_equal(one.frames(i), other.frames(i)) for i in range(3))
    assert np.array_equal(read_preferences("got/pairs")[1]["test"].chosen, pairs.chosen)
    data = PreferenceDataModule("got/pairs", pairs=2)
    assert data.folder == "alice/frames", "what was compared is on the Hub"


def test_readers_of_data_take_names_on_the_hub(hub, tmp_path, card):
    frames = record(tmp_path / "frames", [made_up(i, 5) for i in range(3)])
    push(frames, "alice/frames", card=card)
    found = TrajectoryDataset("alice/frames")
    assert len(found) == 3
    assert np.array_equal(found.frames(1), TrajectoryDataset(frames).frames(1))


def test_a_model_and_a_data_set_of_one_name(hub, tmp_path, card):
    tiny_agent().save(tmp_path / "agent")
    push(str(tmp_path / "agent"), "alice/pads", card=card)
    push(record(tmp_path / "frames", [made_up(0, 5)]), "alice/pads", card=card)
    with pytest.raises(UserError, match="there is a model and a data set alice/pads; say which is meant with --kind"):
        pull("alice/pads", "got")
    pull("alice/pads", "got", kind="dataset")
    assert Path("got/meta.json").is_file()


def test_a_revision(hub, tmp_path, card):
    tiny_agent(0).save(tmp_path / "agent")
    push(str(tmp_path / "agent"), "alice/agent", card=card)
    first = (tmp_path / "agent" / "model.safetensors").read_bytes()
    commit = hub.repos["model", "alice/agent"].branches["main"]
    tiny_agent(1).save(tmp_path / "agent")
    push(str(tmp_path / "agent"), "alice/agent", card=card)
    for name, revision, out in (("alice/agent", commit, "a"), (f"alice/agent@{commit}", None, "b")):
        pull(name, out, revision)
        assert Path(out, "model.safetensors").read_bytes() == first


def test_a_download_that_breaks_off_goes_on(hub, tmp_path, card):
    tiny_agent().save(tmp_path / "agent")
    push(str(tmp_path / "agent"), "alice/agent", card=card)
    hub.fail("GET /alice/agent/resolve/.*/model.safetensors", status=404, times=1)
    with pytest.raises(UserError, match="alice/agent"):
        pull("alice/agent", "got")
    assert not Path("got").exists()
    assert not [p for p in Path().iterdir() if p.name.startswith(".got")]
    came = sum("GET /alice/agent/resolve" in line and "config.json" in line for line in hub.seen)
    pull("alice/agent", "got")
    assert sum("GET /alice/agent/resolve" in line and "config.json" in line for line in hub.seen) == came


def test_what_is_there_is_not_overwritten(hub, tmp_path):
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "mine").write_text("x")
    with pytest.raises(UserError, match="--out got is there already"):
        pull("alice/agent", "got")
    assert hub.seen == []


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(hub, tmp_path, there):
    tiny_agent().save(tmp_path / "agent")
    hub.put("alice/agent", files_of(tmp_path / "agent"))
    if there:
        (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    pull("alice/agent", "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").is_file()


def test_without_a_folder_the_second_word_is_named(hub, capsys):
    assert main(["pull", "alice/agent"]) == 2
    assert "it is the second word: lit-align pull alice/agent FOLDER" in capsys.readouterr().err
    assert hub.seen == []


def test_what_cannot_be_read_does_not_appear(hub, tmp_path):
    tiny_agent().save(tmp_path / "agent")
    files = files_of(tmp_path / "agent")
    config = json.loads(files["config.json"])
    files["config.json"] = json.dumps({**config, "trust_remote_code": True}).encode()
    hub.put("alice/agent", files)
    with pytest.raises(UserError, match="unknown key 'trust_remote_code'"):
        pull("alice/agent", "got")
    assert not Path("got").exists()


def test_a_run_that_goes_on_keeps_the_commit_that_it_began_with(hub, tmp_path):
    tiny_agent(0).save(tmp_path / "made")
    hub.put("alice/agent", files_of(tmp_path / "made"))
    first = hub.repos["model", "alice/agent"].branches["main"]
    config = {"init_from": "alice/agent", "model.rewards": {"alice/agent": 0.5, "env": 1.0}}
    pin_names(config, None)
    assert config == {"init_from": f"alice/agent@{first}", "model.rewards": {f"alice/agent@{first}": 0.5, "env": 1.0}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"init_from: alice/agent@{first}\n")
    hub.put("alice/agent", {"README.md": b"# moved on"})
    again = {"init_from": "alice/agent"}
    pin_names(again, tmp_path / "run")
    assert again == {"init_from": f"alice/agent@{first}"}
    pin_names(fresh := {"init_from": "alice/agent"}, None)
    assert fresh != again


def test_comparisons_of_trajectories_on_the_hub_name_their_commit(hub, tmp_path, monkeypatch):
    record(tmp_path / "made", [made_up(i, 3, outcome=("left", "none")[i % 2]) for i in range(12)])
    first = hub.put("alice/play", files_of(tmp_path / "made"), kind="dataset")
    compare("alice/play", str(tmp_path / "pairs"), Rule("left", [["left"], ["none"]]), 5, 2)
    hub.put("alice/play", {"README.md": b"# moved on"}, kind="dataset")
    monkeypatch.chdir(tmp_path / "made")  # nothing depends on where one stands
    meta, _ = read_preferences(tmp_path / "pairs")
    assert meta.trajectories == f"alice/play@{first}"
    assert pq.read_table(tmp_path / "pairs" / "data")["dataset"].unique().to_pylist() == ["play"]
    data = PreferenceDataModule(str(tmp_path / "pairs"))
    assert data.folder == meta.trajectories
    data.setup()


@pytest.mark.slow
def test_a_stage_starts_from_the_hub_and_tells_the_commits(hub, tmp_path):
    base = tiny_agent()
    base.save(tmp_path / "base")
    model = hub.put("alice/base", files_of(tmp_path / "base"))
    record(tmp_path / "play", [made_up(i, 5) for i in range(12)])
    data = hub.put("alice/play", files_of(tmp_path / "play"), kind="dataset")
    read = ["--init_from=alice/base", "--data.trajectories=[alice/play]", "--data.batch_size=4", "--data.window=8"]
    assert main(["finetune", "fit", "--out=run", *read, *CPU, "--trainer.max_epochs=1"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["init_from"] == f"alice/base@{model}"
    assert config["data"]["trajectories"] == [f"alice/play@{data}"]
    parent = read_config("run/agent")["info"]["parent"]
    assert (parent["folder"], parent["repository"], parent["revision"]) == ("alice/base", "alice/base", model)
    left = load_file("run/agent/model.safetensors")
    assert not all(torch.equal(left[name], value) for name, value in base.state_dict().items()), "it trained"
    main(["push", "run", "alice/tuned"])
    assert model in hub.repos["model", "alice/tuned"].files["README.md"].decode(), "the card names where it began"
