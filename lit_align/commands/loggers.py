"""Where a run logs to: `metrics.csv` always, Weights & Biases and TensorBoard where they are asked for."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_align.commands.run_folder import RunFolder
from lit_align.errors import UserError, one_line
from lit_align.stages.checkpoints import KEY, RunState, wandb_id
from lit_align.stages.filming import Film
from lit_align.stages.metrics_csv import MetricsCSV

AXES = ("env_steps", "frames", "seconds")
"""What metrics may be drawn over in W&B, beside optimizer steps."""
SECONDS = 60.0
"""That anything may take which waits for a W&B server while nothing else goes on."""
INIT_SECONDS, FINISH_SECONDS = 30, 60
"""That a W&B server has to answer at the start, and to take what is left at the end."""
GRACE = 10
"""Seconds beyond those before W&B's own process counts as hung."""
OURS = (ValueError, TypeError, KeyError, AttributeError, FileNotFoundError)
"""What W&B raises about one thing that was to be logged, such as a file that is gone, and not about the server."""

_log = logging.getLogger("lit_align.run")


class Wandb(WandbLogger):
    """Lightning's W&B logger, for runs that are resumed, and for servers that are lost.

    A row's step in W&B is its row in `metrics.csv`, so that a resumed run goes on in the same W&B run, and what it logs
    a second time W&B leaves as it is. Every row tells all `AXES` that are known by then. A server that does not answer
    at the start makes the run an offline one. Whatever is lost later is one warning and no more: the run's own files
    have all of it, and what W&B had written down is kept for `wandb sync`.

    Args:
        table: the run's `metrics.csv`, which logs each row before.
        seconds: tells seconds of the run so far.
        settings: of `WandbLogger`.

    Attributes:
        keep_open: whether the W&B run stays open when training has ended well, for what is logged after it; whoever
            sets it calls `close`.
    """

    def __init__(self, table: MetricsCSV, seconds: Callable[[], float], **settings: Any) -> None:
        super().__init__(**settings)
        self._table, self._seconds = table, seconds
        self._axes: dict[str, float] = {}
        self._place: Path | None = None
        self._lost = self.keep_open = False

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
                _warn("W&B cannot be reached (%s): logging offline; `wandb sync` sends it later", one_line(error))
                with suppress(Exception):  # of a service that died there is nothing to end
                    wandb.teardown()
                self._offline = True
                run = WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]
            finally:  # Lightning sets it for an offline run, and the next one of this process may be online
                os.environ.pop("WANDB_MODE", None)
                os.environ |= {} if mode is None else {"WANDB_MODE": mode}
            self._place = Path(run.dir).parent
            for axis in AXES:
                run.define_metric(axis)
        return self._experiment

    @property
    def row(self) -> int:
        """The step in W&B of what is logged now."""
        return max(self._table.rows - 1, 0)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs one row, which `metrics.csv` holds already."""
        self._axes |= {name: float(metrics[name]) for name in AXES if name in metrics}
        row = {**metrics, "seconds": self._seconds(), **{k: v for k, v in self._axes.items() if k != "seconds"}}
        if step is not None:
            row["trainer/global_step"] = step
        self.attempt("logging a row", lambda run: run.log(row, step=self.row))

    @rank_zero_only
    def log_films(self, films: Sequence[Film]) -> None:
        """Logs videos that are on disk, each under its kind."""
        for kind in dict.fromkeys(film.kind for film in films):
            mine = [film for film in films if film.kind == kind]
            self.attempt("logging videos", partial(self._log_films, f"videos/{kind}", mine))

    def _log_films(self, name: str, films: Sequence[Film], run: Any) -> None:
        import wandb

        videos = [wandb.Video(str(film.path), caption=film.caption) for film in films]
        run.log({**self._axes, "seconds": self._seconds(), name: videos}, step=self.row)

    @property
    def lost(self) -> bool:
        """Whether W&B takes nothing any more."""
        return self._lost

    def attempt(self, what: str, call: Callable[[Any], Any], seconds: float | None = None) -> None:
        """Does something with the W&B run, if it is not lost.

        What fails or takes too long is a warning. If W&B is what failed, the run is lost: there is no other warning,
        and nothing is sent any more.

        Args:
            what: said if it fails.
            call: gets the run.
            seconds: that it may take; None for what does not wait for a server.
        """
        if self._lost:
            return
        run = self.experiment  # where it is made, an error is about the settings
        try:
            if seconds is None:
                call(run)
            else:
                in_time(lambda: call(run), seconds)
        except OURS as error:
            _warn("W&B does not have it all: %s failed (%s)", what, one_line(error))
        except Exception as error:  # whatever W&B raises: the run's own files have all of it
            self._lost = True
            online = "" if self._offline else "--include-online "
            send = f"`wandb sync {online}{self._place}` sends what W&B has written there"
            _warn("W&B is lost (%s: %s): the run goes on without it; %s", what, one_line(error), send)

    @rank_zero_only
    def mark_preempting(self) -> None:
        """Says that the run goes on later: a server shows it as preempted then, and not as failed, when it ends."""
        if self._experiment is not None:
            self.attempt("marking it as preempted", lambda run: run.mark_preempting())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the W&B run, unless it was kept open for what is logged after training."""
        if status != "success" or not self.keep_open:
            self.close(status == "success")

    @rank_zero_only
    def close(self, success: bool = True) -> None:
        """Waits a while for the server to take what is left, and ends the W&B run, which another may follow."""
        run, self.keep_open = self._experiment, False
        if run is None or run._is_finished:
            self._experiment = None
            return
        gone = self._lost
        # W&B keeps to FINISH_SECONDS by itself, unless its own process hangs.
        end = partial(run.finish, int(not success))
        self.attempt("sending what is left", lambda _: end(), FINISH_SECONDS + GRACE)
        self._experiment = None
        if gone or not run._is_finished:
            forget(end)
        self._lost = False


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
        run = (kept.get(KEY) or {}).get("wandb") or (folder.read_run().get("wandb") if checkpoint else None)
        settings = wandb_settings(folder.path.name, folder.path, run)
        loggers.append(Wandb(table, lambda: state.seconds, offline=config.wandb == "offline", **settings))
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


