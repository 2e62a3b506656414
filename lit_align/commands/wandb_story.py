"""What a run tells Weights & Biases beside its metrics: what it started from, what it leaves, tables and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch import Trainer

from lit_align.commands import hub_names
from lit_align.commands.loggers import SECONDS, Wandb, note_wandb, project
from lit_align.commands.run_folder import RunFolder
from lit_align.data.trajectory import ENDED, Trajectory
from lit_align.models.folder import CONFIG, WEIGHTS
from lit_align.rollout.callback import Spectator
from lit_align.sharing.what import MODELS

if TYPE_CHECKING:
    from lit_align.commands.stage import StageCLI

KEPT = "wandb_model"
"""The field of `run.json` that says which artifact a run's model is."""


class LastPlay(Spectator):
    """Keeps where the episodes of the newest iteration went, for the heatmap: those of the first process."""

    def __init__(self) -> None:
        self.went: list[tuple[Any, str]] = []

    def on_play(self, trainer: Trainer, trajectories: list[Trajectory], kind: str) -> None:
        """Positions `(T + 1, 3)` and outcome of each episode."""
        if kind == "iteration":
            self.went = [(one.positions, one.outcome or ENDED) for one in trajectories]


def begin(cli: StageCLI) -> str | None:
    """Tells the configuration and what the run starts from; the first process calls it when training begins.

    Returns:
        The id of the W&B run; None without one.
    """
    for logger in _wandb(cli.trainer):
        logger.keep_open = True
        config = yaml.safe_load(cli.resolved())
        logger.attempt("telling the configuration", partial(_configure, config), SECONDS)
        for path, kept in started_from(cli.config).items():
            logger.attempt(f"telling that it uses {path}", partial(_use_model, path, kept), SECONDS)
        for path in folders(cli.config, hub_names.DATA) if cli.config.wandb_data else ():
            logger.attempt(f"telling that it uses {path}", partial(_use_data, path), SECONDS)
    return note_wandb(cli.trainer)


def leave(cli: StageCLI) -> None:
    """Logs what the run leaves: its model, and of an alignment tables and pictures; after they are on disk."""
    for logger in _wandb(cli.trainer):
        logger.attempt("logging the model", partial(_leave_model, cli.folder), SECONDS)
        if cli.verb == "align":
            logger.attempt("logging tables and pictures", partial(_leave_play, cli, logger.row), SECONDS)


def close(cli: StageCLI, success: bool) -> None:
    """Ends the W&B run."""
    for logger in _wandb(cli.trainer):
        logger.close(success)


def _wandb(trainer: Trainer) -> list[Wandb]:
    return [logger for logger in trainer.loggers if isinstance(logger, Wandb)]


def started_from(config: Any) -> dict[Path, dict[str, Any]]:
    """Folders of models that a run starts from and that runs of ours logged, with what their `run.json` kept of it."""
    found = {}
    for path in folders(config, hub_names.MODELS):
        kept = RunFolder(path.parent).read_run().get(KEPT)
        if isinstance(kept, dict) and kept.get("name") and (path / CONFIG).is_file():
            found[path] = kept
    return found


def folders(config: Any, keys: tuple[str, ...]) -> list[Path]:
    """The folders that are there, of those that a configuration names under some keys."""
    named: list[str] = []
    for key in keys:
        value = config.get(key)
        named += [value] if isinstance(value, str) else list(value or ())
    return [Path(name) for name in dict.fromkeys(named) if Path(name).is_dir()]


def model_artifact(folder: Path, name: str) -> Any:
    """A model's folder as an artifact; what its card says is not part of it, so the same weights are the same one."""
    import wandb

    info = json.loads((folder / CONFIG).read_text())
    artifact = wandb.Artifact(_clean(name), type="model", metadata=info.get("info") or {})
    for file in (CONFIG, WEIGHTS):
        if (folder / file).is_file():
            # Immutable: what is here when it is sent is what is logged, and nothing is copied to the home folder.
            artifact.add_file(str(folder / file), name=file, policy="immutable", skip_cache=True)
    return artifact


def _configure(config: Mapping[str, Any], run: Any) -> None:
    run.config.update(dict(config), allow_val_change=True)


def _use_model(folder: Path, kept: Mapping[str, Any], run: Any) -> None:
    """Says that the run uses the artifact that this model was logged as, if it is the same still.

    By its contents, which W&B knows again: `run.use_artifact` waits for the server, and does not work offline.
    """
    artifact = model_artifact(folder, kept["name"])
    if artifact.digest == kept.get("digest"):
        run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)


def _use_data(folder: Path, run: Any) -> None:
    """Says that the run uses a data set: where it lies, and nothing of what is in it."""
    import wandb

    artifact = wandb.Artifact(_clean(folder.name), type="dataset")
    artifact.add_reference(folder.resolve().as_uri(), checksum=False)
    run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)


def _leave_model(folder: RunFolder, run: Any) -> None:
    """Logs the model once: a run that is resumed and leaves the same one logs nothing."""
    path = next((folder.path / kind for kind in MODELS if (folder.path / kind / CONFIG).is_file()), None)
    if path is None:
        return
    artifact = model_artifact(path, folder.path.resolve().name)
    kept = {"name": artifact.name.partition(":")[0], "digest": artifact.digest, "run": run.id, "project": project()}
    if folder.read_run().get(KEPT) == kept:
        return
    run.log_artifact(artifact, aliases=["latest", f"run-{run.id}"])
    folder.write_run(**{KEPT: kept})


def _leave_play(cli: StageCLI, row: int, run: Any) -> None:
    from lit_align.commands import wandb_tables
    from lit_align.evaluation import over_optimisation

    folder = cli.folder.path
    logged: dict[str, Any] = {}
    if (folder / over_optimisation.NUMBERS).is_file():
        told = json.loads((folder / over_optimisation.NUMBERS).read_text())
        logged |= {"outcomes": wandb_tables.outcomes(told), "over_optimisation": wandb_tables.over_optimisation(told)}
    if (folder / over_optimisation.PICTURE).is_file():
        logged["over_optimisation_curve"] = wandb_tables.picture(folder / over_optimisation.PICTURE)
    play = next((each for each in cli.trainer.callbacks if isinstance(each, LastPlay)), None)  # type: ignore[attr-defined]
    if play is not None and any(positions.any() for positions, _ in play.went):
        drawn = wandb_tables.heatmap(play.went, cli.datamodule.env, folder / "routes.png")
        logged["routes"] = wandb_tables.picture(drawn)
    if logged:
        run.log(logged, step=row)


def _clean(name: str) -> str:
    """A name that W&B takes for an artifact."""
    return re.sub(r"[^\w.-]+", "_", name)[:120] or "model"
