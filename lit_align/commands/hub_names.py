"""Names on the Hub in a stage's settings, with the commit that each of them means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lit_align import hub

MODELS = ("init_from", "model.init_from", "model.reference", "model.reward_model", "model.rewards")
DATA = ("data.trajectories", "data.also", "data.preferences")


def pin_names(config: Any, run: Path | None) -> None:
    """Replaces each `user/name` by `user/name@commit`, so that a run's `config.yaml` tells what it read.

    Args:
        config: The settings; changed in place.
        run: Folder of the run that is gone on with: it keeps the commits that it began with, though a branch has moved.
    """
    before = _read(run)
    for key in (*MODELS, *DATA):
        value = config.get(key)
        if value:
            kind: hub.RepoType = "dataset" if key in DATA else "model"
            config[key] = _pinned(value, _kept(_at(before, key)), kind)


def _pinned(value: Any, kept: dict[str, str], kind: hub.RepoType) -> Any:
    if isinstance(value, str):
        return kept.get(value) or hub.pin(value, kind)
    if isinstance(value, list):
        return [_pinned(each, kept, kind) for each in value]
    if isinstance(value, dict):  # a source of rewards and its weight
        return {_pinned(name, kept, kind): weight for name, weight in value.items()}
    return value


def _kept(value: Any) -> dict[str, str]:
    """`user/name` -> `user/name@commit`, of what an earlier start wrote."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | dict) else []
    return {name.partition("@")[0]: name for name in names if isinstance(name, str) and "@" in name}


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _read(run: Path | None) -> Any:
    try:
        return {} if run is None else yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
