"""The folder that a stage leaves: what is in it, whether one may write there, and how far the run came."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_align import __version__
from lit_align.errors import UserError
from lit_align.files import write_whole

PACKAGES = ("torch", "lightning", "torchmetrics", "datasets", "gymnasium", "vizdoom", "numpy")


class RunFolder:
    """A stage's folder: `config.yaml`, `checkpoints/last.ckpt`, `metrics.csv`, `log.txt`, `run.json`.

    Args:
        path: where it is or will be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    def checkpoint(self, resume: str | None) -> Path | None:
        """Returns the checkpoint that `--resume` means, or None to start afresh.

        Args:
            resume: `last`, `auto` (the last one if there is one), a file, or None.

        Raises:
            UserError: if there is no such checkpoint.
        """
        if resume is None:
            return None
        last = self.checkpoints / "last.ckpt"
        if resume == "auto":
            return last if last.is_file() else None
        path = last if resume == "last" else Path(resume)
        if not path.is_file():
            hint = (
                "; --resume auto starts afresh in that case"
                if resume == "last"
                else "; expected a file, `last` or `auto`"
            )
            raise UserError(f"--resume {resume}: there is no checkpoint {path}{hint}")
        return path

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
        for name in ("run.json", "metrics.csv", "config.yaml", "checkpoints/last.ckpt"):
            (self.path / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what a process that was killed while it wrote has left beside its targets."""
        for stale in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            stale.unlink(missing_ok=True)

    def read_run(self) -> dict[str, Any]:
        """Returns `run.json`, empty if there is none or it is damaged."""
        try:
            content = json.loads((self.path / "run.json").read_text())
        except (OSError, json.JSONDecodeError):
            return {}
        return content if isinstance(content, dict) else {}

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


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"lit_align": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
