"""Every stage on every strategy, whatever of the network is frozen; runs that go on on another strategy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_align.cli import main
from tests.stages.pair import STRATEGIES, TWO, pairs_of
from tests.stages.runs import Process, assert_same_weights, rows
from tests.stages.test_processes import MEASURES, ONE, OPTIONS, argv, compare, folder  # noqa: F401

pytestmark = [pytest.mark.faults, pytest.mark.slow]
PARTS = {
    "pretrain": ["--model.train.gradient_checkpointing=true", "--trainer.gradient_clip_val=0.5"],
    "finetune": ["--model.train.parameters=lora", "--trainer.accumulate_grad_batches=2"],
    "reward": ["--model.train.parameters=heads", "--model.heads=3"],
    "prefer": ["--model.train.parameters=last_layers", "--model.optimizer.name=muon"],
    "align": ["--model.train.parameters=heads", "--model.leave=best", "--model.estimator=rloo"],
}
"""What of a network may stay frozen, and what else could be at odds with weights that are shared out."""


STAGES = tuple(MEASURES)
CASES = [(stage, kind, how) for stage in STAGES for kind in STRATEGIES for how in ("whole", "parts")]


def options(stage: str, how: str) -> list[str]:
    return PARTS[stage] if how == "parts" else OPTIONS.get(stage, [])


@pytest.fixture(scope="module")
def matrix(folder) -> Path:  # noqa: F811
    two = [
        argv(folder, stage, folder / f"{stage}-{kind}-{how}", 2, *STRATEGIES[kind], *TWO, *options(stage, how))
        for stage, kind, how in CASES
    ]
    pairs_of(two, folder)
    for stage in STAGES:
        for how in ("whole", "parts"):
            assert main(argv(folder, stage, folder / f"{stage}-one-{how}", 1, *ONE, *options(stage, how))) == 0
    return folder


@pytest.mark.parametrize(("stage", "kind", "how"), CASES)
def test_two_processes_do_what_one_does(matrix, tmp_path, stage, kind, how):
    run = matrix / f"{stage}-{kind}-{how}"
    # Muon makes matrices orthogonal in bfloat16, which makes more of a difference in rounding.
    compare(matrix / f"{stage}-one-{how}", run, stage, 1e-4 if "muon" in " ".join(options(stage, how)) else 1e-6)
    assert (run / "checkpoints" / "last.ckpt").is_dir() == (kind == "fsdp")
    left = "reward_model" if stage == "reward" else "agent"
    assert main(["export", str(run), f"--out={tmp_path / 'made'}"]) == 0
    if stage != "reward":
        assert_same_weights(tmp_path / "made", run / left)
    assert (tmp_path / "made" / "config.json").read_text() == (run / left / "config.json").read_text()


WAYS = [(a, b) for a in ("one", "ddp", "file") for b in ("one", "ddp", "file", "fsdp") if a != b]
WAYS += [("fsdp", "file"), ("fsdp", "alone")]
"""From shards only a strategy that shards can go on: with as many processes, or with one, `alone`."""
ALONE = [*STRATEGIES["fsdp"], "--trainer.accelerator=cpu", "--trainer.devices=1"]


@pytest.fixture(scope="module")
def begun(folder) -> Path:  # noqa: F811
    """Half a run on each strategy, gone on with on another."""

    def run(kind: str, out: str, *more: str) -> list[str]:
        if kind in STRATEGIES:
            return argv(folder, "finetune", folder / out, 2, *STRATEGIES[kind], *TWO, *more)
        return argv(folder, "finetune", folder / out, 1, *(ONE if kind == "one" else ALONE), *more)

    halves = [run(kind, f"half-{kind}", "--trainer.max_epochs=1") for kind in STRATEGIES]
    assert main(run("one", "half-one", "--trainer.max_epochs=1")) == 0
    assert main(run("one", "whole-one")) == 0
    last = {kind: folder / f"half-{kind}" / "checkpoints" / "last.ckpt" for kind, _ in WAYS}
    on = {(a, b): run(b, f"{a}-then-{b}", f"--resume={last[a]}") for a, b in WAYS}
    pairs_of([*halves, *(each for (_, kind), each in on.items() if kind in STRATEGIES)], folder)
    for (_, kind), each in on.items():
        if kind == "one":
            assert main(each) == 0
        elif kind == "alone":
            Process(each, folder / "alone.log").finish()
    return folder


@pytest.mark.parametrize(("before", "after"), WAYS)
def test_a_run_goes_on_on_another_strategy(begun, before, after):
    runs = (begun / f"{before}-then-{after}", begun / "whole-one")
    found, told = ([float(row["train/loss"]) for row in rows(run, "train/loss")] for run in runs)
    assert len(found) == len(told) // 2 > 2
    assert found == pytest.approx(told[len(found) :], rel=1e-6)
    weights = [load_file(run / "agent" / "model.safetensors") for run in runs]
    for name, weight in weights[0].items():
        assert float((weight - weights[1][name]).abs().mean()) < 1e-6, name
    if after in ("one", "ddp", "file"):  # one format of files, whichever strategy wrote it
        a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
        assert a["state_dict"].keys() == b["state_dict"].keys()
        a, b = a["optimizer_states"][0], b["optimizer_states"][0]
        assert [group["params"] for group in a["param_groups"]] == [group["params"] for group in b["param_groups"]]
        for number, state in b["state"].items():
            for name, value in state.items():
                assert torch.allclose(a["state"][number][name], value, rtol=1e-3, atol=1e-6), (number, name)


@pytest.mark.parametrize("stage", ["pretrain", "align"])
def test_a_sharded_run_that_crashed_goes_on_exactly(matrix, stage):
    """Inside an epoch, from the last checkpoint before."""
    every = ["--checkpoint_every=2"] if stage == "pretrain" else []
    run = argv(matrix, stage, matrix / f"{stage}-hurt", 2, *STRATEGIES["fsdp"], *TWO, *options(stage, "whole"), *every)
    step = 5 if stage == "pretrain" else 1
    crash = ["--trainer.callbacks+=tests.stages.test_resume.Stop", f"--trainer.callbacks.step={step}"]
    with pytest.raises(AssertionError, match="pulled the plug"):
        pairs_of([[*run, *crash]], matrix)
    assert not (matrix / f"{stage}-hurt" / "agent").exists()
    pairs_of([[*run, "--resume=last"]], matrix)
    assert_same_weights(matrix / f"{stage}-hurt" / "agent", matrix / f"{stage}-fsdp-whole" / "agent")
    column = MEASURES[stage][0]
    assert rows(matrix / f"{stage}-hurt", column) == rows(matrix / f"{stage}-fsdp-whole", column)
