"""Contract 3: killed at random and started again, a run ends bit-equal to one never killed.

`make test` kills each stage twice, at places that are named here. `make test-faults` kills each twenty times, at places
and times that a seed decides; it is printed, and `LIT_ALIGN_FAULT_SEED` gives it again.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Forked
from kill_here import ANYWHERE, PLACES

from tests.stages import runs

EPOCHS = 3
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
STAGES: dict[str, Callable[[Path, Path, int], list[str]]] = {
    "pretrain": runs.pretrain,
    "finetune": runs.finetune,
    "reward": runs.reward,
    "prefer": runs.prefer,
    "align": runs.align,
}
LEFT = {"reward": "reward_model"}
KILLS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = runs.inputs(tmp_path_factory.mktemp("kills"))
    runs.comparisons(folder)
    return folder


def command(stage: str, folder: Path, out: Path, processes: int) -> list[str]:
    argv = STAGES[stage](folder, out, EPOCHS)
    if stage == "align":
        argv = [*argv, "--trainer.limit_val_batches=1.0", "--data.validation_episodes=4"]
    else:
        argv = [*argv, "--checkpoint_every=2"]
    if processes > 1:
        argv = [*(word for word in argv if not word.startswith("--trainer.devices")), *TWO]
    return argv


def whole(stage: str, folder: Path, processes: int) -> tuple[Path, float]:
    """The run that nobody kills, made once, and the seconds from its beginning to its end."""
    out = folder / f"{stage}-{processes}"
    if not out.exists():
        run = Forked(command(stage, folder, out, processes), folder / f"{out.name}.log", processes)
        run.wait_for((out / "run.json").is_file)
        began = time.monotonic()
        run.finish()
        (folder / f"{out.name}.seconds").write_text(str(time.monotonic() - began))
    return out, float((folder / f"{out.name}.seconds").read_text())


def assert_same(stage: str, one: Path, other: Path, kills: int = 0) -> None:
    """The same weights, counters and metrics; a kill between a checkpoint and its step's two rows may cost those."""
    runs.assert_same_weights(one / LEFT.get(stage, "agent"), other / LEFT.get(stage, "agent"))
    logged, expected = runs.rows(other, "step"), iter(runs.rows(one, "step"))
    assert all(row in expected for row in logged), "a row that the undisturbed run has not, or not there"
    assert len(runs.rows(one, "step")) - len(logged) <= 2 * kills
    facts = [json.loads((out / LEFT.get(stage, "agent") / "config.json").read_text())["info"] for out in (one, other)]
    assert facts[0]["train_frames"] == facts[1]["train_frames"] > 0
    assert json.loads((other / "run.json").read_text())["state"] == "finished"


def killed(argv: list[str], out: Path, processes: int, place: str, nth: int, rank: int, after: float = 0.0) -> bool:
    """Starts or resumes a run and kills it; False if it ended before."""
    more = ["--resume=auto"]
    if place != "time":
        more += ["--trainer.callbacks+=kill_here.KillHere", f"--trainer.callbacks.place={place}"]
        more += [f"--trainer.callbacks.nth={nth}", f"--trainer.callbacks.rank={rank}"]
    # Unlinked first, so that it is seen when the run begins (and writes that it runs).
    state = out / "run.json"
    stamp = state.stat().st_mtime_ns if state.is_file() else 0
    run = Forked([*argv, *more], out.with_suffix(".log"), processes)
    if place == "time":
        run.wait_for(lambda: state.is_file() and state.stat().st_mtime_ns != stamp)
        time.sleep(after)
        run.kill()
    codes = run.end()
    if codes == [0] * processes:
        return False
    assert -9 in codes, f"{place} {nth}: {codes}\n{run.said()}"
    return True


TWICE = {
    "pretrain": [("save_half", 2), ("validation", 1)],
    "finetune": [("validation", 1), ("epoch_end", 2)],
    "reward": [("save_between", 1), ("validation", 2)],
    "prefer": [("epoch_end", 1), ("save_half", 3)],
    "align": [("rollout", 13), ("save_half", 1)],
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stage", list(STAGES))
def test_killed_twice_at_named_places_it_ends_the_same(folder: Path, stage: str, processes: int) -> None:
    undisturbed, _ = whole(stage, folder, processes)
    out = folder / f"{stage}-{processes}-twice"
    argv = command(stage, folder, out, processes)
    for place, nth in TWICE[stage]:
        rank = processes - 1 if place == "rollout" else 0
        assert killed(argv, out, processes, place, nth, rank), f"{place} was not reached"
        assert not (out / LEFT.get(stage, "agent")).exists()
    Forked([*argv, "--resume=auto"], out.with_suffix(".log"), processes).finish()
    assert_same(stage, undisturbed, out)


SHARDED = ["--config=configs/trainer/fsdp.yaml", "--trainer.accelerator=cpu", "--trainer.devices=2"]


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def steps_of(out: Path, name: str) -> int:
    path = out / "checkpoints" / name
    return int(torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=True)["global_step"])


