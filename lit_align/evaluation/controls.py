"""Which evaluations of a run are its headline, and what the others are called: blanked frames, other worlds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lit_align.errors import UserError
from lit_align.evaluation.results import OTHER_WORLD, AgentResult
from lit_align.files import read_yaml


class Controls:
    """Tells a run's controls from its headline.

    A world made with other arguments is another world. The run's own is the one that its alignments played in, or,
    where nothing was aligned, that of the evaluations with the fewest arguments. Other places and skies of the island
    are never the run's own.

    Args:
        aligned: `env_args` of the run's alignments.
        evaluated: Entries of all its evaluations.
    """

    def __init__(self, aligned: Iterable[Mapping[str, Any]], evaluated: Iterable[AgentResult]) -> None:
        self._own = list(aligned)
        if not self._own:
            told = [entry.get("env_args", {}) for entry in evaluated if not entry.get("blank")]
            self._own = [min(told, key=len)] if told else []

    def words(self, entry: AgentResult) -> list[str]:
        """What an agent was evaluated under, in words for its name: `blank`, `away`, `max-steps-60`; none: headline."""
        changes = dict(entry.get("env_args", {}))
        words = ["blank"] * bool(entry.get("blank"))
        words += [str(changes.pop(name)) for name in OTHER_WORLD if name in changes]
        if not any(_within(changes, own) for own in self._own or [{}]):
            words += [re.sub(r"[^\w.]+|_", "-", f"{name}-{value}") for name, value in sorted(changes.items())]
        return words

    def name(self, name: str, entry: AgentResult) -> str:
        """An agent's name with these words, each once."""
        return "_".join([name, *(word for word in self.words(entry) if word not in name.split("_"))])


def _within(changes: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    return all(name in own and own[name] == value for name, value in changes.items())


def aligned_in(folder: Path) -> list[dict[str, Any]]:
    """The `env_args` of every alignment in a pipeline's folder, as the `config.yaml` of its run has them."""
    found = []
    for path in sorted(folder.glob("*/config.yaml")):
        try:
            content = read_yaml(path)
        except UserError:
            continue
        data = content.get("data") if isinstance(content, Mapping) else None
        if isinstance(data, Mapping) and "env" in data:
            found.append(dict(data.get("env_args") or {}))
    return found
