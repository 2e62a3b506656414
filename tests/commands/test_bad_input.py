"""Contract 7: bad input is one clear line and exit code 2, before anything is written."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces

import lit_align.rollout.recording as recording
import lit_align.rollout.scripted as scripted
from lit_align.cli import main
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.reward import RewardModel
from lit_align.spaces import ActionCodec, gamepad_space
from tests.helpers import TINY, LightWorld, tiny_agent
from tests.stages.runs import BACKBONE, CPU, ROOT, WORLD, align, assert_same_weights, inputs, pretrain

Refused = Callable[[list[str]], str]


@pytest.fixture
def folder(tmp_path):
    return inputs(tmp_path)


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder and its size; decoded frames, which are whole or not there, may stay."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


@pytest.fixture
def refused(folder, capfd) -> Refused:
    """Runs a command that must be refused; returns what it said."""

    def run(argv: list[str]) -> str:
        before = tree(folder)
        capfd.readouterr()
        logging.disable(logging.INFO)  # Lightning tells what it is about to do
        code = main(argv)
        logging.disable(logging.NOTSET)
        out, err = capfd.readouterr()
        assert code == 2, out + err
        said = err.splitlines()
        assert len(said) == 1, err
        assert said[0].startswith("error: ")
        assert "Traceback" not in out + err
        assert tree(folder) == before
        return said[0]

    return run


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_an_unknown_key_of_a_config_is_named_with_the_nearest_one(folder, refused):
    config = write(folder / "a.yaml", "data:\n  bach_size: 4\n")
    said = refused([*pretrain(folder, folder / "run"), f"--config={config}"])
    assert "a.yaml: unknown key 'data.bach_size'; did you mean data.batch_size?" in said
    config = write(folder / "b.yaml", "episods: 3\n")
    said = refused(["collect", f"--config={config}", f"--out={folder / 'new'}", f"--env={WORLD}"])
    assert "unknown key 'episods'; did you mean episodes?" in said
    said = refused([*pretrain(folder, folder / "run"), "--model.optimizer.warmup_step=1"])
    assert "unknown key 'warmup_step'; did you mean model.optimizer.warmup_steps?" in said


def test_a_folder_to_start_from_is_missed_before_anything_else(folder, refused):
    nowhere = folder / "nowhere" / "agent"
    data = [f"--data.trajectories=[{folder / 'play'}]"]
    said = refused(["finetune", "fit", f"--out={folder / 'run'}", f"--init_from={nowhere}", *data, *CPU])
    assert f"there is no folder '{nowhere}'; expected a folder that a stage left" in said
    said = refused(["finetune", "fit", f"--out={folder / 'run'}", f"--init_from={folder / 'base'}", *data, *CPU])
    assert f"did you mean {folder / 'base' / 'agent'}?" in said
    without = [word for word in align(folder, folder / "run") if not word.startswith("--init_from")]
    assert "alignment starts from an agent: give --init_from" in refused(without)


def other_agent(folder: Path, space: spaces.Space[Any] | None = None, **changes) -> Path:
    config = BackboneConfig.from_dict({**TINY.to_dict(), **changes})
    Agent(config, ActionCodec(space or gamepad_space())).save(folder / "other" / "agent")
    return folder / "other" / "agent"


def test_an_agent_that_acts_on_other_spaces_is_refused(folder, refused):
    agent = other_agent(folder, spaces.Discrete(5))
    out = folder / "new"
    both = r"the agent acts on ActionCodec(1 x 5 classes"
    said = refused(["collect", f"--out={out}", f"--agent={agent}", f"--env={WORLD}", "--episodes=2"])
    assert both in said
    assert "the environment takes ActionCodec(12 x 2, 4 x 11 classes" in said
    said = refused([*align(folder, out), f"--init_from={agent}"])
    assert f"the agent of '{agent}' acts on ActionCodec(1 x 5" in said
    said = refused(
        ["finetune", "fit", f"--out={out}", f"--init_from={agent}", f"--data.trajectories=[{folder / 'play'}]"]
    )
    assert "the data holds ActionCodec(12 x 2, 4 x 11" in said
    said = refused([*align(folder, out), f"--model.reference={agent}"])
    assert "the reference acts on ActionCodec(1 x 5" in said


def test_an_agent_that_sees_other_frames_is_refused(folder, refused, capfd):
    agent = other_agent(folder, image_size=64)
    said = refused(["collect", f"--out={folder / 'new'}", f"--agent={agent}", f"--env={WORLD}", "--episodes=2"])
    assert "sees frames of shape (64, 64, 3)" in said
    assert "shows (32, 32, 3)" in said
    assert "the agent sees 64 pixels" in refused([*align(folder, folder / "new"), f"--init_from={agent}"])
    said = refused([*pretrain(folder, folder / "new"), "--model.backbone.image_size=64"])
    assert "set --model.backbone.image_size 32 for a new agent" in said
    assert "or set --data.image_size 64 to resize it" in said
    wrong = ["--model.backbone.image_size=64", "--model.backbone.vector_size=3"]
    assert main([*pretrain(folder, folder / "new"), *wrong]) == 2
    said = capfd.readouterr().err
    assert "2 things to mend" in said
    assert "the agent sees vectors of 3 numbers, the data holds 0" in said
    assert not (folder / "play" / ".cache").exists(), "no frame is decoded for a run that cannot be"


def test_a_world_that_is_not_there_is_refused(folder, refused):
    said = refused([*align(folder, folder / "new"), "--data.env=LitAlign/Jumpads-v0"])
    assert "there is no environment 'LitAlign/Jumpads-v0'; did you mean LitAlign/Jumppads-v0?" in said
    said = refused(["collect", f"--out={folder / 'new'}", f"--env={WORLD}", "--env_args={sise: 3}"])
    assert "unexpected keyword argument 'sise'" in said


def test_a_shard_that_was_cut_short_is_named(folder, refused):
    assert main(["compare", *compared(folder), f"--out={folder / 'pairs'}"]) == 0
    shard = next((folder / "play" / "data").iterdir())
    os.truncate(shard, shard.stat().st_size // 2)
    pairs = [f"--init_from={folder / 'base' / 'agent'}", f"--data.preferences={folder / 'pairs'}"]
    for argv in (
        pretrain(folder, folder / "new"),
        ["reward", "fit", f"--out={folder / 'new'}", *pairs, *CPU],
        [
            "score",
            str(folder / "judge" / "reward_model"),
            f"--trajectories={folder / 'play'}",
            f"--out={folder / 'new'}",
        ],
        ["compare", *compared(folder), f"--out={folder / 'new'}"],
    ):
        said = refused(argv)
        assert f"shard {shard} cannot be read" in said
        assert "missing or was cut short: record or fetch it again" in said
    shard.unlink()
    assert f"shard {shard} cannot be read" in refused(pretrain(folder, folder / "new"))


def compared(folder: Path) -> list[str]:
    rule = ["--rule.name=left", "--rule.ranking=[[left]]", "--comparisons=5", "--test_comparisons=2"]
    return [f"--trajectories={folder / 'play'}", *rule]


def test_recorded_actions_out_of_range_are_named(folder, refused):
    shard = next((folder / "play" / "data").iterdir())
    file = pq.ParquetFile(shard)
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    actions = groups[3]["action"].to_pylist()
    actions[2][13] = 11
    column = groups[3].column_names.index("action")
    groups[3] = groups[3].set_column(column, "action", pa.array(actions, groups[3].schema.field("action").type))
    with pq.ParquetWriter(shard, groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=len(group))
    said = refused(pretrain(folder, folder / "new"))
    assert "episode 3: action 2: class 11 of head 'left_stick.1' is out of range 0..10" in said


class Broken:
    """A player whose stick is not a number."""

    def act(self, obs: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
        return {"buttons": np.zeros(12), "left_stick": np.array([0.0, np.nan]), "right_stick": np.zeros(2)}


def test_an_action_that_is_not_a_number_is_named_and_nothing_recorded(folder, refused, monkeypatch):
    # Threads in place of processes, so that the players can be replaced.
    monkeypatch.setattr(recording, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(scripted, "make_player", lambda *_, **__: Broken())
    said = refused(["collect", f"--out={folder / 'new'}", f"--env={WORLD}", "--episodes=2", "--workers=1"])
    assert "action dimension 'left_stick.1' is nan; expected a finite number" in said


def test_an_agent_whose_weights_are_not_numbers_is_named(folder, refused):
    agent = tiny_agent()
    agent.head.weight.data[0, 0] = float("nan")
    agent.save(folder / "sick" / "agent")
    said = refused(["collect", f"--out={folder / 'new'}", f"--agent={folder / 'sick' / 'agent'}", *a_few()])
    assert "log_probs holds a value that is not finite" in said


def a_few() -> list[str]:
    return [f"--env={WORLD}", "--episodes=3", "--worlds=2"]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["the folder", "an episode", "the end of a shard", "the description"])
def test_a_full_disk_while_recording_is_one_line_and_leaves_nothing(folder, refused, monkeypatch, place):
    written = []

    def second(self, table, **more):
        written.append(table)
        return keep(self, table, **more) if len(written) < 2 else full()

    keep = pq.ParquetWriter.write_table
    if place == "the folder":
        monkeypatch.setattr(tempfile, "mkdtemp", full)
    elif place == "an episode":
        monkeypatch.setattr(pq.ParquetWriter, "write_table", second)
    elif place == "the end of a shard":
        monkeypatch.setattr(pq.ParquetWriter, "close", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    said = refused(["collect", f"--out={folder / 'new'}", f"--agent={folder / 'base' / 'agent'}", *a_few()])
    assert "No space left on device" in said
    assert str(folder / "new") in said
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".new")]


def test_a_full_disk_while_training_is_one_line_and_the_run_can_go_on(folder, capfd, monkeypatch):
    run = pretrain(folder, folder / "run")
    assert main([*pretrain(folder, folder / "whole")]) == 0
    keep = torch.save

    def save(content, file):
        return full() if content["global_step"] > 10 else keep(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        capfd.readouterr()
        assert main(run) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: the disk is full ([Errno 28] No space left on device): make room, then run the command again"
    ]
    assert json.loads((folder / "run" / "run.json").read_text())["state"] == "failed"
    (folder / "run" / "checkpoints" / ".last.ckpt.99.tmp").write_bytes(b"half")  # as a kill while writing leaves
    assert main([*run, "--resume=last"]) == 0
    assert_same_weights(folder / "run" / "agent", folder / "whole" / "agent")
    assert {path.name for path in (folder / "run" / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}


@pytest.mark.slow
def test_a_file_that_really_cannot_grow_is_one_line_too(folder):
    """The system's own error, in another process: no file may be larger than 20 kB."""
    code = (
        "import resource, sys; from lit_align.cli import main; import lit_align.rollout.sampler; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(main(sys.argv[1:]))"
    )
    argv = ["collect", f"--out={folder / 'new'}", f"--agent={folder / 'base' / 'agent'}", *a_few()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.returncode != -signal.SIGXFSZ
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"error: '{folder / 'new'}' could not be written")
    assert {path.name for path in folder.iterdir()} == {"play", "base", "judge"}


