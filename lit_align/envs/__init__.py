"""Worlds to play in: importing this package registers `LitAlign/Jumppads-v0` with Gymnasium.

Registering costs nothing: the game engine is imported when a world is made.
"""

from __future__ import annotations

import gymnasium

JUMPPADS = "LitAlign/Jumppads-v0"


class WorldFailed(RuntimeError):
    """A world died under the player: the episode is lost, and the next `reset` starts a fresh engine."""


if JUMPPADS not in gymnasium.registry:
    gymnasium.register(JUMPPADS, entry_point="lit_align.envs.jumppads.env:JumppadsEnv")
