"""Writing a file whole or not at all, and reading one that may not be there, or was written by anybody."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lit_align.errors import UserError

MAX_YAML, MAX_VALUES, MAX_DEPTH = 4 * 2**20, 200_000, 50
"""Bytes of a configuration, values in it where aliases are written out, and lists or objects inside each other."""


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes beside `path` and renames, so that a reader meets the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        # `mkstemp` makes files that only their owner reads; a result is read like any other file.
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def mapping_of(path: str | Path) -> dict[str, Any]:
    """A JSON file that holds an object; an empty one where it cannot be read or holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def yaml_mapping_of(path: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; an empty one where it cannot be read or holds something else."""
    try:
        content = read_yaml(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def empty_place(path: str | Path, said: str) -> Path:
    """Where a folder may be made: nothing is there, or an empty folder; of a link, what it leads to.

    Args:
        path: The folder that is to be made.
        said: What the error calls it.

    Raises:
        UserError: Something is there.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{said} is there already; expected a folder that is empty or does not exist")
    return target


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A folder on the disk of a target, which may not be there yet, for what is then put in its place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        yield Path(scratch)


def put_folder(made: Path, target: Path) -> None:
    """Moves a folder to an `empty_place`."""
    if target.exists():
        target.rmdir()
    os.replace(made, target)


def replace_folder(made: Path, target: Path) -> None:
    """Moves a folder that was made `beside` its target into its place; what was there ends with the scratch folder."""
    old = made.with_name(f"{made.name}.old")
    try:
        if target.exists():
            os.replace(target, old)
        os.replace(made, target)
    except BaseException:  # else what was there would end with the scratch folder too
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file, small enough that others may read it too: aliases may stand for billions of values.

    Raises:
        UserError: It is not valid YAML, not UTF-8, or stands for too much.
    """
    import yaml

    try:
        size = os.path.getsize(path)
        if size > MAX_YAML:
            raise UserError(f"{path} has {size} bytes; expected {MAX_YAML} at most")
        text = Path(path).read_bytes().decode()
        content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # libyaml's own is ten times as fast
        _weigh(content, {}, 0)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: it is not text in UTF-8 ({error})") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; expected {MAX_DEPTH} levels at most") from error
    # A date that is none, and a whole number of thousands of digits, are ValueErrors; a key that is a list a TypeError.
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except _TooMuch as error:
        raise UserError(f"{path} {error}") from error
    return content


class _TooMuch(Exception):
    """What a file stands for is more than a configuration is."""


def _weigh(content: Any, known: dict[int, int | None], depth: int) -> int:
    """How many values there are where every alias is written out; each list and object is looked at once."""
    if not isinstance(content, (dict, list, tuple, set)):
        return 1
    key = id(content)
    if key in known:
        weight = known[key]
        if weight is None:
            raise _TooMuch("holds an alias of what it stands in; expected no circles")
        return weight
    if depth > MAX_DEPTH:
        raise _TooMuch(f"is nested too deeply; expected {MAX_DEPTH} levels at most")
    known[key] = None
    below = content.values() if isinstance(content, dict) else content
    weight = known[key] = 1 + sum(_weigh(each, known, depth + 1) for each in below)
    if weight > MAX_VALUES:
        raise _TooMuch(f"stands for more than {MAX_VALUES} values, aliases written out; expected fewer")
    return weight
