"""`metrics.csv` of a run folder: Lightning's columns, but a resumed run goes on where it left off."""

from __future__ import annotations

import csv
import errno
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger

from lit_align.files import write_whole


class MetricsTable:
    """Rows of named numbers in a CSV file, each on disk as soon as it is logged; new names become new columns.

    A row that a full disk cut short is taken back, or where the process died of it, left out when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self.rows = 0
        self._opened = False

    def _open(self) -> None:
        # Not when it is made: Lightning does that before a run that starts afresh has cleared its folder.
        if not self._opened and self.path.is_file():
            self.columns, rows, torn = _whole_rows(self.path)
            self.rows = len(rows)
            if torn:
                self._write(rows)
        self._opened = True

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Adds one row; Lightning calls this."""
        self._open()
        row = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        row["step"] = self.rows if step is None else step
        fresh = sorted(set(row) - set(self.columns))
        if fresh or not self.columns:
            self.columns = sorted([*self.columns, *fresh])
            self._write(self._read())
        line = io.StringIO(newline="")
        csv.DictWriter(line, self.columns).writerow(row)
        with self.path.open("ab", buffering=0) as file:
            size, content = file.tell(), line.getvalue().encode()
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(size)
                raise
        self.rows += 1

    def rewind(self, rows: int, step: int) -> None:
        """Drops what a killed run logged after its checkpoint.

        Args:
            rows: how many rows there were when the checkpoint was written.
            step: its optimizer step; the epoch's own row, written just after the checkpoint, has a lower one and stays.
        """
        self._open()
        kept = [row for index, row in enumerate(self._read()) if index < rows or int(row["step"] or 0) < step]
        if len(kept) != self.rows:
            self._write(kept)

    def save(self) -> None:
        """Nothing is held back, so there is nothing to save."""

    def _read(self) -> list[dict[str, str]]:
        return _whole_rows(self.path)[1] if self.path.is_file() else []

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, text.getvalue())
        self.rows = len(rows)


def _whole_rows(path: Path) -> tuple[list[str], list[dict[str, str]], bool]:
    """The columns and the rows of a table, and whether something in it was cut short, which is left out."""
    content = path.read_bytes().decode(errors="replace")
    whole, _, rest = content.rpartition("\n")
    columns, *rows = list(csv.reader(io.StringIO(whole))) or [[]]
    good = [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]
    return columns, good, bool(rest) or len(good) < len(rows)


class MetricsCSV(CSVLogger):
    """Lightning's CSV logger on `folder/metrics.csv`, which it neither numbers by version nor empties.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(save_dir=folder, name="", version="")
        self._table: MetricsTable | None = None

    @property
    def log_dir(self) -> str:
        """The run folder itself."""
        return self.save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> MetricsTable:
        """The table; on other ranks than zero a dummy."""
        if self._table is None:
            self._table = MetricsTable(Path(self.save_dir) / "metrics.csv")
        return self._table

    @property
    def rows(self) -> int:
        """Rows on disk so far."""
        return self._table.rows if self._table is not None else 0

    @rank_zero_only
    def rewind(self, rows: int, step: int) -> None:
        """See `MetricsTable.rewind`."""
        self.experiment.rewind(rows, step)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Adds one row."""
        self.experiment.log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace | None = None) -> None:
        """Nothing: `config.yaml` beside it says more."""

    @rank_zero_only
    def save(self) -> None:
        """Nothing is held back."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing is held back."""


def last_values(folder: Path) -> dict[str, float]:
    """The last value of every column of a run's `metrics.csv`; nothing where there is none."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return {}
    _, rows, _ = _whole_rows(path)
    return {
        name: float(value) for row in rows for name, value in row.items() if value and name not in ("epoch", "step")
    }
