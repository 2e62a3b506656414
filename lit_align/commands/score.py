"""`lit-align score`: a reward model ranks trajectories."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from lit_align.data.trajectories import TrajectoryDataset
from lit_align.data.trajectory import ENDED, Trajectory
from lit_align.errors import UserError
from lit_align.files import write_whole
from lit_align.hub import called


def run(reward_model: str, trajectories: str, out: str, batch_size: int = 16, threads: int | None = None) -> None:
    """Writes the normalised reward of every episode to `out/scores.json`, for `data.select.scores`.

    Args:
        reward_model: Folder of the reward model.
        trajectories: Folder of the trajectories.
        out: Folder to write `scores.json` to.
        batch_size: Episodes scored together.
        threads: Torch threads; None leaves torch's own number.
    """
    import torch

    from lit_align.models.reward import RewardModel
    from lit_align.rollout.buffer import in_batches, pad, pad_vectors

    if threads:
        torch.set_num_threads(threads)
    model = RewardModel.load(reward_model).eval()
    dataset = TrajectoryDataset(trajectories)
    sees, holds = ((one.image_size, one.vector_size) for one in (model.config, dataset.meta))
    if sees != holds:
        raise UserError(
            f"the reward model '{reward_model}' sees frames of {sees[0]} pixels and vectors of {sees[1]} numbers; "
            f"'{trajectories}' holds {holds[0]} and {holds[1]}: expected the same; record such trajectories, or train "
            "a reward model on ones like these"
        )
    scores: dict[str, float] = {}

    def run_on(group: list[Trajectory]) -> list[float]:
        rewards = model(*pad(group, last=True), pad_vectors(group, last=True))
        return model.normalise(rewards).mean(1).tolist()

    with torch.inference_mode():
        for at in range(0, len(dataset), 64):
            part = [dataset[i] for i in range(at, min(at + 64, len(dataset)))]
            values = in_batches(part, batch_size, run_on)
            scores |= {str(t.id): value for t, value in zip(part, values, strict=True)}
    if bad := [number for number, score in scores.items() if not math.isfinite(score)]:
        raise UserError(
            f"the reward model '{reward_model}' gives {len(bad)} of {len(scores)} episodes a score that is not finite "
            f"(first: {scores[bad[0]]} for episode {bad[0]}), and nothing is written; its training diverged: train it "
            "again"
        )
    target = Path(out)
    content = {
        "schema": 1,
        "trajectories": Path(trajectories).name,
        "reward_model": called(reward_model),
        "episodes": dataset.digests(),
        "scores": scores,
    }
    write_whole(target / "scores.json", json.dumps(content, indent=1) + "\n")
    best = np.argsort([-scores[str(int(e))] for e in dataset.episodes["id"]], kind="stable")[
        : max(1, len(dataset) // 5)
    ]
    names, counts = np.unique(dataset.episodes["outcome"][best].astype(str), return_counts=True)
    line = f"{len(dataset)} episodes scored; the best fifth: " + ", ".join(
        f"{name or ENDED} {count}" for name, count in zip(names, counts, strict=True)
    )
    print(line)  # noqa: T201  what the command found
    (target / "headline.txt").write_text(line + "\n")
