"""Contract 3: killed anywhere and started again, a run ends with the weights of one that was never killed."""

import json
import pickle
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from lit_align.cli import main
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from tests.helpers import tiny_agent
from tests.stages.runs import CPU, Process, align, assert_same_weights, comparisons, inputs, pretrain, rows

EPOCHS = 20


@pytest.fixture
def folder(tmp_path):
    return inputs(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "more", "resume", "column", "enough"),
    [
        (pretrain, ["--checkpoint_every=3"], "auto", "train/loss", 19),  # inside the third epoch of eight batches
        (align, [], "last", "iteration", 3),  # inside the fourth iteration or its play
    ],
)
def test_a_killed_process_comes_back_with_the_same_weights(folder, argv, more, resume, column, enough):
    whole, twin, killed = folder / "whole", folder / "twin", folder / "killed"
    both = [
        Process([*argv(folder, out, EPOCHS), *more], folder / f"{out.name}.log", hash_seed=n)
        for n, out in enumerate((whole, twin), start=1)
    ]
    for process in both:
        process.finish()
    start = tiny_agent().state_dict() if argv is align else None
    end = load_file(whole / "agent" / "model.safetensors")
    assert start is None or any(not torch.equal(start[name], end[name]) for name in end), "nothing was learned"
    assert_same_weights(whole / "agent", twin / "agent")  # two processes, the same run

    checkpoint = killed / "checkpoints" / "last.ckpt"
    Process([*argv(folder, killed, EPOCHS), *more], folder / "killed.log").kill_when(
        lambda: checkpoint.is_file() and len(rows(killed, column)) >= enough
    )
    assert not (killed / "agent").exists()
    at = torch.load(checkpoint, weights_only=True)["global_step"]
    total = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < at < total
    Process([*argv(folder, killed, EPOCHS), *more, f"--resume={resume}"], folder / "again.log").finish()
    assert_same_weights(whole / "agent", killed / "agent")
    assert rows(killed, column) == rows(whole, column)  # what was logged is the same too, counters included
    facts = [json.loads((out / "agent" / "config.json").read_text())["info"] for out in (whole, killed)]
    assert facts[0]["train_frames"] == facts[1]["train_frames"] > 0
    assert json.loads((killed / "run.json").read_text())["state"] == "finished"


class Stop(pl.Callback):
    """Ends a run as a crash would, at an optimizer step.

    Args:
        step: Optimizer steps before.
        validation: In the validation after that step.
    """

    def __init__(self, step: int, validation: bool = False) -> None:
        self.step, self.validation = step, validation

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if self.validation and trainer.global_step == self.step:
            raise RuntimeError("pulled the plug")

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if not self.validation and trainer.global_step == self.step:
            raise RuntimeError("pulled the plug")


@pytest.mark.parametrize(
    ("argv", "more", "step"),
    [(align, [], step) for step in (1, 3, 4, 5)] + [(pretrain, ["--checkpoint_every=2"], step) for step in (7, 8, 11)],
)
def test_a_run_resumes_from_wherever_it_crashed(folder, argv, more, step):
    assert main([*argv(folder, folder / "whole"), *more]) == 0
    crash = ["--trainer.callbacks+=tests.stages.test_resume.Stop", f"--trainer.callbacks.step={step}"]
    with pytest.raises(RuntimeError, match="pulled the plug"):
        main([*argv(folder, folder / "hurt"), *more, *crash])
    assert main([*argv(folder, folder / "hurt"), *more, "--resume=auto"]) == 0
    assert_same_weights(folder / "whole" / "agent", folder / "hurt" / "agent")
    for column in ("iteration", "frames", "train/loss", "val/loss"):
        assert rows(folder / "whole", column) == rows(folder / "hurt", column)
    assert float(rows(folder / "whole", "frames")[-1]["frames"]) > 100


