"""Two processes do what one does: every stage, on DDP and on FSDP2, over gloo; and so it is started in any way."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lit_align.cli import main
from lit_align.data.modules import TrajectoryDataModule
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.windows import plan_epoch
from lit_align.models.reward import RewardModel
from lit_align.rollout.buffer import RolloutDataModule
from lit_align.rollout.sampler import Sampler
from tests.helpers import LightWorld, made_up, record, tiny_agent
from tests.stages.iteration import align_inputs
from tests.stages.pair import STRATEGIES, TWO, Stored, pairs_of, torchrun
from tests.stages.runs import BACKBONE, CPU, WORLD, Process, assert_same_weights, rows

ONE = ["--config=configs/trainer/cpu.yaml"]
SHORT = ["--trainer.log_every_n_steps=1", "--trainer.max_epochs=2", "--model.optimizer.warmup_steps=2"]
EPISODES = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Play of unequal lengths, and comparisons in which no episode is met twice: 12 to train on, 6 to test."""
    made = align_inputs(tmp_path_factory.mktemp("many"))
    record(made / "uneven", [made_up(i, 3 + 5 * i % 17) for i in range(EPISODES)])
    ids = np.random.default_rng(0).permutation(EPISODES).reshape(-1, 2)
    ties = np.arange(12) % 5 == 0
    splits = {
        "train": Preferences(ids[:12, 0], ids[:12, 1], ties, (~ties).astype(np.float32)),
        "test": Preferences(ids[12:, 0], ids[12:, 1]),
    }
    write_preferences(made / "pairs", splits, PreferenceMeta(str(made / "uneven"), {"name": "noise"}), "2026-01-01")
    return made


def argv(folder: Path, stage: str, out: Path, ranks: int, *more: str) -> list[str]:
    """A run whose steps see the same on `ranks` processes as on one."""
    start = [] if stage == "pretrain" else [f"--init_from={folder / 'base' / 'agent'}"]
    if stage in ("pretrain", "finetune"):
        data = [f"--data.trajectories=[{folder / 'uneven'}]", f"--data.batch_size={8 // ranks}", "--data.window=32"]
        data += [
            "--data.val_fraction=0.2",
            "--model.optimizer.schedule=constant",
            *(BACKBONE if stage == "pretrain" else []),
        ]
    elif stage in ("reward", "prefer"):
        data = [f"--data.preferences={folder / 'pairs'}", f"--data.pairs={4 // ranks}"]
    else:
        start = [f"--init_from={folder / 'numbers' / 'agent'}"]
        start += ["--model.reward_model=tests.stages.test_align:one_for_left"]
        data = [f"--data.env={WORLD}", "--data.env_args={size: 0, vector: 2}", f"--data.worlds={4 // ranks}"]
        data += ["--data.episodes=8", "--data.minibatches=1", "--data.epochs=1", "--model.optimizer.lr=0.01"]
        data += ["--data.validation_episodes=6"]
    return [stage, "fit", f"--out={out}", *start, *data, *SHORT, *more]


MEASURES = {
    "pretrain": ("train/loss", "val/loss", "val/accuracy"),
    "finetune": ("train/loss", "val/loss", "val/accuracy"),
    "reward": ("train/loss", "val/loss", "val/ece"),
    "prefer": ("train/loss", "val/loss", "val/kl"),
    "align": (
        "reward/mean",
        "reward/std",
        "env_steps",
        "rollout/return",
        "rollout/return_std",
        "policy/kl",
        "policy/entropy",
        "value/loss",
        "val/reward",
        "val/return",
    ),
}
OPTIONS = {
    "prefer": ["--model.imitation=0.1"],
    "reward": ["--model.heads=2"],
    "align": ["--model.estimator=ppo", "--model.scale_advantages=true"],
}


