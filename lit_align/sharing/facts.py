"""What a folder tells of itself: JSON, YAML and the header of the weights. Imports nothing heavy."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_align.files import mapping_of, yaml_mapping_of
from lit_align.sharing.what import MODELS, Shared

_HEADER_BYTES = 100_000_000
"""The longest header that safetensors itself reads."""


@dataclass(frozen=True)
class Facts:
    """What is known of a model and of the run that left it; what is not there is empty.

    Attributes:
        name: Of the run's folder, or of the model's own where there is no run.
        content: `config.json`.
        config: `config.yaml`, the run's settings.
        environment: `environment.json`, of the last start.
        run: `run.json`.
        parameters: Numbers in the weights; None where they cannot be read.
        folder: Of the model.
    """

    name: str
    folder: Path
    content: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None

    @property
    def info(self) -> dict[str, Any]:
        """The facts that travel with the model."""
        return mapping(self.content.get("info"))

    @property
    def stage(self) -> str | None:
        """The stage that left it."""
        return text_or_none(self.info.get("stage"))

    @property
    def command(self) -> list[str]:
        """The command of its run; empty where it is not known."""
        words = self.environment.get("command")
        return [str(word) for word in words] if isinstance(words, list) else []

    def setting(self, *path: str) -> Any:
        """A value of `config.yaml` at a path of keys; None where there is none."""
        found: Any = self.config
        for key in path:
            found = mapping(found).get(key)
        return found


def facts_of(folder: Path, run: Path | None) -> Facts:
    """Reads a model's folder and the run around it."""
    around = None if run is None else run.absolute()
    return Facts(
        name_of(folder, run),
        folder.absolute(),
        mapping_of(folder / "config.json"),
        {} if around is None else yaml_mapping_of(around / "config.yaml"),
        {} if around is None else mapping_of(around / "environment.json"),
        {} if around is None else mapping_of(around / "run.json"),
        count_parameters(folder / "model.safetensors"),
    )


def name_of(folder: Path, run: Path | None) -> str:
    """What people call it: the run's folder, or where there is none the folder itself."""
    if run is not None:
        return run.absolute().name
    at = folder.absolute()
    return at.parent.name if at.name in MODELS else at.name


def shared_name(shared: Shared, repo_id: str | None) -> str:
    """What something that is shared is called."""
    return repo_id.split("@")[0].split("/")[-1] if repo_id else name_of(shared.folder, shared.run)


def count_parameters(weights: Path) -> int | None:
    """Numbers in a safetensors file, buffers among them, by its header alone."""
    try:
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _HEADER_BYTES else {}
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__") or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def strings(value: Any) -> list[str]:
    """A list of texts, from one text, several or none."""
    if isinstance(value, str):
        return [value]
    return [str(each) for each in value] if isinstance(value, list) else []


def text_or_none(value: Any) -> str | None:
    """The value if it is a text with something in it."""
    return value if isinstance(value, str) and value.strip() else None


def number_or_none(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Beyond the largest float an int is no number that a card could show.
    return value if abs(value) <= sys.float_info.max else None
