"""Videos of a run's episodes, encoded beside the training that goes on.

The episodes are those of the run itself: which ones is settled before they are played, nothing is drawn at random and
nothing is played for them, so a run with videos trains as the same run without.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from lit_align.data.trajectory import ENDED, Trajectory
from lit_align.errors import UserError
from lit_align.rollout.callback import Spectator

FOLDER = "videos"
WAITING = 4
"""Videos that may wait to be encoded; what comes beyond them is left out, for training waits for no video."""
MAX_BYTES = 64 << 20
"""Of a video's frames as they are seen: of a longer episode the first part is filmed."""
LAST_SECONDS = 20.0
"""That a finished run waits for the videos it has not encoded yet."""
WITH_WANDB = 10
"""`every` where it is not given and the run logs to Weights & Biases."""

_NAME = re.compile(r"(?:iteration|validation)-\d{5}-episode-\d+.*\.mp4(?:\.part)?")
_log = logging.getLogger("lit_align.run")


@dataclass
class Videos:
    """Which of a run's episodes are filmed, as MP4 files in the run folder's `videos/`.

    Args:
        every: Iterations from one that is filmed to the next, the first one included; each validation is filmed too. 0
            films nothing; None is 10 where the run logs to Weights & Biases, else 0.
        episodes: Episodes of such an iteration: the first by their ids, whatever becomes of them.
        keep: Videos that are kept, the newest ones.
    """

    every: int | None = None
    episodes: int = 2
    keep: int = 40

    def __post_init__(self) -> None:
        if (self.every or 0) < 0 or min(self.episodes, self.keep) < 1:
            raise UserError(
                f"videos.every is {self.every}, videos.episodes {self.episodes}, videos.keep {self.keep}; expected "
                "0 or more (0 for none), 1 or more, and 1 or more"
            )


@dataclass(frozen=True)
class Film:
    """One video on disk.

    Attributes:
        path: The MP4.
        kind: `iteration`, or `validation`.
        iteration: Which one, the first is 0.
        caption: The episode, how it ended, and how much of it is shown.
    """

    path: Path
    kind: str
    iteration: int
    caption: str