def compare(one: Path, two: Path, stage: str, apart: float = 1e-6) -> None:
    for measure in MEASURES[stage]:
        told = [[float(row[measure]) for row in rows(run, measure)] for run in (one, two)]
        small = apart if measure.endswith("kl") else apart / 10  # the sum of many differences, whose parts cancel
        assert told[0] == pytest.approx(told[1], rel=apart, abs=small), measure
        assert len(told[0]) > 1 or measure not in ("train/loss", "reward/mean")
    left = "reward_model" if stage == "reward" else "agent"
    a, b = (load_file(run / left / "model.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    # What shifts all rewards alike cancels in every gap: its gradient is rounding, and what becomes of it is taken out
    # by the normalisation.
    shifts = ("head.bias", "backbone.transformer.norm.bias", "mean") if stage == "reward" else ()
    for name in a.keys() - set(shifts):  # Adam's step is the learning rate also where a gradient is rounding
        assert float((a[name] - b[name]).abs().mean()) < apart, name
    if stage == "reward":
        seen = torch.from_numpy(made_up(0, 12).frames[None]), torch.tensor([13])
        models = [RewardModel.load(run / left).eval() for run in (one, two)]
        rewards = [model.normalise(model(*seen)) for model in models]
        assert torch.allclose(rewards[0], rewards[1], atol=1e-5)
    infos = [json.loads((run / left / "config.json").read_text())["info"] for run in (one, two)]
    for name in ("stage", "train_frames", "parameters", "env_steps", "best_iteration", "comparisons"):
        assert infos[0].get(name) == infos[1].get(name)


SOME = {
    "pretrain-fsdp": ("pretrain", "fsdp", []),
    "prefer-ddp": ("prefer", "ddp", OPTIONS["prefer"]),
    "reward-fsdp": ("reward", "fsdp", OPTIONS["reward"]),
    "align-fsdp": ("align", "fsdp", OPTIONS["align"]),
}
UPDATE = ["--trainer.max_epochs=1", "--model.estimator=ppo", "--model.kl=0.3", "--model.scale_advantages=true"]
UPDATE += ["--model.reference={folder}/second_numbers/agent", "--model.entropy=0.01"]


def callback(name: str, option: str, value: Path) -> list[str]:
    return [f"--trainer.callbacks+=tests.stages.pair.{name}", f"--trainer.callbacks.{option}={value}"]


def play(folder: Path, name: str) -> list[str]:
    return callback("Played", "folder", folder / f"{name}-played")


def update(folder: Path, name: str) -> list[str]:
    more = [option.format(folder=folder) for option in UPDATE]
    return [
        *more,
        *callback("Stored", "file", folder / "stored.pt"),
        *callback("Gradient", "file", folder / f"{name}.pt"),
    ]


@pytest.fixture(scope="module")
def runs(folder, stored) -> Path:
    """A stage of each kind on two processes and on one, and one update on both."""
    tiny_agent(9, image_size=0, vector_size=2).save(folder / "second_numbers" / "agent")
    two, one = [], []
    for name, (stage, kind, more) in SOME.items():
        also = [play(folder, n) if stage == "align" else [] for n in (name, f"{stage}-one")]
        two.append(argv(folder, stage, folder / name, 2, *STRATEGIES[kind], *TWO, *more, *also[0]))
        one.append(argv(folder, stage, folder / f"{stage}-one", 1, *ONE, *more, *also[1]))
    for kind in ("ddp", "fsdp"):
        name = f"update-{kind}"
        two.append(argv(folder, "align", folder / name, 2, *STRATEGIES[kind], *TWO, *update(folder, name)))
    one.append(argv(folder, "align", folder / "update-one", 1, *ONE, *update(folder, "update-one")))
    half = argv(folder, "pretrain", folder / "half", 2, *STRATEGIES["fsdp"], *TWO)
    two += [[*half, "--trainer.max_epochs=1"], [*half, "--resume=last"]]
    pairs_of(two, folder)
    for each in one:
        assert main(each) == 0, each
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_two_processes_do_what_one_does(runs, name):
    stage = name.split("-")[0]
    compare(runs / f"{stage}-one", runs / name, stage)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_update_from_the_same_buffer_is_the_same(runs, kind):
    one, two = (torch.load(runs / f"update-{name}.pt", weights_only=True) for name in ("one", kind))
    assert one.keys() == two.keys()
    assert any("value_head" in name for name in one)
    assert float(two.pop("loss")) == pytest.approx(float(one.pop("loss")), rel=1e-6)
    largest = max(float(g.abs().max()) for g in one.values())
    assert largest > 1e-3
    for name, gradient in one.items():
        assert float((gradient - two[name]).abs().max()) < 1e-6 * largest, name
    measure = "policy/entropy"
    told = [float(rows(runs / f"update-{name}", measure)[0][measure]) for name in ("one", kind)]
    assert told[0] == pytest.approx(told[1], rel=1e-6)


@pytest.mark.slow
def test_two_processes_play_the_episodes_of_one(runs):
    for iteration in (0, 1):  # the second one after an update
        parts = [
            torch.load(runs / f"{name}-played" / f"{iteration}-{rank}.pt", weights_only=True)
            for name, rank in (("align-one", 0), ("align-fsdp", 0), ("align-fsdp", 1))
        ]
        assert [len(part) for part in parts] == [8, 4, 4]
        together = parts[1] | parts[2]
        assert together.keys() == parts[0].keys()
        for episode, (actions, frames) in parts[0].items():
            assert torch.equal(together[episode][0], actions)
            assert torch.equal(together[episode][1], frames)


@pytest.mark.slow
def test_a_run_goes_on_from_shards_exactly(runs):
    assert_same_weights(runs / "pretrain-fsdp" / "agent", runs / "half" / "agent")
    assert rows(runs / "half", "train/loss") == rows(runs / "pretrain-fsdp", "train/loss")
    checkpoints = runs / "half" / "checkpoints"
    assert {path.name for path in (checkpoints / "last.ckpt").iterdir()} >= {"__0_0.distcp", "__1_0.distcp"}
    assert not list(checkpoints.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("run", ["pretrain-fsdp", "reward-fsdp", "reward-one", "prefer-ddp", "align-fsdp", "align-one"])
def test_what_is_exported_of_a_checkpoint_is_what_the_run_left(runs, tmp_path, run):
    left = runs / run / ("reward_model" if "reward" in run else "agent")
    assert main(["export", str(runs / run), f"--out={tmp_path / 'made'}"]) == 0
    assert (tmp_path / "made" / "config.json").read_text() == (left / "config.json").read_text()
    if run != "reward-fsdp":
        assert_same_weights(tmp_path / "made", left)
        return
    a, b = (load_file(folder / "model.safetensors") for folder in (tmp_path / "made", left))
    for name, weight in a.items():  # convolutions lie otherwise in memory where they are sharded, and round otherwise
        assert torch.equal(weight, b[name]) if name not in ("mean", "std") else torch.allclose(weight, b[name]), name


@pytest.mark.slow
def test_an_earlier_checkpoint_can_be_exported_too(runs, tmp_path):
    first = runs / "half" / "checkpoints" / "previous.ckpt"
    assert main(["export", str(first), f"--out={tmp_path / 'made'}"]) == 0
    info = json.loads((tmp_path / "made" / "config.json").read_text())["info"]
    last = json.loads((runs / "half" / "agent" / "config.json").read_text())["info"]
    assert 0 < info["train_frames"] < last["train_frames"]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))


@pytest.mark.slow
def test_what_cannot_be_exported_is_said(runs, tmp_path, capsys):
    left = str(runs / "pretrain-fsdp" / "agent")
    assert "no config.yaml" in refused(["export", left, f"--out={tmp_path / 'x'}"], capsys)
    assert "is there already" in refused(["export", str(runs / "half"), f"--out={left}"], capsys)
    assert "there is no 'nowhere'" in refused(["export", "nowhere", f"--out={tmp_path / 'x'}"], capsys)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_folder_of_shards_that_does_not_fit_is_refused(runs, tmp_path, capsys):
    shards = runs / "half" / "checkpoints" / "last.ckpt"
    said = refused([*argv(runs, "pretrain", tmp_path / "one", 1, *ONE), f"--resume={shards}"], capsys)
    assert "is a folder of shards" in said
    assert not (tmp_path / "one").exists()


def test_windows_of_two_processes_hold_unequal_numbers_of_targets(folder):
    """Else a mean of the processes' own means would pass for the mean over all targets in what is compared above."""
    counts = []
    for rank in range(2):
        data = TrajectoryDataModule([str(folder / "uneven")], window=32, batch_size=4, val_fraction=0.2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        data.setup()
        counts.append([int(batch["lengths"].sum()) for batch in data.train_dataloader()])
    assert sum(a != b for a, b in zip(*counts, strict=True)) > len(counts[0]) / 2


@pytest.mark.parametrize("count", [0, 1, 5, 9, 17])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_validation_is_shared_out_in_as_many_batches_for_each(tmp_path, count, ranks):
    record(tmp_path / "play", [made_up(i, 4) for i in range(count + 3)])
    seen: list[bytes] = []
    batches = set()
    for rank in range(ranks):
        data = TrajectoryDataModule([str(tmp_path / "play")], window=4, batch_size=2, null_actions="mask")
        data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]
        data.setup()
        data.val_episodes = data.train_episodes[:count]
        loader = list(data.val_dataloader())
        batches.add(len(loader))
        for batch in loader:
            assert int(batch["mask"].sum()) <= int(batch["lengths"].sum())
            each = zip(batch["frames"], batch["lengths"], strict=True)
            seen += [frames[:n].numpy().tobytes() for frames, n in each if n]
    assert len(batches) == 1
    assert len(seen) == len(set(seen)) == count


def test_steps_see_the_same_on_any_number_of_processes():
    lengths = np.arange(3, 60)
    whole = plan_epoch(lengths, 8, 12, seed=3, epoch=1)
    for ranks in (2, 3, 4):
        parts = [plan_epoch(lengths, 8, 12 // ranks, 3, 1, rank, ranks) for rank in range(ranks)]
        for n, batch in enumerate(whole):
            together = [w for part in parts for w in part[n]]
            assert sorted(together, key=repr) == sorted(batch, key=repr)


def dealt(folder: Path, rank: int, ranks: int) -> list[tuple[int, int]]:
    data = RolloutDataModule(WORLD, worlds=4 // ranks, episodes=12, minibatches=1, seed=5)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]
    return data.deal(2)


def test_the_same_episodes_in_four_worlds_of_one_process_and_in_two_of_each_of_two(folder):
    """Actions, frames and rewards bit for bit; log-probabilities but for the rounding of another batch size."""
    played = []
    for ranks in (1, 2):
        found: dict[int, Any] = {}
        for rank in range(ranks):
            mine = dealt(folder, rank, ranks)
            assert len(mine) == 12 // ranks
            with Sampler(tiny_agent(), LightWorld, 4 // ranks, seed=5) as sampler:
                found |= {t.id: t for t in sampler.play(mine)}
        played.append(found)
    one, two = played
    assert one.keys() == two.keys()
    assert len({t.actions.tobytes() for t in one.values()}) == 12
    for episode, t in one.items():
        other = two[episode]
        assert np.array_equal(t.actions, other.actions)
        assert np.array_equal(t.frames, other.frames)
        assert np.array_equal(t.rewards, other.rewards)
        assert np.allclose(t.log_probs, other.log_probs, atol=1e-5)


@pytest.fixture(scope="module")
def stored(folder) -> Path:
    """An iteration's episodes as a file."""
    with Sampler(tiny_agent(image_size=0, vector_size=2), lambda: LightWorld(0, vector=2), 4, seed=0) as sampler:
        data = RolloutDataModule(WORLD, worlds=4, episodes=8, env_args={"size": 0, "vector": 2})
        sampler.agent.load_state_dict(load_file(folder / "numbers" / "agent" / "model.safetensors"))
        Stored.write(sorted(sampler.play(data.deal(0)), key=lambda t: t.id), folder / "stored.pt")
    return folder / "stored.pt"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_torchrun_and_lightnings_launcher_both_start_it(runs, launcher):
    out = runs / launcher
    run = argv(runs, "pretrain", out, 2, *STRATEGIES["ddp" if launcher == "torchrun" else "fsdp"], *TWO)
    if launcher == "torchrun":
        torchrun(["-m", "lit_align", *run], runs / "torchrun.log")
    else:
        Process(run, runs / "lightning.log").finish()
    compare(runs / "pretrain-one", out, "pretrain")


def test_what_shards_refuses_what_it_cannot_do(folder, tmp_path, capsys):
    run = argv(folder, "pretrain", tmp_path / "run", 1)
    average = [*STRATEGIES["fsdp"], "--trainer.accelerator=cpu", "--trainer.devices=1", "--model.optimizer.ema=0.9"]
    assert "which shards the weights" in refused([*run, *average], capsys)
    theirs = [*CPU, "--trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy}"]
    assert "expected auto, ddp or lit_align.stages.fsdp.FullySharded" in refused([*run, *theirs], capsys)
    assert not (tmp_path / "run").exists()