def test_a_folder_that_holds_something_is_not_written_over(folder, refused):
    said = refused(["collect", f"--out={folder / 'play'}", *a_few(), f"--agent={folder / 'base' / 'agent'}"])
    assert "is not empty" in said
    assert "is not empty" in refused(["compare", *compared(folder), f"--out={folder / 'play'}"])


def test_a_model_of_another_kind_is_refused(folder, refused):
    agent, judge = folder / "base" / "agent", folder / "judge" / "reward_model"
    said = refused(["collect", f"--out={folder / 'new'}", f"--agent={judge}", *a_few()])
    assert "is of kind 'reward_model'; expected 'agent'" in said
    said = refused(["score", str(agent), f"--trajectories={folder / 'play'}", f"--out={folder / 'new'}"])
    assert "is of kind 'agent'; expected 'reward_model'" in said
    weights = judge / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    said = refused(["score", str(judge), f"--trajectories={folder / 'play'}", f"--out={folder / 'new'}"])
    assert "is not a readable safetensors file" in said
    RewardModel.from_agent(tiny_agent(), heads=2).save(judge)
    content = json.loads((judge / "config.json").read_text())
    (judge / "config.json").write_text(json.dumps({**content, "heads": 3}))
    said = refused(["score", str(judge), f"--trajectories={folder / 'play'}", f"--out={folder / 'new'}"])
    assert "does not fit config.json beside it" in said


