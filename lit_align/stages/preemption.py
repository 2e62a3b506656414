"""A run that is told to make room: it saves, stops at a batch's end on every process alike, and goes on later.

A signal handler that saves by itself can find the process anywhere, a collective of the backward pass included, and
hang. This one sets a flag. At the end of each optimizer step the processes begin to reduce their flags to the largest,
and at the end of the next one they read what came out, so that none waits for it; then all of them save, and all of
them stop before the next batch.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_align import slurm
from lit_align.errors import Preempted, UserError
from lit_align.rollout.buffer import RolloutDataModule
from lit_align.stages.agreement import Agreement
from lit_align.stages.checkpoints import validation_is_due
from lit_align.stages.torn import LAST

GO_ON, SOON, NOW = 0, 1, 2
"""What a process wishes for: nothing, to stop where nothing is lost, to stop at this batch's end whatever is lost."""
LEAVE_SECONDS = 20.0
"""That a run has to end after it saved, before the job is requeued under it."""
LAST_SECONDS = 10.0
"""Before the job's end, when it is requeued whatever the run does."""
TERM_SECONDS = 20.0
"""Between SIGTERM and SIGKILL; Slurm's `KillWait` is 30 seconds by default."""
SAFETY = 1.5
"""Batches to come are thought to take this many times as long as those before."""

_log = logging.getLogger("lit_align.preemption")


