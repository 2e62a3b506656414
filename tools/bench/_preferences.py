"""The stage `reward` around a reward net of another library, with a stopwatch on its batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lit_align.commands.stage import run_stage
from lit_align.data.loader import ResumableLoader
from lit_align.data.pairs import PreferenceDataModule
from lit_align.models.reward import Readout, RewardModel
from lit_align.stages.base import channels_last
from lit_align.stages.reward import Reward
from tools.bench._quiet import silence


class Borrowed(nn.Module):
    """A reward net that scores single observations, called as a `RewardModel` with the readout `sum` is.

    Args:
        weights: A file of torch's own modules by name, which the library that made them left.
    """

    readout: Readout = "sum"
    heads = 1
    read = RewardModel.read

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.body = nn.Sequential(torch.load(weights, weights_only=False))

    def forward(self, frames: Tensor, lengths: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Rewards `(B, 1)` of trajectories of pixels in [0, 1], or else of vectors; arguments as `RewardModel`'s."""
        if frames.shape[-2]:
            seen = frames.flatten(0, 1).permute(0, 3, 1, 2).float().div_(255)
        else:
            assert vectors is not None
            seen = vectors.flatten(0, 1)
        return self.read(self.body(seen).view(*frames.shape[:2], 1), lengths)  # type: ignore[arg-type]


class Watch:
    """Batches of comparisons without an end, with a stopwatch: from the asking for one to the asking for a later one.

    Args:
        loader: Each pass over it is an epoch.
        warm_up: Batches before the watch starts.
        steps: Batches that are timed.
    """

    last: ClassVar[dict[str, float]] = {}
    """`wall` and `cpu` seconds and `pairs` of the last pass of any watch."""

    def __init__(self, loader: ResumableLoader, warm_up: int, steps: int) -> None:
        self.loader, self.warm_up, self.steps = loader, warm_up, steps

    def __len__(self) -> int:
        """One batch more than is timed: it is asked for when the last timed step is over."""
        return self.warm_up + self.steps + 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches, pairs = chain.from_iterable(repeat(self.loader)), 0
        for i in range(len(self)):
            if i == self.warm_up:
                wall, cpu = time.perf_counter(), time.process_time()
            if i == self.warm_up + self.steps:
                spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
                Watch.last = {**spent, "pairs": float(pairs)}
            batch = next(batches)
            pairs += len(batch["chosen"]) * (self.warm_up <= i < self.warm_up + self.steps)
            yield batch


class RacedReward(Reward):
    """Trains a borrowed net in the place of a reward model, and leaves nothing."""

    weights: ClassVar[Path]

    def check_data(self, data: Any) -> None:
        """Any data will do: the agent that `init_from` names is not looked at."""

    def configure_model(self) -> None:
        """Takes the borrowed net, laid out as the stage lays out its own."""
        if self.reward_model is None:
            self.reward_model = channels_last(Borrowed(self.weights))  # type: ignore[assignment]

    def fit_normalisation(self) -> None:
        """Nothing is left that would need it."""

    def export(self, folder: str | Path) -> None:
        """Leaves nothing."""


class RacedPreferences(PreferenceDataModule):
    """Comparisons with a stopwatch.

    Args:
        warm_up: Batches before it starts.
        steps: Batches that are timed.
        **rest: Of `PreferenceDataModule`.
    """

    def __init__(self, warm_up: int = 3, steps: int = 10, **rest: Any) -> None:
        super().__init__(**rest)
        self.warm_up, self.steps = warm_up, steps

    def train_dataloader(self) -> Watch:  # type: ignore[override]
        """The batches of `PreferenceDataModule`, timed."""
        return Watch(super().train_dataloader(), self.warm_up, self.steps)

    def first(self, count: int) -> dict[str, Any]:
        """A batch of the first comparisons."""
        self.setup()
        return self._make(self.train_pairs, np.arange(count))


def through_the_stage(
    weights: Path, agent: Path, data: dict[str, Any], lr: float, seed: int, accumulate: int = 1
) -> dict[str, float]:
    """Times steps of `lit-align reward fit`: its loss, its batches, the Trainer, its callbacks and its logger.

    Args:
        weights: Of the borrowed net.
        agent: Folder of an agent, for the stage wants to start from one.
        data: Arguments of `RacedPreferences`.
        lr: Of AdamW, with torch's other settings.
        seed: Of the run.
        accumulate: Batches of an optimizer step; the watch counts batches.

    Returns:
        `wall` and `cpu` seconds, and the `pairs` that they saw.
    """
    optimizer = {"lr": lr, "beta2": 0.999, "warmup_steps": 0, "schedule": "constant"}
    trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_val_batches": 0}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accumulate_grad_batches": accumulate}
    config = {"model": {"readout": "sum", "optimizer": optimizer}, "trainer": {**trainer, **quiet}, "data": data}
    RacedReward.weights, Watch.last = weights, {}
    with tempfile.TemporaryDirectory() as folder, silence():
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        classes = ("tools.bench._preferences:RacedReward", "tools.bench._preferences:RacedPreferences")
        argv = ["fit", f"--config={path}", f"--init_from={agent}", f"--out={folder}/run", f"--seed={seed}"]
        run_stage("reward", argv, classes)
    assert Watch.last, "the run ended before its last timed step"
    return Watch.last
