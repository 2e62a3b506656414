"""Pre-train, fine-tune, learn a reward from comparisons, and align an agent that plays from pixels.

The public names are imported on first use, so `import lit_align` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "lit_align.loading",
    "Agent": "lit_align.models.agent",
    "RewardModel": "lit_align.models.reward",
    "ActionCodec": "lit_align.spaces",
    "gamepad_space": "lit_align.spaces",
    "Trajectory": "lit_align.data.trajectory",
    "TrajectoryDataset": "lit_align.data.trajectories",
    "Sampler": "lit_align.rollout.sampler",
    "UserError": "lit_align.errors",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_align' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