@pytest.mark.parametrize(
    ("more", "step", "at", "saved"),
    [
        (["--checkpoint_every=2"], 4, "validation=true", 2),  # where a checkpoint and a validation are both due
        (["--checkpoint_every=2"], 4, "validation=false", 4),  # it was saved after the validation
        (["--checkpoint_every=1", "--trainer.accumulate_grad_batches=2"], 2, "validation=true", 1),
    ],
)
def test_a_run_that_died_in_a_validation_inside_an_epoch_validates_again(folder, more, step, at, saved):
    """An epoch has eight batches; the validation after four of them must not be lost, nor be there twice."""
    both = ["--trainer.val_check_interval=4", *more]
    assert main([*pretrain(folder, folder / "whole"), *both]) == 0
    crash = ["--trainer.callbacks+=tests.stages.test_resume.Stop", f"--trainer.callbacks.step={step}"]
    with pytest.raises(RuntimeError, match="pulled the plug"):
        main([*pretrain(folder, folder / "hurt"), *both, *crash, f"--trainer.callbacks.{at}"])
    last = torch.load(folder / "hurt" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == saved
    assert main([*pretrain(folder, folder / "hurt"), *both, "--resume=auto"]) == 0
    assert_same_weights(folder / "whole" / "agent", folder / "hurt" / "agent")
    for column in ("frames", "train/loss", "val/loss"):
        assert rows(folder / "whole", column) == rows(folder / "hurt", column)
    assert len(rows(folder / "whole", "val/loss")) == 4


def test_a_run_that_died_between_its_last_step_and_its_export_exports_all_of_it(folder):
    pairs = comparisons(folder)
    reward = ["reward", "fit", f"--out={folder / 'r'}", f"--init_from={folder / 'base' / 'agent'}", *CPU]
    reward += [f"--data.preferences={pairs}", "--trainer.max_epochs=1"]
    assert main(reward) == 0
    left = folder / "r" / "reward_model"
    shutil.move(left, folder / "before")
    headline = (folder / "r" / "headline.txt").read_text()
    (folder / "r" / "headline.txt").unlink()
    assert main([*reward, "--resume=auto"]) == 0
    assert_same_weights(folder / "before", left)  # the normalisation too
    assert (left / "config.json").read_text() == (folder / "before" / "config.json").read_text()  # the accuracy too
    assert (folder / "r" / "headline.txt").read_text() == headline
    assert json.loads((folder / "r" / "run.json").read_text())["state"] == "finished"


def test_a_spent_kl_budget_stays_spent_unless_it_is_raised(folder):
    tight = [*align(folder, folder / "run", epochs=4), "--model.max_kl=0"]
    assert main(tight) == 0
    assert len(rows(folder / "run", "iteration")) == 1
    assert main([*tight, "--resume=last"]) == 0
    assert len(rows(folder / "run", "iteration")) == 1
    assert main([*align(folder, folder / "run", epochs=3), "--model.max_kl=9", "--resume=last"]) == 0
    assert len(rows(folder / "run", "iteration")) == 3


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def test_a_checkpoint_of_another_stage_is_refused(folder, capsys):
    assert main(pretrain(folder, folder / "p", epochs=1)) == 0
    last = folder / "p" / "checkpoints" / "last.ckpt"
    said = refused([*align(folder, folder / "a"), f"--resume={last}"], capsys)
    assert "of stage 'pretrain'; expected 'align'" in said
    assert not (folder / "a").exists()


def test_a_checkpoint_from_within_an_iteration_is_refused(folder, capsys):
    assert "align always saves at the end of an iteration" in refused(
        [*align(folder, folder / "a"), "--checkpoint_every=1"], capsys
    )
    saver = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=3"]
    saver += [f"--trainer.callbacks.dirpath={folder / 'mine'}", "--trainer.callbacks.filename=inside"]
    assert main([*align(folder, folder / "a", epochs=1), *saver]) == 0
    said = refused([*align(folder, folder / "b"), f"--resume={folder / 'mine' / 'inside.ckpt'}"], capsys)
    assert "written inside iteration 0" in said
    assert not (folder / "b").exists()


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_holds_code_is_refused_and_the_code_not_run(folder, capsys):
    sprung = folder / "sprung"
    torch.save({"state_dict": {}, "trap": Trap(sprung)}, folder / "evil.ckpt")
    said = refused([*pretrain(folder, folder / "p"), f"--resume={folder / 'evil.ckpt'}"], capsys)
    assert "holds code, which is not run" in said
    (folder / "short.ckpt").write_bytes((folder / "evil.ckpt").read_bytes()[:300])
    assert "was cut short" in refused([*pretrain(folder, folder / "p"), f"--resume={folder / 'short.ckpt'}"], capsys)
    torch.save({"weights": torch.zeros(3)}, folder / "other.ckpt")
    said = refused([*pretrain(folder, folder / "p"), f"--resume={folder / 'other.ckpt'}"], capsys)
    assert "holds no checkpoint of a stage" in said
    assert not (folder / "p").exists()
    assert not sprung.exists()


def test_a_pickle_in_an_agents_folder_is_not_loaded(tmp_path):
    sprung, place = tmp_path / "sprung", tmp_path / "agent"
    tiny_agent().save(place)
    bad = pickle.dumps(Trap(sprung))
    for name in ("pytorch_model.bin", "model.pkl", "model.pt"):
        (place / name).write_bytes(bad)
    Agent.load(place)  # what lies beside the weights is not looked at
    (place / "model.safetensors").write_bytes(bad)
    with pytest.raises(UserError, match=r"model\.safetensors is not a readable safetensors file"):
        Agent.load(place)
    (place / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        Agent.load(place)
    assert not sprung.exists()
    pickle.loads(bad)  # the trap is one
    assert sprung.exists()


def test_a_checkpoint_of_another_network_is_named(folder, capsys):
    out = folder / "out"
    assert main(pretrain(folder, out, epochs=1)) == 0
    assert main([*pretrain(folder, out), "--model.backbone.width=64", "--resume=last"]) == 2
    told = capsys.readouterr().err
    assert "last.ckpt is of another network (Error(s) in loading state_dict" in told
    assert f"expected the settings that it was trained with, which are in {out / 'config.yaml'}" in told
    assert "Traceback" not in told
