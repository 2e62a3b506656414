"""The memory that `--dry_run` tells, against what runs in processes of their own really used."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import lightning.pytorch as pl
import pytest
import torch

from lit_align.cli import main
from lit_align.commands import dry_run
from lit_align.data.modules import TrajectoryDataModule
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.stages.fake import Imitation
from lit_align.stages.memory import LiveStorages, estimate, of_run
from lit_align.stages.pretrain import Pretrain
from lit_align.stages.training import TrainConfig
from tests.helpers import TINY, LightWorld, made_up, record
from tests.stages.runs import CPU, ROOT, align, comparisons, inputs, pretrain

SAVING = "--model.train.gradient_checkpointing=true"
STEP, PROCESS = "memory of one training step (MB)", "of this process (MB)"
PARTS = (
    "weights (MB)",
    "gradients (MB)",
    "optimizer state (MB)",
    "activations and temporary values (MB)",
    "batch (MB)",
    "allocator and libraries (MB)",
)


def status(name: str) -> float:
    """A line of this process's status, in MB: `VmRSS` is what it holds, `VmHWM` the most it held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024 / 1e6


class Watch(pl.Callback):
    """What the process holds before the network is there."""

    before = 0.0

    def setup(self, trainer, pl_module, stage):
        self.before = status("VmRSS")


def really_used(argv: list[str]) -> None:
    """Runs a stage in this process, and prints in MB how much more than before the network it held at the most."""
    from lit_align.commands import stage

    watch = Watch()
    make = stage.StageCLI.instantiate_trainer

    def watched(self, **kwargs):
        trainer = make(self, **kwargs)
        trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.StageCLI, "instantiate_trainer", watched)
        assert main(argv) == 0
    print(json.dumps([watch.before, status("VmHWM") - watch.before]))  # noqa: T201


def elsewhere(*argv: str) -> str:
    """What `python ARGV` prints, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def called(call: str) -> list[float]:
    """What a call of this module prints last, in a process of its own."""
    said = elsewhere("-c", f"from tests.stages import test_memory as m; m.{call}")
    return json.loads(said.splitlines()[-1])


def facts_of(text: str) -> dict[str, str]:
    """The facts of a dry run's summary."""
    lines = [line.split("  ", 1) for line in text.splitlines() if "  " in line.strip()]
    return {name: value.strip() for name, value in lines}


