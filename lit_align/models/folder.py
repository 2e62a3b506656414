"""An agent or a reward model as a folder: `config.json` and `model.safetensors`, nothing that can run code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lit_align.errors import UserError

SCHEMA = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_folder(folder: str | Path, content: dict[str, Any], module: nn.Module) -> None:
    """Writes a model's folder aside and moves it into place, so that a reader never meets half of one."""
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()},
            aside / WEIGHTS,
            metadata={"format": "pt"},
        )
        (aside / CONFIG).write_text(json.dumps({"schema": SCHEMA, **content}, indent=2) + "\n")
        aside.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            os.replace(target, old / target.name)
            os.replace(aside, target)
            shutil.rmtree(old)
        else:
            os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_config(folder: str | Path, kind: str | None = None) -> dict[str, Any]:
    """The checked content of a model folder's `config.json`.

    Raises:
        ValueError: The folder or file is missing, is not JSON, or is of another kind or a newer schema.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        hint = [
            str(Path(folder) / name) for name in ("agent", "reward_model") if (Path(folder) / name / CONFIG).is_file()
        ]
        more = (
            f"; did you mean {hint[0]}?"
            if hint
            else "; expected a folder that a stage left (its agent/ or reward_model/)"
        )
        raise UserError(f"no {CONFIG} in '{folder}'{more}")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} has schema {found!r}; this version reads schema {SCHEMA}")
    if kind is not None and content.get("kind") != kind:
        raise UserError(f"{path} is of kind {content.get('kind')!r}; expected {kind!r}")
    return content


def fingerprint(folder: str | Path) -> str:
    """A digest of what decides a model's output: its architecture and weights, not the facts that travel with them.

    Raises:
        ValueError: See `read_config`; or the weights are missing.
    """
    content = {key: value for key, value in read_config(folder).items() if key != "info"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    try:
        with (Path(folder) / WEIGHTS).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    except FileNotFoundError as error:
        raise UserError(f"no {WEIGHTS} in '{folder}'; a model's folder holds {CONFIG} and {WEIGHTS}") from error
    return digest.hexdigest()


def load_folder(
    folder: str | Path, kind: str, build: Callable[[dict[str, Any]], nn.Module], random_init: bool
) -> nn.Module:
    """Builds the module that `config.json` describes and fills in its weights (unless `random_init`).

    Raises:
        ValueError: See `read_config`; or the weights are missing, unreadable or do not fit.
    """
    content = read_config(folder, kind)
    try:
        module = build(content)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{Path(folder) / CONFIG} lacks a field or holds a wrong type: {type(error).__name__}: {error}"
        ) from error
    if random_init:
        return module
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise UserError(f"no {WEIGHTS} in '{folder}'; a model's folder holds {CONFIG} and {WEIGHTS}")
    try:
        module.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {CONFIG} beside it: {str(error).splitlines()[-1].strip()}") from error
    return module