class Encoder:
    """Writes videos one after another in a thread, which gives way to training and dies with the process.

    Args:
        folder: Where they go.
        fps: Frames a second.
        keep: Videos that are kept.
        write: Writes one: path, frames and frames a second; None for `evaluation.video.write_mp4`.
    """

    def __init__(self, folder: Path, fps: float, keep: int, write: Callable[..., Any] | None = None) -> None:
        self.folder, self.fps, self.keep = folder, fps, keep
        self.left_out = self.failed = 0
        self._write = write
        self._waiting: queue.Queue[tuple[Film, NDArray[np.uint8]] | None] = queue.Queue(WAITING)
        self._ready: queue.SimpleQueue[Film] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def submit(self, film: Film, frames: NDArray[np.uint8]) -> bool:
        """Takes a video if there is room for it; never waits.

        Args:
            film: What it is.
            frames: `(T, H, W, 3)` uint8; copied.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="videos", daemon=True)
            self._thread.start()
        try:
            if self._waiting.full():
                raise queue.Full
            self._waiting.put_nowait((film, frames.copy()))
        except queue.Full:
            self.left_out += 1
            if self.left_out == 1:
                _log.warning("videos are asked for faster than they are encoded: some are left out (videos.every)")
            return False
        return True

    def ready(self) -> list[Film]:
        """The videos that were written since it was asked last."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._ready.get_nowait())
        return found

    def close(self, seconds: float) -> None:
        """Waits so long for what is not written yet, leaves out the rest, and says how many were left out."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        end = time.monotonic() + seconds
        with suppress(queue.Full):
            self._waiting.put(None, timeout=max(seconds, 0.001))
            thread.join(max(0.0, end - time.monotonic()))
        self._ended.set()
        self.left_out += thread.is_alive()
        with suppress(queue.Empty):
            while True:
                self.left_out += self._waiting.get_nowait() is not None
        self._waiting.put(None)  # it may wait for one
        if self.left_out and seconds:
            _log.warning("%d videos were left out: they take longer to encode than the run took", self.left_out)

    def _work(self) -> None:
        with suppress(OSError, AttributeError):  # on Linux a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not self._ended.is_set() and (job := self._waiting.get()) is not None:
            film, frames = job
            if self._ended.is_set():
                return
            try:
                self._encode(film, frames)
                self._ready.put(film)
            except Exception as error:  # no disk, no codec: a film is not worth a run
                film.path.with_name(film.path.name + ".part").unlink(missing_ok=True)
                self.failed += 1
                if self.failed == 1:
                    _log.warning("%s was not written: %s: %s", film.path, type(error).__name__, error)

    def _encode(self, film: Film, frames: NDArray[np.uint8]) -> None:
        from lit_align.evaluation.video import write_mp4  # here, so that a run without videos does not load a codec

        (self._write or write_mp4)(film.path, frames, self.fps, crf=27)
        films = sorted(films_in(self.folder), key=lambda path: path.stat().st_mtime_ns)
        for old in films[: -self.keep]:
            old.unlink(missing_ok=True)


class Filming(Spectator):
    """Films some of a run's episodes on the first process, and hands the videos to loggers that take them.

    A logger takes videos if it has a method `log_films`.

    Args:
        folder: The run's.
        videos: Which episodes.
        every: Iterations from one that is filmed to the next.
    """

    def __init__(self, folder: Path, videos: Videos, every: int) -> None:
        self.folder, self.videos, self.every = folder / FOLDER, videos, every
        self.encoder: Encoder | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Removes what an earlier run that is started again, or one that was killed, left in its place."""
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        for stale in films_in(self.folder, parts=True):
            if trainer.ckpt_path is None or stale.suffix == ".part":
                stale.unlink(missing_ok=True)
        self.encoder = Encoder(self.folder, data.fps, self.videos.keep)

    def on_play(self, trainer: pl.Trainer, trajectories: list[Trajectory], kind: str) -> None:
        """Takes the first episodes, if it is their turn; hands on what is written by now."""
        if self.encoder is None:
            return
        self._hand_on(trainer)
        iteration = trainer.current_epoch
        if kind == "iteration" and iteration % self.every:
            return
        for one in sorted(trajectories, key=lambda one: one.id)[: self.videos.episodes]:
            shown = one.frames[: max(1, MAX_BYTES // max(1, one.frames[0].size))]
            if shown.size:
                self.encoder.submit(self._film(one, kind, iteration, len(shown)), shown)

    def _film(self, one: Trajectory, kind: str, iteration: int, shown: int) -> Film:
        ended = one.outcome or ENDED
        word = re.sub(r"[^\w.-]+", "_", ended)[:40]
        name = f"{kind}-{iteration:05d}-episode-{one.id:07d}-{word}.mp4"
        caption = f"{kind} {iteration}, episode {one.id}: {ended} after {len(one)} steps"
        if shown < len(one.frames):
            caption += f", the first {shown - 1} are shown"
        return Film(self.folder / name, kind, iteration, caption)

    def _hand_on(self, trainer: pl.Trainer) -> None:
        films = self.encoder.ready() if self.encoder is not None else []
        for logger in trainer.loggers if films else ():
            if hasattr(logger, "log_films"):
                logger.log_films(films)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waits a little for the last videos."""
        if self.encoder is not None:
            self.encoder.close(LAST_SECONDS)
            self._hand_on(trainer)
            self.encoder = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A run that is told to end does not wait for videos."""
        if self.encoder is not None:
            self.encoder.close(0.0)
            self.encoder = None


def filming(folder: Path, videos: Videos, wandb: bool) -> list[Filming]:
    """The callback that films a run, or none.

    Args:
        folder: The run's.
        videos: What is asked for.
        wandb: Whether the run logs to Weights & Biases.
    """
    every = videos.every if videos.every is not None else WITH_WANDB * wandb
    return [Filming(folder, videos, every)] if every else []


def films_in(folder: Path, parts: bool = False) -> list[Path]:
    """The videos of a run's `videos/`, by name; with `parts` those too that were not written to their end."""
    found = [path for path in folder.glob("*.mp4*") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(path for path in found if parts or path.suffix == ".mp4")