def wandb_settings(name: str, folder: Path, run: str | None = None) -> dict[str, Any]:
    """What `Wandb` is made with, for a run of this name in this folder.

    Args:
        name: as W&B shows it.
        folder: where W&B writes its files, in `wandb/`; made if it is not there.
        run: id of the W&B run that is gone on with; None for a new one.
    """
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    limits = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
    limits = wandb.Settings(**{k: v for k, v in limits.items() if k in wandb.Settings.model_fields})
    return {"id": run or new_id(), "name": name, "project": project(), "save_dir": folder, "settings": limits}


def project() -> str:
    """The W&B project that runs go to."""
    return os.environ.get("WANDB_PROJECT") or "lit-align"


def in_time(call: Callable[[], Any], seconds: float) -> Any:
    """What a call returns or raises, in a thread that is given up after so many seconds.

    Raises:
        TimeoutError: It takes longer.
    """
    found: list[Any] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            found.append(call())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="wandb-end", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not found:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return found[0]


def forget(end: Callable[[], Any]) -> None:
    """Lets go of W&B's process, which died or hangs, so that the next run of this process starts a new one."""
    import wandb
    from wandb.sdk.lib import module

    # The last: a run that could not be ended would else be taken for the one that goes on.
    for call in (end, wandb.teardown, module.unset_globals):
        with suppress(Exception):
            in_time(call, GRACE)


def _warn(text: str, *parts: object) -> None:
    """A warning for `log.txt`, and for the terminal, which Python's last resort serves where there is no log."""
    if _log.hasHandlers():
        sys.stderr.write(f"warning: {text % parts}\n")
    _log.warning(text, *parts)


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
