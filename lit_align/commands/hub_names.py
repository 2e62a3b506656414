"""Names on the Hub in a stage's settings, with the commit that each of them means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_align import hub
from lit_align.files import yaml_mapping_of

MODELS = ("init_from", "model.init_from", "model.reference", "model.reward_model", "model.rewards")
DATA = ("data.trajectories", "data.also", "data.preferences")


def pin_names(config: Any, run: Path | None) -> None:
    """Replaces each `user/name` by `user/name@commit`, so that a run's `config.yaml` tells what it read.

    Args:
        config: The settings; changed in place.
        run: Folder of the run that is gone on with: it keeps the commits that it began with, though a branch has moved.
    """
    before = {} if run is None else yaml_mapping_of(run / "config.yaml")
    pins: dict[tuple[str, hub.RepoType], str] = {}
    for key in (*MODELS, *DATA):
        value = config.get(key)
        if value:
            kind: hub.RepoType = "dataset" if key in DATA else "model"
            config[key] = _pinned(value, _kept(_at(before, key)), kind, pins)


def _pinned(value: Any, kept: dict[str, str], kind: hub.RepoType, pins: dict[tuple[str, hub.RepoType], str]) -> Any:
    if isinstance(value, str):
        if value in kept:
            return kept[value]
        if (value, kind) not in pins:  # a name that is written twice means one commit, though its branch may move
            pins[value, kind] = hub.pin(value, kind)
        return pins[value, kind]
    if isinstance(value, list):
        return [_pinned(each, kept, kind, pins) for each in value]
    if isinstance(value, dict):  # a source of rewards and its weight
        return {_pinned(name, kept, kind, pins): weight for name, weight in value.items()}
    return value


def _kept(value: Any) -> dict[str, str]:
    """`user/name` -> `user/name@commit`, of what an earlier start wrote."""
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | dict) else []
    return {name.partition("@")[0]: name for name in names if isinstance(name, str) and "@" in name}


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