class Preemption(Callback):
    """Stops the run on a signal, exactly resumable, and has the Slurm job requeued.

    Offline stages save at the end of the batch, or of the next one where a validation or the epoch's end is between:
    resumed from before a validation that was due, its values would be missing. `align` saves at the border
    between two iterations only (a checkpoint holds no rollouts): it goes on to the next border if that comes within
    `grace`, else it stops at once, and the iteration is played again, with the same result. Where no batch ends within
    `grace` (a long validation, a long play), the job is requeued all the same, and the run goes on from the checkpoint
    before; but not while a checkpoint is being written.

    Args:
        requeue_on: Names of the signals after which the job is requeued, those of `sbatch --signal`.
        end_on: Names of the signals after which the run saves and ends, but is not requeued by itself. None: SIGTERM in
            a Slurm job (which it sends before it kills: for a job that is cancelled, and for one that it preempts and
            requeues itself), nothing elsewhere.
        grace: Seconds from a signal of `requeue_on` to the job's end that may be used; less than `--signal` gives.
    """

    def __init__(
        self, requeue_on: Sequence[str] = ("SIGUSR1",), end_on: Sequence[str] | None = None, grace: float = 90.0
    ) -> None:
        if end_on is None:
            end_on = ("SIGTERM",) if slurm.is_job() else ()
        self.requeue_on, self.end_on, self.grace = _signals(requeue_on), _signals(end_on), grace
        if grace <= 0:
            raise UserError(f"grace is {grace}; expected seconds, more than 0")
        self._deadline: float | None = None
        self._job_ends = float("inf")
        self._requeue = self._requeued = self._stop = self._saving = False
        self._agreement = Agreement()
        self._step = -1
        self._began = self._batches_began = self._validation_began = 0.0
        self._play_seconds = 0.0
        self._validation_seconds: float | None = None
        self._closed = threading.Event()

    def listen(self) -> None:
        """Takes the signals; those to requeue on are kept from processes that this one starts."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (*self.requeue_on, *self.end_on):
            signal.signal(number, self._on_signal)
        # Slurm may signal every process of a step, and games or loggers would die of it. What is blocked in this thread
        # is blocked in processes that it starts, and waits here until `_look` sees it.
        signal.pthread_sigmask(signal.SIG_BLOCK, self.requeue_on)

    def _on_signal(self, number: int, _: Any) -> None:
        requeue = number in self.requeue_on
        if self._deadline is None and (left := slurm.seconds_left()) > LAST_SECONDS:
            self._job_ends = time.monotonic() + left
        if self._deadline is None or (requeue and not self._requeue):
            self._deadline = time.monotonic() + (self.grace if requeue else TERM_SECONDS)
        self._requeue = self._requeue or requeue

    def _look(self) -> None:
        """Takes a signal that waits since every thread blocks it."""
        for number in signal.sigpending() & set(self.requeue_on):
            if signal.sigtimedwait([number], 0) is not None:
                self._on_signal(number, None)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        if stage == "fit":
            self.listen()  # again: Lightning has put its own handler of SIGTERM before ours

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the watch over the job's last seconds."""
        self.listen()
        self._stop, self._saving, self._step = False, False, trainer.global_step
        self._agreement = Agreement()
        # Before every batch Lightning asks whether process 0 got SIGTERM, and waits for the GPU to answer. Its handler,
        # which would tell, is not the one that takes that signal here.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        self._closed.clear()
        if trainer.is_global_zero and slurm.is_job():
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            self._look()
            if self._requeue and self._is_late():
                self._requeued = True
                _log.warning("no batch ended in time: the job is requeued, to go on from its last checkpoint")
                if not slurm.requeue():
                    self._requeued = False  # whoever started this process may be able to
                return

    def _is_late(self) -> bool:
        """Whether the job has to be requeued under the run."""
        now = time.monotonic()
        if now > self._job_ends - LAST_SECONDS:
            return True
        return self._deadline is not None and now > self._deadline and not self._saving

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written, and is not to be cut off."""
        self._saving = True

    def _saved(self) -> None:
        """The next thing has begun: what was to be saved is."""
        if self._saving and self._deadline is not None:
            self._deadline = max(self._deadline, time.monotonic() + LEAVE_SECONDS)
        self._saving = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops at the border of an epoch, whose checkpoint was just saved, before anything is played or loaded."""
        self._saved()
        self._began = time.monotonic()
        if self._agree(trainer, self._wish(None), wait=True) != GO_ON:
            self._end(trainer, f"stopped after epoch {trainer.current_epoch}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stops; not at the end of the batch before, so that what it logs is written."""
        self._saved()
        if self._stop:
            self._end(trainer, f"stopped at optimizer step {trainer.global_step}")
        if batch_idx == 0:
            self._batches_began = time.monotonic()
            self._play_seconds = self._batches_began - self._began

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Asks all processes whether one of them was told to stop; saves if so."""
        if trainer.global_step == self._step:
            return  # gradients of several batches are being added up: no checkpoint holds them
        self._step = trainer.global_step
        rollouts = isinstance(trainer.datamodule, RolloutDataModule)  # type: ignore[attr-defined]
        wish = self._agree(trainer, self._wish(self._to_border(trainer, batch_idx) if rollouts else None))
        if wish == GO_ON:
            return
        if rollouts:
            self._stop = wish == NOW
            return
        if trainer.is_last_batch or validation_is_due(trainer):
            return  # the epoch's checkpoint comes after them, or this asks again at the next step's end
        self._save(trainer)
        self._stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers when, and puts off the stop of `align`: its iteration ends with this, and then it is saved."""
        self._saved()
        self._stop, self._validation_began = False, time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remembers how long a validation takes."""
        self._validation_seconds = time.monotonic() - self._validation_began

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the watch; tells the loggers that the run goes on later, before the Trainer closes them."""
        self.close()
        if isinstance(exception, Preempted):
            for logger in trainer.loggers:
                getattr(logger, "mark_preempting", lambda: None)()

    def close(self) -> None:
        """Ends the watch, and lets signals through again."""
        self._closed.set()
        self._look()  # a signal that waits would end the process when its default handler is back
        if threading.current_thread() is threading.main_thread():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.requeue_on)

    def _wish(self, to_border: float | None) -> int:
        """What this process wishes for.

        Args:
            to_border: seconds to the next place where nothing is lost; None if this is one.
        """
        self._look()
        if self._deadline is None:
            return GO_ON
        return NOW if to_border is not None and time.monotonic() + to_border > self._deadline else SOON

    def _to_border(self, trainer: Trainer, batch_idx: int) -> float:
        """Seconds to the end of the iteration, guessed from the batches (and validations) before."""
        if self._deadline is None:
            return 0.0
        each = (time.monotonic() - self._batches_began) / (batch_idx + 1)
        seconds = each * (float(trainer.num_training_batches) - batch_idx - 1)
        every = trainer.check_val_every_n_epoch
        if trainer.enable_validation and (every is None or (trainer.current_epoch + 1) % every == 0):
            known = self._validation_seconds
            seconds += self._play_seconds if known is None else known  # it plays, as the iteration did
        return SAFETY * seconds + 1.0

    def _agree(self, trainer: Trainer, wish: int, wait: bool = False) -> int:
        """The largest wish of all processes; every one of them asks after the same steps.

        Args:
            trainer: knows how many there are.
            wish: of this process.
            wait: for what they wish now; else it is what they wished when they were asked before.
        """
        if trainer.world_size == 1:
            return wish
        found = self._agreement.ask((wish, int(self._requeue)), trainer.strategy.root_device, wait)
        if found[1]:  # never the other way: a signal may have come since this was asked
            self._requeue = True
        return found[0]

    def _save(self, trainer: Trainer) -> None:
        if not trainer.checkpoint_callbacks:
            return  # the run was asked to keep none
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / LAST)

    def _end(self, trainer: Trainer, what: str) -> None:
        _log.info(what)
        raise Preempted(what, requeue=self._requeue and not self._requeued, rank=trainer.global_rank)


def _nothing() -> None:
    pass


def _signals(names: Sequence[str]) -> tuple[signal.Signals, ...]:
    found = []
    for name in names:
        number = None
        with suppress(KeyError):
            number = signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
        if number in (None, signal.SIGKILL, signal.SIGSTOP):
            raise UserError(f"there is no signal {name!r} to wait for; expected SIGUSR1, SIGTERM or the like")
        assert number is not None
        found.append(number)
    return tuple(found)