def test_values_out_of_range_are_named(folder, refused):
    for more, word in (
        ("--data.batch_size=0", "data.batch_size 0; expected 1 or more"),
        ("--data.val_fraction=1.5", "data.val_fraction is 1.5"),
        ("--data.batch_size=4000", "lower data.batch_size"),
        ("--data.trajectories=[]", "data.trajectories is empty"),
        ("--data.select.outcomes=[up]", "data.select leaves no episode"),
        ("--data.select.top=0.2", "need data.select.scores"),
        ("--model.backbone.heads=3", "expected an even whole number for each head"),
    ):
        assert word in refused([*pretrain(folder, folder / "new"), more])
    assert "episodes a multiple of minibatches" in refused([*align(folder, folder / "new"), "--data.episodes=7"])
    said = refused(["compare", *compared(folder), "--comparisons=5000", f"--out={folder / 'new'}"])
    assert "5000 were asked for" in said


def test_good_input_is_taken(folder):
    """The commands above fail for the reasons given, not for another."""
    assert main(["collect", f"--out={folder / 'new'}", f"--agent={folder / 'base' / 'agent'}", *a_few()]) == 0
    assert main([*pretrain(folder, folder / "run", epochs=1)]) == 0
    assert LightWorld().action_space == gamepad_space()
    assert len(BACKBONE) == sum(value is not None for value in TINY.to_dict().values())