def told(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What a dry run in this process tells."""
    capsys.readouterr()
    assert main([*argv, "--dry_run"]) == 0
    return facts_of(capsys.readouterr().out)


def backbone(**fields: object) -> list[str]:
    return [f"--model.backbone.{name}={value}" for name, value in fields.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "window", "batch", "more", "alone"),
    [
        # About 490 MB, of which 290 are activations; about 950 MB, of which 810 are weights and their like.
        (64, 64, 16, backbone(image_size=64, channels=32), True),
        (32, 16, 4, backbone(image_size=32, width=1024, heads=8), False),
        (
            32,
            64,
            32,
            [*backbone(image_size=32, width=512, heads=4), "--model.train.gradient_checkpointing=true"],
            False,
        ),
    ],
    ids=["activations", "weights", "checkpointing"],
)
def test_as_much_is_used_as_was_told(tmp_path, capsys, size, window, batch, more, alone):
    play = record(tmp_path / "play", [made_up(i, window, size=size) for i in range(batch + 1)])
    data = [f"--data.trajectories=[{play}]", f"--data.window={window}", f"--data.batch_size={batch}"]
    # The third step has all that later ones have: gradients, optimizer state and activations at once.
    argv = ["pretrain", "fit", f"--out={tmp_path / 'run'}", *data, *more, *CPU, "--trainer.max_steps=3"]
    argv += ["--data.val_fraction=0"]
    before, used = called(f"really_used({argv!r})")
    # What this process holds already is part of what is told of it: once that is compared with a fresh one.
    facts = facts_of(elsewhere("-m", "lit_align", *argv, "--dry_run")) if alone else told(argv, capsys)
    assert used > 300
    assert float(facts[STEP]) == pytest.approx(used, rel=0.15)
    if alone:
        assert float(facts[PROCESS]) == pytest.approx(before + used, rel=0.15)
    assert sum(float(facts[part]) for part in PARTS) == pytest.approx(float(facts[STEP]), abs=0.5)


class Done(Exception):
    """Ends a run where it is set up."""


class Look(pl.Callback):
    """Looks at a run whose data is there and whose network is not, and ends it."""

    def __init__(self, look: Callable[[pl.Trainer, pl.LightningModule], None]) -> None:
        self.look = look

    def setup(self, trainer, pl_module, stage):
        self.look(trainer, pl_module)
        raise Done


def look_at(folder: str, stage: Pretrain, look: Callable[[pl.Trainer, pl.LightningModule], None]) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=4, callbacks=[Look(look)], logger=False, enable_checkpointing=False
    )
    with pytest.raises(Done):
        trainer.fit(stage, TrajectoryDataModule([folder], window=8, batch_size=3))


def of_a_billion(folder: str) -> None:
    """Prints parameters in millions, what was told and by how much this process grew, in MB."""

    def look(trainer, stage):
        before = status("VmRSS")
        imitation = Imitation(trainer, stage)
        memory = of_run(imitation)
        count = sum(p.numel() for p in imitation.stage.parameters())
        assert not list(stage.parameters())
        print(json.dumps([count / 1e6, memory.lasting / 1e6, status("VmHWM") - before]))  # noqa: T201

    look_at(folder, Pretrain(BackboneConfig(image_size=32, width=2560, layers=12, heads=20)), look)


@pytest.fixture
def play(tmp_path):
    return record(tmp_path / "play", [made_up(i, 9 + i) for i in range(12)])


@pytest.mark.slow
def test_a_billion_parameters_are_told_and_not_made(play):
    millions, lasting, grown = called(f"of_a_billion({play!r})")
    assert 900 < millions < 1100
    assert lasting == pytest.approx(16 * millions, rel=0.01)
    assert grown < 300


def test_the_parts_are_those_of_the_network(play):
    def look(trainer, stage):
        memory = of_run(Imitation(trainer, stage))
        agent = Agent(TINY, trainer.datamodule.codec)
        weights = 4 * sum(p.numel() for p in agent.parameters())
        assert memory.weights == pytest.approx(weights, rel=0.05)  # and a few small buffers
        assert memory.gradients == weights
        assert 2 * weights < memory.optimizer < 2 * weights + 1000
        assert memory.batch == 3 * 8 * (32 * 32 * 3 + 16) + 3 * 8
        assert memory.activations > 3 * 8 * 4 * TINY.width * TINY.layers * 10
        assert stage.agent is None  # the stage is as it was

    look_at(play, Pretrain(TINY), look)

    def look_at_heads(trainer, stage):
        assert of_run(Imitation(trainer, stage)).gradients == 4 * (TINY.width + 1) * (2 * 12 + 4 * 11)

    look_at(play, Pretrain(TINY, train=TrainConfig(parameters="heads")), look_at_heads)


def test_more_of_a_batch_is_more_memory_and_checkpointing_is_less(play):
    def look(trainer, stage):
        imitation = Imitation(trainer, stage)
        batch = next(iter(trainer.datamodule.train_dataloader()))
        few, many = (estimate(imitation, imitation.batch(batch, 20 * n, 32)) for n in (1, 4))
        assert many.activations == pytest.approx(4 * few.activations, rel=0.1)
        assert (many.lasting, many.batch) == (few.lasting, 4 * few.batch)
        model = imitation.stage.model
        assert isinstance(model, Agent)
        model.backbone.checkpointing = True
        assert estimate(imitation, imitation.batch(batch, 80, 32)).activations < 0.9 * many.activations

    look_at(play, Pretrain(replace(TINY, layers=6, width=128)), look)


def test_live_storages_are_followed_to_their_end():
    live = LiveStorages()
    with live:
        one = torch.zeros(1000)
        assert live.now == 4000
        two = one.view(10, 100) + 1  # a view takes nothing
        assert live.now == 8000
        del one
        assert live.now == 4000
        del two
    assert (live.now, live.peak) == (0, 8000)


def test_other_stages_and_worlds(tmp_path, capsys):
    folder = inputs(tmp_path)
    start = [f"--init_from={folder / 'base' / 'agent'}", f"--out={folder / 'r'}", *CPU]
    facts = told(["reward", "fit", *start, f"--data.preferences={comparisons(folder)}"], capsys)
    assert float(facts[STEP]) > 100
    finetune = ["finetune", "fit", *start, f"--data.trajectories=[{folder / 'play'}]", "--data.batch_size=4"]
    assert float(told(finetune, capsys)[STEP]) > 100

    assert "does not tell how long an episode may be" in told(align(folder, folder / "a"), capsys)[STEP]
    if "LitAlign-test/Timed-v0" not in gymnasium.registry:
        gymnasium.register(
            "LitAlign-test/Timed-v0", entry_point=lambda **args: LightWorld(**args), max_episode_steps=40
        )
    facts = told([*align(folder, folder / "a"), "--data.env=tests.helpers:LitAlign-test/Timed-v0"], capsys)
    # Eight episodes of 40 frames in two minibatches, one of them beside the buffer.
    assert float(facts["batch (MB)"]) == pytest.approx(12 * 40 * (32 * 32 * 3 + 16 * 11 * 4) / 1e6, rel=0.1)
    assert not (folder / "a").exists()


def test_what_does_not_fit_is_not_made(tmp_path, monkeypatch, capsys):
    folder = inputs(tmp_path)
    monkeypatch.setattr(dry_run, "free_memory", lambda device: 1e6)
    monkeypatch.setattr(Pretrain, "on_fit_start", lambda self: pytest.fail("the network was made"))
    facts = told(pretrain(folder, folder / "p"), capsys)
    assert "the network was not made" in facts["it does not fit"]
    assert int(facts["parameters"]) > 1000
    assert int(facts["optimizer steps in all"]) > 1


def test_a_network_that_cannot_be_followed_is_no_error(tmp_path, monkeypatch, capsys):
    def fails(imitation):
        raise RuntimeError("no such operation in imitation")

    folder = inputs(tmp_path)
    monkeypatch.setattr(dry_run, "of_run", fails)
    facts = told(pretrain(folder, folder / "p"), capsys)
    assert facts[STEP] == "not known: RuntimeError: no such operation in imitation"
    assert int(facts["parameters"]) > 1000
