"""Files and folders that a stage's options and config files name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_align.files import MAX_YAML, yaml_mapping_of
from lit_align.hub import SOURCE

NOTES = ("README.md", SOURCE)
"""Files beside a model or data that tell of them, and change nothing of what they are."""
WRITTEN = ("out", "default_root_dir", "save_dir", "dirpath")
"""Last parts of the keys of a config file that say where something is written; it is no input."""


def named_in(value: Any) -> list[str]:
    """Every string in nested lists and dicts, keys and those in a string that is a YAML list or mapping, too."""
    if isinstance(value, str):
        return [value, *named_in(_parsed(value))]
    if isinstance(value, Mapping):
        return [word for pair in value.items() for part in pair for word in named_in(part)]
    return [word for part in value for word in named_in(part)] if isinstance(value, (list, tuple)) else []


def named_in_files(files: Iterable[str]) -> list[str]:
    """What config files name, but not where they have something written."""
    return [word for file in files for word in named_in(_without_written(yaml_mapping_of(file)))]


def outside_input(word: str, out: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that a word names, if it is a file or folder outside the pipeline's own."""
    path = Path(word)
    try:
        if not word or not path.exists() or path.resolve().is_relative_to(out.resolve()):
            return []
    except (OSError, ValueError):  # a text that is too long for a name, or has a zero in it
        return []
    # A word without a slash may just happen to be a folder's name: it counts if trajectories or a model lie there.
    plain = "/" not in word and path.is_dir()
    if plain and not any((path / name).is_file() for name in ("meta.json", "config.json")):
        return []
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    # Neither caches, nor what `push` and a later card write beside a model.
    shown = [p for p in files if not any(part.startswith(".") or part in NOTES for part in p.relative_to(path).parts)]
    return [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in shown]


def _parsed(word: str) -> Any:
    """What a word of the command line reads as, if it is a list or a mapping."""
    import yaml

    # With an anchor (`&`) it may hold itself, or stand for more than there is room for.
    if not word.lstrip().startswith(("{", "[")) or "&" in word or len(word) > MAX_YAML:
        return None
    try:
        content = yaml.safe_load(word)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    return content if isinstance(content, (dict, list)) else None


def _without_written(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if str(key).split(".")[-1] not in WRITTEN}
        return {key: _without_written(each) for key, each in kept.items()}
    return [_without_written(each) for each in value] if isinstance(value, list) else value
