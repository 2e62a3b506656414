"""What commands call an agent, and which frames they have a world draw for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_align.hub import is_id

if TYPE_CHECKING:
    from lit_align.models.agent import Agent

_log = logging.getLogger(__name__)


def stage_of(folder: str | Path) -> str:
    """The stage that left an agent's folder, by the run's folder."""
    path = Path(folder).resolve()
    return path.parent.name if path.name == "agent" else path.name


def title_of(agent: str) -> str:
    """The stage that made an agent's folder; of one on the Hub its name, with the revision if one is named."""
    return agent.partition("/")[2].replace("/", "-") if is_id(agent) else stage_of(agent)


def warn_of_another_world(title: str, agent: Agent, env: str) -> None:
    """Says so where an agent is to play in another world than the one that it was aligned in."""
    own = agent.info.get("env")
    if own not in (None, env):
        _log.warning("%s was aligned in %s and plays in %s here; --env %s takes its own world", title, own, env, own)


def with_size(env: str, args: dict[str, Any], size: int) -> dict[str, Any]:
    """The island draws frames of any size: the agent's, unless one was asked for."""
    return {"size": size, **args} if "Jumppads" in env and size else args
