"""An agent or a reward model as a folder: `config.json` and `model.safetensors`, nothing that can run code.

A folder is one on this disk, or `user/name` on the Hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lit_align import hub
from lit_align.errors import UserError, did_you_mean, shortly
from lit_align.files import beside, replace_folder
from lit_align.models.room import sketch

SCHEMA = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_CONFIG = 16 * 2**20
"""Bytes of a `config.json`, many times what one has."""

_SAME: dict[str, type] = {"schema": int, "kind": str, "backbone": dict}
FIELDS: dict[str, dict[str, type]] = {
    "agent": {**_SAME, "actions": dict, "policy": dict, "info": dict},
    "reward_model": {**_SAME, "heads": int, "readout": str, "info": dict},
}
"""What a `config.json` holds, by the model's kind."""

OPTIONAL = {"policy", "info"}


def save_folder(folder: str | Path, content: dict[str, Any], module: nn.Module) -> None:
    """Writes a model's folder aside and moves it into place, so that a reader never meets half of one."""
    target = Path(folder)
    with beside(target) as scratch:
        made = scratch / "model"
        made.mkdir()
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()},
            made / WEIGHTS,
            metadata={"format": "pt"},
        )
        (made / CONFIG).write_text(json.dumps({"schema": SCHEMA, **content}, indent=2) + "\n")
        replace_folder(made, target)


def read_config(folder: str | Path, kind: str | None = None) -> dict[str, Any]:
    """The checked content of a model folder's `config.json`; what is nested in it is checked by who reads it.

    Raises:
        ValueError: The folder or file is missing, is not JSON, is of another kind or a newer schema, or holds an
            unknown key or a wrong type; or a repository on the Hub cannot be had (see `lit_align.hub.fetch`).
    """
    path = hub.fetch(folder) / CONFIG
    if not path.is_file():
        hint = [
            str(Path(folder) / name) for name in ("agent", "reward_model") if (Path(folder) / name / CONFIG).is_file()
        ]
        more = (
            f"; did you mean {hint[0]}?"
            if hint
            else "; expected a folder that a stage left (its agent/ or reward_model/), or user/name on the Hub"
        )
        lacks = f"no {CONFIG} in '{folder}'" if path.parent.exists() else f"there is no folder '{folder}'"
        raise UserError(lacks + more)
    content = _read_json(path)
    if not isinstance(content, dict) or type(content.get("schema")) is not int or content["schema"] != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} has schema {shortly(found)}; this version reads schema {SCHEMA}")
    found = content.get("kind")
    if not isinstance(found, str) or found not in FIELDS or (kind is not None and found != kind):
        expected = repr(kind) if kind else " or ".join(map(repr, FIELDS))
        raise UserError(f"{path} is of kind {shortly(found)}; expected {expected}")
    _check_fields(content, FIELDS[found], path)
    return content


def _read_json(path: Path) -> Any:
    if path.stat().st_size > MAX_CONFIG:
        raise UserError(f"{path} has {path.stat().st_size} bytes; expected {MAX_CONFIG} at most")
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # also text that is not UTF-8, and whole numbers of thousands of digits
        raise UserError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be a model's config") from error


def _check_fields(content: dict[str, Any], fields: dict[str, type], path: Path) -> None:
    unknown = sorted(set(content) - set(fields))
    if unknown:
        key = unknown[0]
        raise UserError(
            f"{path} holds the unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(shortly, unknown[:5]))}"
            f"{did_you_mean(key, fields) or '; known are ' + ', '.join(fields)}"
        )
    for key, kind in fields.items():
        if key not in content:
            if key not in OPTIONAL:
                raise UserError(f"{path} lacks the key {key!r}")
        elif not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise UserError(f"{key!r} in {path} is {shortly(content[key])}; expected {_JSON[kind]}")


_JSON = {dict: "an object", int: "a whole number", str: "a text"}


def fingerprint(folder: str | Path) -> str:
    """A digest of what decides a model's output: its architecture and weights, not the facts that travel with them.

    Raises:
        ValueError: See `read_config`; or the weights are missing.
    """
    folder = hub.fetch(folder)
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
    folder = hub.fetch(folder)
    content = read_config(folder, kind)
    if not random_init:
        # Before the module takes memory: what a made-up config asks for may be more than there is.
        _check_weights(folder, _built(folder, lambda: sketch(lambda: build(content))))
    module = _built(folder, lambda: build(content))
    if random_init:
        return module
    path = folder / WEIGHTS
    try:
        module.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {CONFIG} beside it: {str(error).splitlines()[-1].strip()}") from error
    return module


def _built(folder: Path, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder / CONFIG} lacks a field or holds a wrong type: {type(error).__name__}: {error}"
        ) from error


def _check_weights(folder: Path, sketched: nn.Module) -> None:
    """Raises UserError unless the safetensors file holds every tensor of the module, and no other."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"no {WEIGHTS} in '{folder}'; a model's folder holds {CONFIG} and {WEIGHTS}")
    wanted = {name: (list(tensor.shape), tensor.dtype) for name, tensor in sketched.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118  it is no dict
                part = file.get_slice(name)
                found[name] = (part.get_shape(), _DTYPES.get(part.get_dtype(), part.get_dtype()))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file: {error}; it was cut short or is of another kind: fetch or "
            "write it again"
        ) from error
    wrong = [f"it lacks the tensor {name}" for name in wanted if name not in found]
    wrong += [
        f"it holds the tensor {shortly(name)[1:-1]}, which is none of the model's"
        for name in found
        if name not in wanted
    ]
    for name in (name for name in wanted if name in found):
        (shape, dtype), (there, kind) = wanted[name], found[name]
        floats = dtype.is_floating_point and isinstance(kind, torch.dtype) and kind.is_floating_point
        if shape != there:
            wrong.append(f"the tensor {name} is of shape {there}, expected {shape}")
        elif dtype != kind and not floats:
            wrong.append(f"the tensor {name} is of type {kind}, expected {dtype}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{path} does not fit {CONFIG} beside it: {wrong[0]}{more}")


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types as safetensors names them; the rest are none of a model's."""
