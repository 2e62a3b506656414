"""The folder that a stage leaves: what is in it, whether one may write there, and how far the run came."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_align.commands.environment import environment, is_gone, this_process, versions
from lit_align.errors import UserError
from lit_align.files import mapping_of, write_whole
from lit_align.stages.torn import LAST, PREVIOUS, damage, go_back, remove

_log = logging.getLogger("lit_align.run")


class RunFolder:
    """A stage's folder: `config.yaml`, `environment.json`, `checkpoints/`, `metrics.csv`, `log.txt`, `run.json`.

    Args:
        path: where it is or will be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.warning = ""

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest checkpoint; `previous.ckpt` beside it is the one before."""
        return self.checkpoints / LAST

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is anything to go on from."""
        return self.last.exists() or self.last.with_name(PREVIOUS).exists()

    def checkpoint(self, resume: str | None, read: bool = True) -> Path | None:
        """Returns the checkpoint that `--resume` means, or None to start afresh.

        A checkpoint is a file, or a folder of shards. One that is damaged is not used: in place of the last one the one
        before it is, which `warning` tells.

        Args:
            resume: `last`, `auto` (the last one if there is one), a file or folder, or None.
            read: whether this process reads all of it to see whether it is whole. One that does not takes the last one
                for now, and the choice of process 0 when processes can talk to each other (`RunState`).

        Raises:
            UserError: if there is no such checkpoint, or none that is whole.
        """
        if resume is None or (resume == "auto" and not self.has_checkpoint):
            return None
        if resume in ("last", "auto"):
            return self._newest(resume, read)
        path = Path(resume)
        if not path.exists():
            raise UserError(
                f"--resume {resume}: there is no checkpoint {path}; expected a file or a folder of shards, `last` or "
                "`auto`"
            )
        if wrong := damage(path) if read else "":
            raise UserError(f"--resume {resume}: {wrong}; expected a whole checkpoint of a stage's checkpoints/ folder")
        return path

    def _newest(self, resume: str, read: bool) -> Path:
        last, before = self.last, self.last.with_name(PREVIOUS)
        if not self.has_checkpoint:
            raise UserError(
                f"--resume {resume}: there is no checkpoint {last}; --resume auto starts afresh in that case"
            )
        wrong = damage(last) if read else ""
        if not wrong:
            return last
        if worse := damage(before):
            raise UserError(
                f"--resume {resume}: no checkpoint is whole. {last}: {wrong}. {before.name}: {worse}. "
                "--overwrite true without --resume starts again"
            )
        self.warning = f"{last} is damaged: {wrong}. Going on from the one before it, {before.name}"
        return before

    def mend(self, checkpoint: Path | None) -> None:
        """Puts the checkpoint before the last one, where it is gone on from, in the place of the damaged last one."""
        if checkpoint == self.last.with_name(PREVIOUS) and self.warning:
            _log.warning(self.warning)
            go_back(self.last)

    def check_writable(self) -> None:
        """Raises a UserError if nothing can be written there; leaves nothing."""
        place = self.path.absolute()
        while not place.exists():
            place = place.parent
        try:
            os.rmdir(tempfile.mkdtemp(prefix=".lit-align-", dir=place))
        except OSError as error:
            raise UserError(
                f"--out {self.path}: nothing can be written in {place} ({error.strerror}); expected a folder that may "
                "be written to, with room on its disk"
            ) from error

    def check_not_running(self) -> None:
        """Raises a UserError if the process of the folder's run is alive, on this machine, and another than this one.

        Only the first process of a run asks, and before it says that its own run runs: it never meets itself.
        """
        run, me = self.read_run(), this_process()
        process = run.get("process")
        if run.get("state") != "running" or not isinstance(process, dict):
            return
        # Without the process's start, one that got its id later would be taken for it. A parent runs us as its stage.
        same_machine = process.get("boot") == me["boot"] and process.get("started")
        if same_machine and process.get("pid") not in (me["pid"], os.getppid()) and is_gone(process) is False:
            raise UserError(
                f"{self.path} holds a run that process {process['pid']} is working on; expected one that has ended: "
                "wait until it has, end that process, or choose another --out"
            )

    def check_free(self) -> None:
        """Raises a UserError if another run is in the folder, so that none is overwritten by mistake."""
        if (self.path / "run.json").is_file():
            state = self.read_run().get("state", "unknown")
            raise UserError(
                f"{self.path} holds a run already (state: {state}); --resume last goes on with it, --out chooses "
                "another folder, --overwrite true starts again there"
            )

    def clear(self) -> None:
        """Removes what an earlier run logged and saved for resuming."""
        for name in ("run.json", "metrics.csv", "config.yaml", "environment.json"):
            (self.path / name).unlink(missing_ok=True)
        for name in (LAST, PREVIOUS):
            remove(self.checkpoints / name)

    def begin(self, argv: list[str], **facts: Any) -> None:
        """Writes `environment.json`, that of earlier starts kept under `earlier`, and that the run runs.

        Args:
            argv: the command's arguments.
            facts: fields of `run.json`.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        before = mapping_of(self.path / "environment.json")
        earlier = [*before.pop("earlier", []), before] if before else []
        content = environment(argv, now) | ({"earlier": earlier} if earlier else {})
        self.write("environment.json", json.dumps(content, indent=2) + "\n")
        began = {"began": self.read_run().get("began", now), "starts": len(earlier) + 1}
        self.write_run(state="running", process=this_process(), error=None, **began, **facts)

    def sweep(self) -> None:
        """Removes what a process that was killed while it wrote has left beside its targets."""
        for stale in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            remove(stale)  # that of shards is a folder

    def read_run(self) -> dict[str, Any]:
        """Returns `run.json`, empty if there is none or it is damaged."""
        return mapping_of(self.path / "run.json")

    def write_run(self, **fields: Any) -> None:
        """Changes fields of `run.json`."""
        self.write("run.json", json.dumps({**self.read_run(), **fields, "versions": versions()}, indent=2) + "\n")

    def write(self, name: str, text: str) -> None:
        """Writes a file whole or not at all."""
        write_whole(self.path / name, text)

    def open_log(self) -> logging.Handler | None:
        """Sends what Lightning and this package log to `log.txt` too; None where stdout already goes there."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "log.txt"
        try:
            if path.is_file() and os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno())):
                return None
        except (OSError, ValueError):  # stdout without a file behind it, as under a test runner
            pass
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        for name in LOGGERS:
            logging.getLogger(name).addHandler(handler)
        return handler


LOGGERS = ("lightning.pytorch", "lightning.fabric", "lit_align", "py.warnings")


def close_log(handler: logging.Handler | None) -> None:
    """Undoes `open_log`."""
    if handler is not None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)
        handler.close()
