"""Where a run logs to: `metrics.csv` always, Weights & Biases and TensorBoard where they are asked for."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_align.commands.run_folder import RunFolder
from lit_align.errors import UserError
from lit_align.stages.checkpoints import KEY, RunState, wandb_id
from lit_align.stages.metrics_csv import MetricsCSV

AXES = ("env_steps", "frames", "seconds")
"""What metrics may be drawn over in W&B, beside optimizer steps."""
INIT_SECONDS, FINISH_SECONDS = 30, 60
"""That a W&B server has to answer at the start, and to take what is left at the end."""

_log = logging.getLogger("lit_align.run")


class Wandb(WandbLogger):
    """Lightning's W&B logger, for runs that are resumed, and for servers that are lost.

    A row's step in W&B is its row in `metrics.csv`, so that a resumed run goes on in the same W&B run, and what it logs
    a second time W&B leaves as it is. Every row tells all `AXES` that are known by then. A server that does not answer
    at the start makes the run an offline one, which `wandb sync` sends later.

    Args:
        table: the run's `metrics.csv`, which logs each row before.
        seconds: tells seconds of the run so far.
        settings: of `WandbLogger`.
    """

    def __init__(self, table: MetricsCSV, seconds: Callable[[], float], **settings: Any) -> None:
        super().__init__(**settings)
        self._table, self._seconds = table, seconds
        self._axes: dict[str, float] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; on other ranks than zero a dummy."""
        if self._experiment is None:
            import wandb

            mode = os.environ.get("WANDB_MODE")
            try:
                run = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
            except Exception as error:  # no network, no key, no server: the run's own files have all of it
                if self._offline:
                    raise
                why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                _log.warning("W&B cannot be reached (%s): logging offline; `wandb sync` sends it later", why)
                wandb.teardown()
                self._offline = True
                run = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
            finally:  # Lightning sets it for an offline run, and the next one of this process may be online
                os.environ.pop("WANDB_MODE", None)
                os.environ |= {} if mode is None else {"WANDB_MODE": mode}
            for axis in AXES:
                run.define_metric(axis)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs one row, which `metrics.csv` holds already."""
        self._axes |= {name: float(metrics[name]) for name in AXES if name in metrics}
        row = {**metrics, "seconds": self._seconds(), **{k: v for k, v in self._axes.items() if k != "seconds"}}
        if step is not None:
            row["trainer/global_step"] = step
        self.experiment.log(row, step=max(self._table.rows - 1, 0))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Waits a while for the server to take what is left, and ends the W&B run, which another may follow."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None


def loggers_of(config: Any, folder: RunFolder, checkpoint: Path | None, state: RunState) -> list[Any]:
    """The loggers that a stage's configuration asks for.

    Args:
        config: the stage's.
        folder: of the run.
        checkpoint: that it goes on from.
        state: knows the seconds of the run.

    Raises:
        UserError: if TensorBoard is asked for and not installed.
    """
    table = MetricsCSV(folder.path)
    loggers: list[Any] = [table]
    kept = saved(checkpoint) if config.wandb or config.tensorboard else {}
    if config.wandb:
        import wandb

        run = (kept.get(KEY) or {}).get("wandb") or (folder.read_run().get("wandb") if checkpoint else None)
        folder.path.mkdir(parents=True, exist_ok=True)
        limits = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        limits = wandb.Settings(**{k: v for k, v in limits.items() if k in wandb.Settings.model_fields})
        names = {"name": folder.path.name, "project": "lit-align", "save_dir": folder.path, "settings": limits}
        offline = config.wandb == "offline"
        loggers.append(Wandb(table, lambda: state.seconds, id=run or new_id(), offline=offline, **names))
    if config.tensorboard:
        try:
            # What a killed run logged after its checkpoint is left out.
            after = {"purge_step": kept["global_step"]} if "global_step" in kept else {}
            loggers.append(TensorBoardLogger(folder.path, name="", version="tensorboard", **after))
        except ModuleNotFoundError as error:
            raise UserError(
                "tensorboard is true, and TensorBoard is not installed: pip install 'lit-align[tensorboard]'"
            ) from error
    return loggers


def new_id() -> str:
    """An id for a W&B run; not from the seeded generators, else runs of one seed would share it."""
    return secrets.token_hex(4)


def saved(checkpoint: Path | None) -> dict[str, Any]:
    """What a checkpoint holds beside tensors, which are not read from the disk."""
    if checkpoint is None:
        return {}
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    try:
        content = torch.load(file, map_location="meta", mmap=True, weights_only=True)
    except Exception:  # whoever goes on from it will say what is wrong with it
        return {}
    return content if isinstance(content, dict) else {}


def note_wandb(trainer: Any) -> str | None:
    """The id of the W&B run that a Trainer logs to, None without one."""
    return next((found for logger in trainer.loggers if (found := wandb_id(logger))), None)
