"""What commands call an agent, and which frames they have a world draw for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_align.hub import is_id


def stage_of(folder: str | Path) -> str:
    """The stage that left an agent's folder, by the run's folder."""
    path = Path(folder).resolve()
    return path.parent.name if path.name == "agent" else path.name


def title_of(agent: str) -> str:
    """The stage that made an agent's folder; of one on the Hub its name, with the revision if one is named."""
    return agent.partition("/")[2].replace("/", "-") if is_id(agent) else stage_of(agent)


def with_size(env: str, args: dict[str, Any], size: int) -> dict[str, Any]:
    """The island draws frames of any size: the agent's, unless one was asked for."""
    return {"size": size, **args} if "Jumppads" in env and size else args
