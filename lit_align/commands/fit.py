"""One training run, from the folder's first file to how it ended."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

from lit_align.commands import wandb_story
from lit_align.commands.run_folder import close_log
from lit_align.commands.signals import end_processes
from lit_align.errors import Preempted, Terminated, one_line
from lit_align.sharing.card import leave_card
from lit_align.stages.base import Stage
from lit_align.stages.metrics_csv import last_values

if TYPE_CHECKING:
    from lit_align.commands.stage import StageCLI


_log = logging.getLogger("lit_align.run")


def fit(cli: StageCLI, train: Callable[[], Any]) -> None:
    """Trains, leaves what the stage leaves, and writes into the run's folder how it ended.

    Args:
        cli: the stage.
        train: trains it.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        Terminated: after SIGTERM.
        Preempted: after a signal to make room.
    """
    story = Story(cli)
    cli.signals.at_once = lambda: story.end("interrupted")
    cli.run_state.on_begin, cli.run_state.on_interrupt = story.begin, cli.signals.take_next_interrupt
    state, error = "failed", None
    try:
        # SIGTERM is taken when training begins: before, Lightning ends this process by it where another rank did not
        # start, and it may be waiting for that one where no handler of Python's runs.
        cli.preemption.listen()
        train()
        story.leave()
        state = "finished"
    except Exception as found:
        error = found
        if cli.signals.terminated:  # another process ended first, and a collective failed over it
            state = "interrupted"
            raise Terminated from found
        raise
    except BaseException as stop:
        state = _STATES.get(type(stop), "failed")
        raise
    finally:
        cli.preemption.close()
        with suppress(OSError):  # of a disk that is full, which what came before says
            story.end(state, error if state == "failed" else None)
        story.close(state == "finished")
        if state != "finished":
            end_processes(cli.trainer)


MAY_CHANGE = ("trainer", "out", "wandb", "wandb_data", "tensorboard", "checkpoint_every", "videos")
"""Settings that leave alone what is learned, or are there to be changed, as `trainer.max_epochs`."""
_STATES = {KeyboardInterrupt: "interrupted", Terminated: "interrupted", Preempted: "preempted"}


class Story:
    """What the run's folder tells of it; the first process writes it.

    Args:
        cli: the stage.
    """

    def __init__(self, cli: StageCLI) -> None:
        self.cli, self.folder = cli, cli.folder
        self.first = rank_zero_only.rank == 0
        self._begun = False
        self._log: logging.Handler | None = None

    def begin(self) -> None:
        """All is set up and training begins; not before, since bad input must leave nothing behind."""
        cli, folder = self.cli, self.folder
        cli.signals.take_terminations()
        if not self.first:
            return
        if cli.checkpoint is None:
            folder.clear()
        folder.sweep()
        self._begun, self._log = True, folder.open_log()
        folder.mend(cli.checkpoint)
        settings = cli.resolved()
        if cli.checkpoint is not None and cli.checkpoint.parent == folder.checkpoints:
            self._tell_changes(settings)
        folder.write("config.yaml", settings)
        facts = {"parent": cli.config.init_from, "random_init": cli.config.random_init, "seed": cli.config.seed}
        folder.begin(sys.argv[1:], stage=cli.verb, **facts, wandb=wandb_story.begin(cli))

    def _tell_changes(self, settings: str) -> None:
        """Says which settings are others than those that the run had so far: `config.yaml` will hold the new ones."""
        path = self.folder.path / "config.yaml"
        before = yaml.safe_load(path.read_text()) if path.is_file() else None
        if changes := [*changed(before, yaml.safe_load(settings))]:
            _log.warning(
                "the run goes on with other settings than it had: %s (before -> now); for those of before, give "
                "--config %s --resume last",
                *("; ".join(changes), path),
            )

    def leave(self) -> None:
        """What the next stage reads, and the headline."""
        if not self.first:
            return
        if not self._begun:  # the checkpoint was of the run's last step: nothing was left to train, but to export
            self.begin()
        cli, folder = self.cli, self.folder
        getattr(cli.model, "export", lambda _: None)(folder.path)
        metrics = cli.trainer.callback_metrics or last_values(folder.path)
        line = headline(metrics, getattr(cli.model, "headline_metrics", ()))
        folder.write("headline.txt", line + "\n")
        print(f"{folder.path}: {line}")  # noqa: T201  what the run reached, and where it lies
        if isinstance(cli.model, Stage):
            leave_card(folder.path)
        wandb_story.leave(cli)

    def end(self, state: str, error: BaseException | None = None) -> None:
        """How the run ended, and how far it came."""
        if self.first and self._begun:
            seconds, frames = round(self.cli.run_state.seconds, 1), getattr(self.cli.model, "frames_trained", None)
            facts = {"seconds": seconds, "frames": frames, "steps": self.cli.trainer.global_step}
            self.folder.write_run(state=state, error=None if error is None else one_line(error), **facts)

    def close(self, success: bool) -> None:
        """Ends what it logs to."""
        wandb_story.close(self.cli, success)
        close_log(self._log)


def changed(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """The settings that differ, `key: before -> now`; not those of where and how long to run, nor new ones."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in now:
            if name in before and (key or name not in MAY_CHANGE):
                yield from changed(before[name], now[name], f"{key}.{name}" if key else str(name))
    elif before != now:
        yield f"{key}: {before} -> {now}"


def headline(metrics: Mapping[str, Any], wanted: Sequence[str]) -> str:
    """The last values of the metrics that the stage names, or of up to three, for the pipeline's line."""
    names = [name for name in wanted if name in metrics] or list(metrics)[:3]
    return ", ".join(f"{name} {float(metrics[name]):.4g}" for name in names)
