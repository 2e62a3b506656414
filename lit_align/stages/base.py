"""What every stage shares: where it starts from, its optimiser, how its throughput is counted, what it leaves."""

from __future__ import annotations

import time
from abc import abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.reward import RewardModel
from lit_align.stages.optim import MovingAverage, OptimizerConfig
from lit_align.stages.training import TrainConfig, as_plain

Network = TypeVar("Network", bound=Agent | RewardModel)
AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


class Stage(pl.LightningModule):
    """A stage of the recipe.

    Args:
        init_from: Folder of the agent that the stage starts from.
        random_init: Take the architecture of `init_from` only, and draw the weights anew.
        optimizer: Optimiser and schedule.
        train: What of the network trains, and how it runs.
    """

    name = "stage"
    folder = "agent"
    headline_metrics: tuple[str, ...] = ("val/loss", "val/accuracy", "train/loss")

    def __init__(
        self,
        init_from: str | None,
        random_init: bool,
        optimizer: OptimizerConfig | None,
        train: TrainConfig | None = None,
    ) -> None:
        super().__init__()
        self.init_from, self.random_init = init_from, random_init
        self.optimizer = optimizer or OptimizerConfig()
        self.train_config = train or TrainConfig()
        self.train_config.check()
        self.optimizer.check()
        self.frames_trained = 0
        self.seconds_trained = 0.0
        self._parent: dict[str, Any] | None = None
        self._tick = time.perf_counter()
        self._rate: tuple[int, float] = (0, 0.0)

    @property
    @abstractmethod
    def model(self) -> Agent | RewardModel:
        """The network that trains and that the stage leaves."""

    def configure_optimizers(self) -> Any:
        """The optimiser over the parameters that train, and its schedule."""
        trainer = self.trainer
        scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        clips = bool(trainer.gradient_clip_val)
        return self.optimizer.build(self.model, trainer.estimated_stepping_batches, scaler, clips)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The moving average of the weights, where one is asked for; called before anything is read."""
        if self.optimizer.ema is None:
            return []
        if self.name == "align":
            raise UserError(
                f"optimizer.ema is {self.optimizer.ema}; expected null, since align reports (and max_kl bounds) the "
                "policy that plays, and an average of its weights is another policy, which never played: leave it out"
            )
        return [MovingAverage(self.optimizer.ema)]

    def ready(self, network: Network) -> Network:
        """The network laid out and frozen as the stage trains it."""
        self.train_config.apply(network)
        return channels_last(network)

    def leave(self, folder: str | Path, facts: dict[str, Any]) -> None:
        """Writes the network into a run's folder, adapters merged, with its lineage and more facts."""
        plain = as_plain(self.model)
        plain.info = {**self.lineage(self._parent), **facts}
        plain.save(Path(folder) / self.folder)

    def data(self) -> Any:
        """The data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def check_data(self, data: Any) -> None:
        """Raises ValueError if what the stage starts from does not fit the data module; called before data is read."""

    @property
    def log_every(self) -> int:
        """Optimizer steps between two lines of metrics."""
        return int(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        """Starts the clock."""
        self._tick = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Counts frames: before the batch, since checkpoints are written before `on_train_batch_end`."""
        self.frames_trained += int(batch["lengths"].sum()) * self.trainer.world_size

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts seconds; logs frames/s now and then."""
        now = time.perf_counter()
        frames = int(batch["lengths"].sum()) * self.trainer.world_size
        self.seconds_trained += now - self._tick
        self._rate = (self._rate[0] + frames, self._rate[1] + now - self._tick)
        self._tick = now
        if self.trainer.global_step % self.log_every == 0 and self._rate[1] > 0:
            self.log_dict(
                {"train/frames_per_s": self._rate[0] / self._rate[1], "frames": float(self.frames_trained)},
                rank_zero_only=True,
            )
            self._rate = (0, 0.0)

    def on_validation_end(self) -> None:
        """Validation does not count as training time."""
        self._tick = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the counters."""
        checkpoint["lit_align"] = {"stage": self.name, "frames": self.frames_trained, "seconds": self.seconds_trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on counting; a checkpoint of another stage is refused."""
        kept = checkpoint.get("lit_align", {})
        if kept.get("stage") != self.name:
            raise UserError(
                f"the checkpoint is of stage {kept.get('stage')!r}; expected {self.name!r}: "
                "--resume takes a checkpoint of the same stage"
            )
        self.frames_trained, self.seconds_trained = kept["frames"], kept["seconds"]

    def lineage(self, parent: dict[str, Any] | None) -> dict[str, Any]:
        """The facts that travel with what the stage leaves."""
        before = {} if parent is None or self.random_init else parent
        return {
            "stage": self.name,
            "parent": None
            if self.init_from is None
            else {
                "folder": Path(self.init_from).parent.name,
                "stage": (parent or {}).get("stage"),
                "random_init": self.random_init,
            },
            "train_frames": int(before.get("train_frames") or 0) + self.frames_trained,
            "train_seconds": round(float(before.get("train_seconds") or 0.0) + self.seconds_trained, 1),
            "parameters": sum(p.numel() for n, p in self.model.named_parameters() if "lora_" not in n),
        }

    @abstractmethod
    def export(self, folder: str | Path) -> None:
        """Writes what the stage leaves into `folder` (a run's folder): `agent/` or `reward_model/`."""

    def dry_run_summary(self) -> dict[str, Any]:
        """What `--dry_run` shows, after `configure_model`."""
        parameters = sum(p.numel() for p in self.model.parameters())
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        # Weights, gradients and two moments, float32; activations depend on the batch and are not counted here.
        return {
            "parameters": parameters,
            "trainable parameters": trained,
            "weights, gradients and optimizer (MB)": round((4 * parameters + 12 * trained) / 1e6, 1),
        }


def channels_last(network: AnyNetwork) -> AnyNetwork:
    """Lays the weights of convolutions out as frames lie in memory; the values stay."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def check_observations(what: str, config: BackboneConfig, data: Any) -> None:
    """Raises ValueError unless the data holds frames and vectors of the sizes that a network sees."""
    if config.vector_size != data.vector_size:
        raise UserError(
            f"the {what} sees vectors of {config.vector_size} numbers, the data holds {data.vector_size}; "
            f"set --model.backbone.vector_size {data.vector_size} for a new agent, or use other data"
        )
    if config.image_size != data.image_size:
        raise UserError(
            f"the {what} sees {config.image_size} pixels, the data holds {data.image_size}; "
            f"set --data.image_size {config.image_size} to resize it"
        )


def step_mask(lengths: Tensor, steps: int) -> Tensor:
    """Which steps of right-padded sequences count `(B, T)`, bool."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def need_folder(init_from: str | None, stage: str) -> str:
    """The folder to start from; raises ValueError when none was given."""
    if init_from is None:
        raise UserError(f"{stage} starts from an agent: give --init_from FOLDER, the agent/ of an earlier stage")
    return init_from
