"""A tiny recipe of real runs, and evaluations that were never played, for tests of cards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from lit_align.cli import main
from lit_align.evaluation import results
from lit_align.evaluation.episodes import Episodes
from lit_align.models.folder import read_config
from tests.helpers import made_up, record
from tests.stages.runs import BACKBONE, CPU, WORLD

COUNTS = {"left": 41, "none": 9}


def recipe(root: Path) -> Path:
    """`play`, `pairs`, and the runs `base`, `tuned` (from it), `judge` (from that) and `aligned` (from both)."""
    record(root / "play", [made_up(i, 4 + i % 5, outcome=("left", "none")[i % 2]) for i in range(12)])
    pairs = ["compare", f"--trajectories={root / 'play'}", f"--out={root / 'pairs'}", "--comparisons=8"]
    window = [f"--data.trajectories=[{root / 'play'}]", "--data.batch_size=4", "--data.window=6"]
    once = [*CPU, "--trainer.max_epochs=1"]
    align = [f"--init_from={root / 'tuned' / 'agent'}", f"--model.reward_model={root / 'judge' / 'reward_model'}"]
    align += [f"--data.env={WORLD}", "--data.worlds=2", "--data.episodes=4", "--data.minibatches=2"]
    for argv in (
        [*pairs, "--test_comparisons=6", "--rule.name=left", "--rule.ranking=[[left]]"],
        ["pretrain", "fit", f"--out={root / 'base'}", *window, *BACKBONE, *once],
        ["finetune", "fit", f"--out={root / 'tuned'}", f"--init_from={root / 'base' / 'agent'}", *window, *once],
        ["reward", "fit", f"--out={root / 'judge'}", f"--init_from={root / 'tuned' / 'agent'}"]
        + [f"--data.preferences={root / 'pairs'}", "--data.pairs=4", *once],
        ["align", "fit", f"--out={root / 'aligned'}", *align, *once, "--trainer.limit_val_batches=0"],
    ):
        assert main(argv) == 0
    return root


def evaluate(folder: Path, model: Path, counts: dict[str, int], name: str, world: str = WORLD, **more: object) -> Path:
    """What `lit-align evaluate` would leave of an agent whose episodes end so often so."""
    info = read_config(model)["info"]
    facts = {key: info.get(key) for key in ("train_frames", "train_seconds", "parameters")}
    entry = results.agent_result(counts, seed=0, reasons={"reached": 3}, mean_steps=7.0, **facts, **more)
    results.write(results.build(world, {name: entry}), folder / "results.json")
    total = sum(counts.values())
    outcomes = [outcome for outcome, count in counts.items() for _ in range(count)]
    routes = [np.cumsum(np.full((5, 3), 1.0 + i), axis=0, dtype=np.float32) for i in range(total)]
    Episodes(np.arange(total), np.arange(total), outcomes, [""] * total, routes).save(folder / "episodes.npz")
    return folder


def copy(root: Path, target: Path) -> Path:
    shutil.copytree(root, target)
    return target
