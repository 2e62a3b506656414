"""The online loop as a Trainer callback: play, score, fill the buffer, and let the ordinary loop train."""

from __future__ import annotations

import ctypes
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import lightning.pytorch as pl
import torch

from lit_align.data.trajectory import Trajectory
from lit_align.models.agent import Agent
from lit_align.rollout.buffer import RolloutDataModule
from lit_align.rollout.sampler import Sampler
from lit_align.rollout.steps import Rollout
from lit_align.rollout.together import gathered, together


class Learner(Protocol):
    """What the callback needs of the LightningModule."""

    temperature: float
    counts: tuple[float, float]
    """Env steps and episodes of the iteration, over all processes, once they are judged."""

    def player(self) -> Agent:
        """The agent with the weights of now, whole also where it is sharded; called by every process."""
        ...

    def judge(self, trajectories: list[Trajectory]) -> list[Rollout]:
        """Scores the episodes of this process and gives each its advantage."""
        ...

    def report(self, trajectories: list[Trajectory], seconds: float, failures: int) -> None:
        """Logs what an iteration's play was like; `failures` are those of all processes."""
        ...


class Spectator(pl.Callback):
    """A callback that is shown the episodes of a run; it may look at them and must not change them."""

    def on_play(self, trainer: pl.Trainer, trajectories: list[Trajectory], kind: str) -> None:
        """This process's episodes of an `iteration` or a `validation`; called by every process."""


def show(trainer: pl.Trainer, trajectories: list[Trajectory], kind: str) -> None:
    """Shows episodes to the Trainer's spectators."""
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(each, Spectator):
            each.on_play(trainer, trajectories, kind)


def give_back() -> None:
    """Returns memory that was freed to the system: restarted worlds leave holes in it, which the C library keeps."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


class RolloutCallback(pl.Callback):
    """Fills the data module's buffer at the start of every epoch.

    The worlds are played by a whole copy of the agent, synced once an iteration, so that no process waits in a
    collective while worlds differ in pace.
    """

    def __init__(self) -> None:
        self._sampler: Sampler | None = None

    def sampler(self, trainer: pl.Trainer, module: Any) -> Sampler:
        """The sampler, made at first use and synced with the module's agent."""
        data = _data(trainer)
        agent = module.player()
        if self._sampler is None:
            player = agent.prepare(compile=module.train_config.compile)
            self._sampler = Sampler(player, data.make_world, data.worlds, module.temperature, data.seed)
        self._sampler.agent.load_state_dict(agent.state_dict())
        return self._sampler

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Plays this process's episodes of the iteration and fills the buffer."""
        data, learner = _data(trainer), pl_module
        assert isinstance(learner, pl.LightningModule)
        start = time.perf_counter()
        with together(trainer):
            sampler = self.sampler(trainer, learner)
            before = sampler.failures
            trajectories = data.play(sampler, trainer.current_epoch, partial(gathered, trainer))
            failures = sum(gathered(trainer, sampler.failures - before))
        seconds = time.perf_counter() - start
        data.fill(trainer.current_epoch, learner.judge(trajectories))  # type: ignore[operator]
        give_back()
        learner.report(trajectories, seconds, failures)  # type: ignore[operator]
        show(trainer, trajectories, "iteration")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends the worlds."""
        self.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Ends the worlds."""
        self.close()

    def close(self) -> None:
        """Ends the worlds; the next use makes them anew."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None


def _data(trainer: pl.Trainer) -> RolloutDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, RolloutDataModule):
        raise TypeError(f"online RL needs a RolloutDataModule, found {type(data).__name__}")
    return data


def tensor_sum(trainer: pl.Trainer, values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    return trainer.strategy.reduce(values, reduce_op="sum") if trainer.world_size > 1 else values
