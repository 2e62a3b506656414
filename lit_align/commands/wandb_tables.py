"""Tables and pictures for Weights & Biases: outcomes with intervals, over-optimisation, heatmaps, a whole report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_align.errors import UserError
from lit_align.evaluation.over_optimisation import STRETCH

OUTCOMES = ["agent", "outcome", "rate", "low", "high", "episodes"]
CURVE = ["where", "env_steps", "true_rate", "low", "high", "reward", "kl"]
RETURNS = ["agent", "mean", "std", "low", "high", "episodes"]
REWARDS = ["target", "start", "comparisons", "accuracy", "pairs"]
FILMS = 24
"""Videos of a report that are logged at the most."""


def outcomes(told: Mapping[str, Any]) -> Any:
    """How the last tenth of an alignment's iterations ended, with Wilson 95 % intervals.

    Args:
        told: What `over_optimisation.json` holds.
    """
    import wandb

    from lit_align.evaluation.intervals import wilson

    rows = []
    size = max(1, round(STRETCH * len(told["env_steps"])))
    episodes = np.array(told["episodes"] or [], dtype=float)[-size:]
    for name, rates in told["outcomes"].items():
        total = int(episodes.sum())
        if total:
            count = round(float((np.array(rates[-size:], dtype=float) * episodes).sum()))
            found = wilson(count, total)
            rows.append(["while training", name, found.value, found.low, found.high, total])
    return wandb.Table(columns=OUTCOMES, data=rows)


def over_optimisation(told: Mapping[str, Any]) -> Any:
    """Where an alignment's true rate (or the world's return, in the same column) was highest, and its end."""
    import wandb

    rows = []
    for where in ("peak", "last"):
        if one := told[where]:
            interval = one["interval"] or {}
            ends = [interval.get("low"), interval.get("high")]
            rows.append([where, one["env_steps"], one["true"], *ends, one["proxy"], one["kl"]])
    return wandb.Table(columns=CURVE, data=rows)


def heatmap(went: Sequence[tuple[Any, str]], env: str, path: Path) -> Path:
    """Draws where episodes went, onto the world's plan where it has one.

    Args:
        went: Positions `(T + 1, 3)` and outcome of each episode.
        env: Gymnasium id of the world.
        path: The PNG.
    """
    from lit_align.evaluation.heatmap import Routes, heatmaps
    from lit_align.evaluation.plan import plan_of

    counts = Counter(outcome for _, outcome in went)
    return heatmaps([Routes("last iteration", [positions for positions, _ in went], counts)], path, plan_of(env))


def picture(path: Path) -> Any:
    """A picture on disk."""
    import wandb

    return wandb.Image(str(path))


def results_tables(results: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of a `results.json`: how episodes ended, what they paid, and how often reward models are right."""
    import wandb

    from lit_align.evaluation.returns import pays

    ended = [
        [agent, outcome, rate["value"], rate["low"], rate["high"], entry["episodes"]]
        for agent, entry in results["agents"].items()
        for outcome, rate in entry["rates"].items()
    ]
    right = [
        [target, start, int(count), found["accuracy"], found["pairs"]]
        for target, starts in results.get("reward_models", {}).items()
        for start, counts in starts.items()
        for count, found in counts.items()
    ]
    paid = [
        [agent, *(entry["return"][key] for key in RETURNS[1:-1]), entry["episodes"]]
        for agent, entry in results["agents"].items()
        if pays(entry)
    ]
    tables = {"outcomes": wandb.Table(columns=OUTCOMES, data=ended)}
    tables |= {"returns": wandb.Table(columns=RETURNS, data=paid)} if paid else {}
    return tables | ({"reward_models": wandb.Table(columns=REWARDS, data=right)} if right else {})


def log_folder(folder: Path, mode: Literal["offline", "online"], name: str) -> str | None:
    """Logs the folder of a report or of an evaluation as a W&B run of its own: tables, pictures, videos.

    Args:
        folder: Has `results.json`, and may have PNGs and, anywhere below, MP4s.
        mode: `online`, or `offline` for `wandb sync`.
        name: Of the W&B run.

    Returns:
        The id of the run. None if W&B could not take it, which is a warning: the folder has all of it.

    Raises:
        UserError: There is no `results.json`.
    """
    from lit_align.commands.loggers import SECONDS, Wandb, wandb_settings
    from lit_align.stages.metrics_csv import MetricsCSV

    if not (folder / "results.json").is_file():
        raise UserError(f"there is no results.json in {folder}; expected the folder of a report or of an evaluation")
    results = json.loads((folder / "results.json").read_text())
    logger = Wandb(
        MetricsCSV(folder), lambda: 0.0, offline=mode == "offline", job_type="report", **wandb_settings(name, folder)
    )
    rows: dict[str, Any] = results_tables(results)
    rows |= {path.stem: picture(path) for path in sorted(folder.glob("*.png"))}
    logger.attempt("logging tables and pictures", lambda run: run.log(rows, step=0), SECONDS)
    films = sorted(path for path in folder.rglob("*.mp4") if "wandb" not in path.parts)[:FILMS]
    if films:
        logger.attempt("logging videos", lambda run: run.log({"videos": _videos(films, folder)}, step=0), SECONDS)
    found = None if logger.lost else str(logger.version)
    logger.close()
    return found


def _videos(films: Sequence[Path], folder: Path) -> list[Any]:
    import wandb

    return [wandb.Video(str(path), caption=str(path.relative_to(folder).with_suffix(""))) for path in films]