def said_of_damage(out: Path) -> list[str]:
    lines = out.with_suffix(".log").read_text().splitlines()
    return [line for line in lines if line.startswith("warning: ") and "is damaged" in line]


def test_a_sharded_run_killed_inside_its_saves_ends_the_same(folder: Path) -> None:
    """And of a checkpoint one of whose shards has a flipped bit it goes on from the one before."""
    undisturbed, out = folder / "sharded", folder / "sharded-hurt"
    argv = [*(word for word in runs.pretrain(folder, out, EPOCHS) if "--trainer.devices" not in word), *SHARDED]
    argv += ["--checkpoint_every=2"]
    Forked([*argv, f"--out={undisturbed}"], folder / "sharded.log", 2).finish()
    aside = out / "checkpoints" / ".last.ckpt.shards.tmp"
    for place, nth, rank in (("save_shards", 3, 1), ("save_half", 2, 0), ("save_between", 1, 0)):
        assert killed(argv, out, 2, place, nth, rank), f"{place} was not reached"
        assert aside.is_dir(), place
        if place == "save_shards":
            assert (steps_of(out, "previous.ckpt"), steps_of(out, "last.ckpt")) == (2, 4)
            flip(out / "checkpoints" / "last.ckpt" / "__1_0.distcp")
    Forked([*argv, "--resume=auto"], out.with_suffix(".log"), 2).finish()
    assert_same("pretrain", undisturbed, out, 3)
    assert not aside.exists()
    said = said_of_damage(out)
    assert len(said) == 2
    assert "its part __1_0.distcp does not match its checksum. Going on from the one before it" in said[0]
    assert "it is not there" in said[1]  # killed between the two names


def test_all_processes_go_on_from_what_the_first_one_chose(folder: Path) -> None:
    """It alone reads whether a checkpoint is whole; where another one then reads an older file, that is said."""
    undisturbed, _ = whole("pretrain", folder, 2)
    out = folder / "chosen"
    argv = command("pretrain", folder, out, 2)
    assert killed(argv, out, 2, "save_done", 3, 0)
    assert (steps_of(out, "previous.ckpt"), steps_of(out, "last.ckpt")) == (4, 6)
    stale = Forked([*argv, "--resume=last", "--trainer.callbacks+=kill_here.Stale"], folder / "stale.log", 2)
    assert stale.end() == [2, 2], stale.said()
    assert "processes read different checkpoints" in stale.said()
    assert "process 0: 6, process 1: 4" in stale.said()
    last = out / "checkpoints" / "last.ckpt"
    weights = torch.load(last, weights_only=True)["state_dict"].values()
    weight = next(each for each in weights if each.numel() > 100 and each.is_contiguous())
    content = bytearray(last.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 5] ^= 1  # which `torch.load` does not notice
    last.write_bytes(content)
    Forked([*argv, "--resume=last"], out.with_suffix(".log"), 2).finish()
    assert len(said_of_damage(out)) == 1
    assert_same("pretrain", undisturbed, out, 1)


@pytest.mark.faults
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stage", list(STAGES))
def test_killed_twenty_times_at_random_it_ends_the_same(folder: Path, stage: str, processes: int) -> None:
    seed = int(os.environ.get("LIT_ALIGN_FAULT_SEED") or time.time_ns() % 10**6)
    print(f"LIT_ALIGN_FAULT_SEED={seed}")  # noqa: T201
    rng = random.Random(f"{seed} {stage} {processes}")
    undisturbed, seconds = whole(stage, folder, processes)
    places = [*PLACES.get(stage, ANYWHERE), *["time"] * 4]
    kills, chain, seen = 0, 0, set()
    while kills < KILLS:
        out, dead = folder / f"{stage}-{processes}-{seed}-{chain}", True
        argv = command(stage, folder, out, processes)
        story = []
        while dead and kills < KILLS:
            left = [place for place in places if place not in seen] or places
            place, nth, rank = rng.choice(left), rng.randint(1, 4), rng.randrange(processes)
            if place.startswith("save"):
                rank = 0
            after = rng.uniform(0, seconds)
            story.append((place, nth, rank, round(after, 2)))
            dead = killed(argv, out, processes, place, nth, rank, after)
            kills += dead
            if dead:
                seen.add(place)
        if dead:
            Forked([*argv, "--resume=auto"], out.with_suffix(".log"), processes).finish()
        print(f"{stage}, {processes} processes: {story}")  # noqa: T201
        assert_same(stage, undisturbed, out, len(story))
        chain += 1
    assert seen >= set(PLACES.get(stage, ANYWHERE)), seen
