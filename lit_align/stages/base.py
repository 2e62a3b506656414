"""What every stage shares: where it starts from, its optimiser, how its throughput is counted, what it leaves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn  # type: ignore[attr-defined]
from torch import Tensor, nn
from torchmetrics import Metric

from lit_align.errors import UserError, raise_all
from lit_align.hub import called, source_of
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.folder import fingerprint
from lit_align.models.reward import RewardModel
from lit_align.stages.fake import Imitation
from lit_align.stages.finite import MEND, check_left, first_spoilt, is_finite
from lit_align.stages.flops import ModelFlops, count_flops, peak_flops
from lit_align.stages.fsdp import check_strategy
from lit_align.stages.memory import give_back_sooner
from lit_align.stages.optim import MovingAverage, OptimizerConfig, check_averages
from lit_align.stages.sharding import fill, hollow, shard, whole_state
from lit_align.stages.throughput import Throughput, forget_peak, peak_memory
from lit_align.stages.training import TrainConfig, as_plain

Network = TypeVar("Network", bound=Agent | RewardModel)
AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)
TINIEST_SCALE = 1e-6
"""Of a loss in 16 bits: it starts at 65536, and is halved where gradients are no numbers."""


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
        self.seconds_trained = 0.0
        self._parent: dict[str, Any] | None = None
        self._read_from: dict[str, Any] = {}
        self._frames_before, self._speed = 0, Throughput()
        self._counted = False
        self._line_at = 0
        # Of a sharded run: what trains, as a copy that can be filled with whole weights; and an imitation of the stage.
        # In lists, which keep them out of the module's own parts.
        self._twin: list[nn.Module] = []
        self._imitation: list[Imitation] = []

    @property
    @abstractmethod
    def model(self) -> Agent | RewardModel:
        """The network that trains and that the stage leaves."""

    @property
    def trained(self) -> nn.Module:
        """What the optimizer trains: the network, and what a stage needs beside it."""
        return self.model

    def configure_optimizers(self) -> Any:
        """The optimiser over the parameters that train, and its schedule."""
        trainer = self.trainer
        scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        clips = bool(trainer.gradient_clip_val)
        return self.optimizer.build(self.trained, trainer.estimated_stepping_batches, scaler, clips)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The moving average of the weights, where one is asked for; called before anything is read."""
        check_strategy(self.trainer.strategy)
        if self.optimizer.ema is None:
            return []
        if self.name == "align":
            raise UserError(
                f"optimizer.ema is {self.optimizer.ema}; expected null, since align reports (and max_kl bounds) the "
                "policy that plays, and an average of its weights is another policy, which never played: leave it out"
            )
        check_averages(self.trainer)
        return [MovingAverage(self.optimizer.ema)]

    def ready(self, network: Network) -> Network:
        """The network laid out and frozen as the stage trains it."""
        self.train_config.apply(network)
        return channels_last(network)

    def shard(self) -> None:
        """Shares what trains out over the processes where the strategy does so; ends every `configure_model`."""
        if self.device_mesh is None or self._twin:
            return
        if self.trainer.state.fn == TrainerFn.FITTING:
            with suppress(Exception):  # then the speed in FLOPs is left out
                self._imitation.append(Imitation(self.trainer, self))
        trained = self.trained
        self._twin.append(hollow(trained))
        parts = trained if isinstance(trained, nn.ModuleList) else [trained]
        shard(self, parts, self.device_mesh["data_parallel"])

    @property
    def is_sharded(self) -> bool:
        """Whether each process has a part of the weights only."""
        return bool(self._twin)

    def unsharded(self) -> nn.Module:
        """`trained`, whole: itself, or where it is sharded a copy on this device with the weights of now.

        Called by every process.
        """
        if not self._twin:
            return self.trained
        fill(self._twin[0], whole_state(self.trained), self.device)
        return self._twin[0]

    def through(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that uses the network outside of a step; by every process, if the network is sharded."""
        return function(*args)

    @property
    def left(self) -> Any:
        """The network that the stage leaves: the one that trained or, after a sharded run, its copy on process 0."""
        whole = self._twin[0] if self._twin else self.model
        return whole[0] if isinstance(whole, nn.ModuleList) else whole

    def evenly(self, mean: Tensor, count: int | Tensor) -> Tensor:
        """A mean over some things of this process, so weighed that processes' average is the mean over all things.

        DDP and FSDP average gradients over processes, which may hold unequal numbers of steps or pairs. Called by every
        process; with one the mean is as it was.

        Args:
            mean: `()`.
            count: Of the things.
        """
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if ranks == 1:
            return mean
        here = torch.as_tensor(count, dtype=torch.float32, device=mean.device)
        every = here.clone()
        torch.distributed.all_reduce(every)  # Lightning's own reduce waits for a barrier before
        return mean * (here * ranks / every.clamp_min(1))

    def leave(self, folder: str | Path, facts: dict[str, Any]) -> None:
        """Writes the network into a run's folder, adapters merged, with its lineage and more facts.

        Raises:
            ValueError: Training diverged; nothing is written then.
        """
        plain = as_plain(self.left)
        check_left(plain, f"'{Path(folder) / self.folder}'", self.name, self.optimizer.lr)
        plain.info = {**self.lineage(self._parent), **facts}
        plain.save(Path(folder) / self.folder)

    def data(self) -> Any:
        """The data module."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def check_data(self, data: Any) -> None:
        """Raises ValueError if what the stage starts from does not fit the data module; called before data is read."""

    @property
    def frames_trained(self) -> int:
        """Frames trained on so far in this stage, those before a resume included, all processes together."""
        return self._frames_before + self._speed.frames

    @property
    def log_every(self) -> int:
        """Optimizer steps between two lines of metrics."""
        return int(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]

    def log_means(self, means: dict[str, Metric]) -> None:
        """Logs means over the optimizer steps since the last line, those that there are, and begins them anew."""
        values = {name: metric.compute() for name, metric in means.items()}
        # Of ties alone there is no accuracy, and in imitation nothing.
        told = {name: value for name, value in values.items() if value is not None and value.isfinite()}
        self.log_dict(told, prog_bar=True)
        for metric in means.values():
            metric.reset()

    def on_train_start(self) -> None:
        """Finds out what the device can do, and starts the clock."""
        if self.init_from is not None and self.trainer.is_global_zero:
            self._read_from = fingerprint_of(self.init_from)  # now: its folder may be another's when the run ends
        trainer, device = self.trainer, self.trainer.strategy.root_device
        self._frames_before, self._speed = self.frames_trained, Throughput()
        self._speed.processes, self._speed.peak = trainer.world_size, peak_flops(device, str(trainer.precision))
        self._speed.total = self._over_all_processes
        self._counted, self._line_at = False, trainer.global_step
        if self.train_config.gradient_checkpointing:
            give_back_sooner(device)
        forget_peak(device)
        self._speed.start()

    def _over_all_processes(self, frames: int) -> int:
        if self.trainer.world_size == 1:
            return frames
        count = torch.tensor(frames, device=self.device)
        torch.distributed.all_reduce(count)
        return int(count)

    def on_fit_end(self) -> None:
        """Makes sharded weights whole on process 0; what runs next in this process asks for speed again."""
        self._speed.settle()
        if self._twin:
            keep, cpu = self.trainer.is_global_zero, torch.device("cpu")
            state = whole_state(self.trained, keep, cpu)
            if keep:
                fill(self._twin[0], state, cpu)
        if self.train_config.gradient_checkpointing:
            give_back_sooner(self.device, False)

    def on_train_epoch_start(self) -> None:
        """From here the loop waits for the loader; what callbacks did before, such as play, is no wait for it."""
        self._speed.wait()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Counts frames: before the batch, since checkpoints are written before `on_train_batch_end`."""
        self._speed.begin(batch["lengths"])
        if not self._counted:
            self._counted = True
            with self._speed.aside():
                self._speed.flops = self._model_flops(batch)

    def _model_flops(self, batch: Any) -> ModelFlops | None:
        try:
            if self.is_sharded and not self._imitation:
                return None
            return count_flops(self.trainer, self, batch, *self._imitation)
        except Exception as error:  # a speed that cannot be told is no reason to end a run
            rank_zero_warn(f"train/tflops and train/mfu are left out: {type(error).__name__}: {error}")
            return None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts seconds; logs the speed at the first optimizer step, then now and then."""
        trainer, device = self.trainer, self.trainer.strategy.root_device
        self.seconds_trained += self._speed.end()
        step = trainer.global_step
        if step == self._line_at or (step > 1 and step % self.log_every):
            return
        self._line_at = step
        self._end_if_diverged()
        values = {**self._speed.line(), "train/memory_mb": peak_memory(device) / 1e6}
        values |= {"frames": float(self.frames_trained), "epoch": trainer.current_epoch}
        # Not by `self.log`: Lightning writes that on steps of its own count, which is not at 1 and moves by one after
        # some resumes.
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.log_metrics(values, step=step - 1)

    @property
    def ends_if_diverged(self) -> bool:
        """Whether a run ends in an error where its weights are found to be no numbers any more."""
        return True

    def _end_if_diverged(self) -> None:
        """Raises UserError on every process if there is nothing left to train, before it is saved or goes on."""
        if self.ends_if_diverged and self.has_diverged():
            raise UserError(
                f"{self.name} diverged: weights are not finite after optimizer step {self.trainer.global_step}; "
                f"{MEND.format(lr=self.optimizer.lr)}, and start again"
            )

    def has_diverged(self) -> bool:
        """Whether weights that train are no numbers any more; asked, and answered alike, by every process.

        In `16-mixed` gradients that are none are left out, and the scale of the loss falls with each: then it is that.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and 0 < scaler.get_scale() < TINIEST_SCALE:
            return True
        bad = (~is_finite(self.trained)).to(self.device, torch.float32)
        if self.is_sharded:
            torch.distributed.all_reduce(bad)
        return bool(bad > 0)

    def on_validation_end(self) -> None:
        """Validation does not count as training time."""
        self._speed.start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the counters; what has diverged is not saved over what has not."""
        if self.trainer.training:
            self._end_if_diverged()
        self._speed.settle()
        checkpoint["lit_align"] = {"stage": self.name, "frames": self.frames_trained, "seconds": self.seconds_trained}

    def check_checkpoint(self, checkpoint: dict[str, Any], weights: set[str]) -> None:
        """Raises UserError for a checkpoint of another stage, or one whose weights have other names than this one's."""
        kept = checkpoint.get("lit_align", {})
        if kept.get("stage") != self.name:
            raise UserError(
                f"the checkpoint is of stage {kept.get('stage')!r}; expected {self.name!r}: "
                "--resume takes a checkpoint of the same stage"
            )
        if different := sorted(weights ^ set(self.state_dict())):
            raise UserError(
                f"the checkpoint holds other weights than this network ({different[0]} is in one of them "
                "only): give the model.train and the architecture of the run, as its config.yaml has them"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on counting; a checkpoint of another stage is refused, and one of a run that diverged."""
        if "state_dict" in checkpoint:  # a strategy that shards has checked it, and taken the weights up
            self.check_checkpoint(checkpoint, set(checkpoint["state_dict"]))
            if self.ends_if_diverged and (bad := first_spoilt(checkpoint["state_dict"])):
                raise UserError(
                    f"the checkpoint is of a run that diverged ({bad} holds values that are not finite): start again "
                    "with a lower model.optimizer.lr"
                )
        kept = checkpoint["lit_align"]
        self._frames_before, self.seconds_trained = kept["frames"], kept["seconds"]
        self._speed = Throughput()

    def lineage(self, parent: dict[str, Any] | None) -> dict[str, Any]:
        """The facts that travel with what the stage leaves."""
        before = {} if parent is None or self.random_init else parent
        source = None if self.init_from is None else source_of(self.init_from)
        return {
            "stage": self.name,
            "parent": None
            if self.init_from is None
            else {
                "folder": called(self.init_from),
                **({"repository": source[0], "revision": source[1]} if source else {}),
                "stage": (parent or {}).get("stage"),
                "random_init": self.random_init,
                **(self._read_from or fingerprint_of(self.init_from)),
                **({"parent": parent["parent"]} if parent and parent.get("parent") else {}),
            },
            "train_frames": int(before.get("train_frames") or 0) + self.frames_trained,
            "train_seconds": round(float(before.get("train_seconds") or 0.0) + self.seconds_trained, 1),
            "parameters": sum(p.numel() for n, p in self.model.named_parameters() if "lora_" not in n),
            **({"fps": before["fps"]} if before.get("fps") else {}),
        }

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the stage, such as an imitation, is of this process alone."""
        return {**super().__getstate__(), "_device_mesh": None}

    @abstractmethod
    def export(self, folder: str | Path) -> None:
        """Writes what the stage leaves into `folder` (a run's folder): `agent/` or `reward_model/`."""


def fingerprint_of(folder: str) -> dict[str, Any]:
    """A model's `fingerprint`, for the lineage of what starts from it; empty where it cannot be taken any more."""
    try:
        return {"fingerprint": fingerprint(folder)}
    except (OSError, ValueError):
        return {}


def channels_last(network: AnyNetwork) -> AnyNetwork:
    """Lays the weights of convolutions out as frames lie in memory; the values stay."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def check_observations(what: str, config: BackboneConfig, data: Any) -> None:
    """Raises ValueError, with all that is amiss, unless data is of the sizes that a network sees."""
    errors = []
    if config.vector_size != data.vector_size:
        errors.append(
            f"the {what} sees vectors of {config.vector_size} numbers, the data holds {data.vector_size}; "
            f"set --model.backbone.vector_size {data.vector_size} for a new agent, or use other data"
        )
    if config.image_size != data.image_size:
        mend = f"set --data.image_size {config.image_size} to resize it" if data.image_size else "use other data"
        mend = mend if config.image_size else "set --data.image_size 0 to leave them out"
        errors.append(
            f"the {what} sees {config.image_size} pixels, the data holds {data.image_size}; "
            f"set --model.backbone.image_size {data.image_size} for a new agent, or {mend}"
        )
    raise_all(errors)


def step_mask(lengths: Tensor, steps: int) -> Tensor:
    """Which steps of right-padded sequences count `(B, T)`, bool."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def need_folder(init_from: str | None, stage: str) -> str:
    """The folder to start from; raises ValueError when none was given."""
    if init_from is None:
        raise UserError(f"{stage} starts from an agent: give --init_from FOLDER, the agent/ of an earlier stage")
    return init_from
