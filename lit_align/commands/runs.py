"""`lit-align runs`: which runs there are, how far they came and how they ended. Imports nothing heavy."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from lit_align.commands.environment import is_gone
from lit_align.errors import UserError
from lit_align.files import mapping_of

COLUMNS = ("folder", "stage", "step", "state", "seconds", "parent", "headline")
SKIPPED = {"checkpoints", "agent", "reward_model", "wandb", "tensorboard", "videos"}
"""Folders inside a run in which no other run is."""
UNENDED = ("running", "killed", "unknown")
"""States in which a run has not written how far it came."""
TAIL = 65536
"""Bytes of `metrics.csv` that are read from its end."""


def run(folders: list[str] | None = None, as_json: bool = False) -> None:
    """Lists runs, one a line, with their stage, step, state, seconds, parent and headline.

    The state is what the run wrote last: running, finished, failed, interrupted (Ctrl-C, SIGTERM) or preempted (by
    Slurm); a run that says it runs, and whose process is gone, was killed. Whether it is gone on another machine, Slurm
    says if it was a job; else the state is unknown.

    Args:
        folders: runs, or folders that hold some at any depth; `outputs` if not given.
        as_json: a JSON list in place of the table.
    """
    missing = [folder for folder in folders or () if not Path(folder).is_dir()]
    if missing:
        raise UserError(f"there is no folder '{missing[0]}' (looked in {Path.cwd()}); expected folders with runs")
    found = [describe(path) for folder in folders or ["outputs"] for path in find(Path(folder))]
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    sys.stdout.write(table(found) if found else f"no runs in {', '.join(folders or ['outputs'])}\n")


def find(folder: Path) -> Iterator[Path]:
    """The run folders in a folder, itself included, in the order of their names."""
    for path, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith(".") and name not in SKIPPED)
        if "run.json" in files:
            yield Path(path)


def describe(folder: Path) -> dict[str, Any]:
    """What a run's folder tells of it; what it does not tell is None."""
    facts = mapping_of(folder / "run.json")
    last = last_row(folder / "metrics.csv")
    state = facts.get("state", "unknown")
    if state == "running":
        state = {True: "killed", False: "running", None: "unknown"}[is_gone(facts.get("process") or {})]
    seconds = facts.get("seconds")
    if state in UNENDED:  # as far as it was seen to come
        seconds = _number(last.get("seconds"))
    step = facts.get("steps") if state not in UNENDED else None
    return {
        "folder": str(folder),
        "stage": facts.get("stage"),
        "step": step if step is not None else _next(last.get("step")),
        "state": state,
        "seconds": seconds,
        "parent": facts.get("parent"),
        "headline": _headline(folder),
        "error": facts.get("error"),
        "starts": facts.get("starts"),
        "began": facts.get("began"),
    }


def table(found: list[dict[str, Any]]) -> str:
    """Runs as lines of aligned columns."""
    lines = [[name.upper() for name in COLUMNS]]
    for each in found:
        shown = {name: "-" if each[name] is None else str(each[name]) for name in COLUMNS}
        shown["seconds"] = "-" if each["seconds"] is None else f"{each['seconds']:.0f}"
        if each["state"] == "failed" and each["error"]:
            shown["headline"] = each["error"]
        lines.append([shown[name] for name in COLUMNS])
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS) - 1)]
    padded = ["  ".join([*(f"{text:<{n}}" for text, n in zip(line, widths, strict=False)), line[-1]]) for line in lines]
    return "\n".join(line.rstrip() for line in padded) + "\n"


def last_row(path: Path) -> dict[str, str]:
    """The last value of each column near the end of a `metrics.csv`, whose last line may be cut short."""
    try:
        with path.open("rb") as file:
            header = file.readline().decode()
            file.seek(max(len(header), os.path.getsize(path) - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    columns = next(csv.reader([header]), [])
    values: dict[str, str] = {}
    for row in csv.reader(lines):
        if len(row) == len(columns):
            values |= {name: value for name, value in zip(columns, row, strict=True) if value}
    return values


def run_command(argv: list[str]) -> None:
    """`lit-align runs ARGV`."""
    run(*_parse(argv))


def check_command(argv: list[str]) -> None:
    """Raises a UserError if `argv` does not parse."""
    _parse(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"runs: {message} (`lit-align runs --help`)")


def _parse(argv: list[str]) -> tuple[list[str] | None, bool]:
    parser = _Parser(prog="lit-align runs", description="Lists runs.", allow_abbrev=False)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="a run, or what holds some; default: outputs")
    parser.add_argument("--json", action="store_true", help="a JSON list in place of the table")
    options = parser.parse_args(argv)
    return options.folders or None, options.json


def _headline(folder: Path) -> str | None:
    try:
        return (folder / "headline.txt").read_text().strip() or None
    except OSError:
        return None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _next(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number) + 1  # a row's step counts from 0
