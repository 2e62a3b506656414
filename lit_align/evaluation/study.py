"""A study: pipelines side by side, its cells, whose numbers are gathered into one file.

A cell is a folder that `lit-align pipeline` left, called `<kind>_<seed>`, such as `headline_0`; `docs/study.md` says
what the kinds are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_align.errors import UserError
from lit_align.evaluation.gather import Gathered, gather
from lit_align.evaluation.over_optimisation import NUMBERS, numbers, watch_in
from lit_align.files import mapping_of, write_whole

SCHEMA = 1
STATE = ".pipeline"
WITH_ROUTES = ("base", "headline", "middle", "realign")
ROUTES, STRIDE = 60, 2
"""Episodes of an agent whose routes are kept for the heatmaps, and of those every so many positions."""

Cell = dict[str, Any]


def name_of(cell: str) -> tuple[str, int | None]:
    """Kind and seed of a cell by its folder's name: `curves_left_50_0` is of the kind `curves_left_50`."""
    found = re.fullmatch(r"(.+)_(\d+)", cell)
    return (found[1], int(found[2])) if found else (cell, None)


def gather_study(folder: Path) -> dict[str, Any]:
    """Reads all cells of a study, whole or in part.

    Args:
        folder: That of the study.

    Returns:
        `schema`, `environment` and `cells`, by name (see `read_cell`).

    Raises:
        UserError: There is no cell in the folder.
    """
    folders = sorted(path.parent for path in folder.glob(f"*/{STATE}") if path.is_dir())
    if not folders:
        raise UserError(
            f"found no cell in {folder}; expected folders that `lit-align pipeline` left, such as {folder}/base_0"
        )
    cells = {path.name: read_cell(path) for path in folders}
    environments = sorted({cell["environment"] for cell in cells.values() if cell["agents"]})
    if len(environments) > 1:
        raise UserError(f"the cells of {folder} are of several worlds, {', '.join(environments)}; expected one")
    return {"schema": SCHEMA, "environment": environments[0] if environments else "", "cells": cells}


def read_cell(folder: Path) -> Cell:
    """Reads what a cell left.

    Returns:
        `kind` and `seed`; `agents` and `ablations` as in a report's results.json; `reward_models` by target, start and
        number of comparisons; `alignments`, stage -> the numbers of its over_optimisation.json; `rollouts`, stage ->
        its trajectories' `episodes`, `steps` and `outcomes`; `routes`, agent -> positions; `stages`, stage -> seconds;
        and `lacks`, the stages that began and did not finish.
    """
    found = gather(folder)
    kind, seed = name_of(folder.name)
    states = {path.stem: mapping_of(path) for path in sorted((folder / STATE).glob("*.json"))}
    done = {name: state for name, state in states.items() if state.get("state") == "done"}
    return {
        "kind": kind,
        "seed": seed,
        "environment": found.results["environment"],
        "agents": {name: _short(entry) for name, entry in found.results["agents"].items()},
        "ablations": {name: _short(entry) for name, entry in found.results.get("ablations", {}).items()},
        "reward_models": found.results["reward_models"],
        "alignments": _alignments(found),
        "rollouts": {
            path.parent.name: {key: meta[key] for key in ("episodes", "steps", "outcomes")}
            for path in sorted(folder.glob("*/meta.json"))
            if "steps" in (meta := mapping_of(path))
        },
        "routes": _routes(found) if kind in WITH_ROUTES else {},
        "stages": {name: state["seconds"] for name, state in done.items()},
        "lacks": sorted(states.keys() - done.keys()),
    }


def write_study(study: Mapping[str, Any], path: Path) -> None:
    """Writes the numbers of a study as JSON, lists of numbers on one line."""
    write_whole(path, as_text(study))


def as_text(content: Mapping[str, Any]) -> str:
    """JSON that people open: lists of numbers stand on one line."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[\s+([-\d.,\seE+nul]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text) + "\n"


def read_study(path: Path) -> dict[str, Any]:
    """Reads what `write_study` wrote.

    Raises:
        UserError: It is not that.
    """
    content = mapping_of(path)
    if content.get("schema") != SCHEMA or not isinstance(content.get("cells"), dict):
        raise UserError(f"{path} does not hold a study's results; make it with `lit-align study`")
    return content


def _short(entry: Any) -> Any:
    """An agent's numbers, its episodes' seeds as a range."""
    seeds = entry.get("episode_seeds") if isinstance(entry, Mapping) else None
    if not seeds or list(seeds) != list(range(seeds[0], seeds[0] + len(seeds))):
        return entry
    return {**entry, "episode_seeds": {"first": seeds[0], "count": len(seeds)}}


def _alignments(found: Gathered) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, columns in found.metrics.items():
        told = mapping_of(found.folder / name / NUMBERS)
        if not told:
            watch = watch_in(found.folder / name, columns)
            told = {} if watch is None else numbers(watch)
        if told:
            made[name] = told
    return made


def _routes(found: Gathered) -> dict[str, list[list[int]]]:
    """Agent -> of the first episodes the positions, x, y, x, y, ..., in whole units of the world."""
    made = {}
    for name, played in found.episodes.items():
        if name in found.results["agents"]:
            paths = [np.round(np.concatenate([path[:-1:STRIDE, :2], path[-1:, :2]])) for path in played.positions]
            made[name] = [path.astype(int).ravel().tolist() for path in paths[:ROUTES]]
    return made
