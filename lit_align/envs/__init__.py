"""Worlds to play in: importing this package registers `LitAlign/Jumppads-v0` with Gymnasium.

Registering costs nothing: the game engine is imported when a world is made.
"""

from __future__ import annotations

import gymnasium

from lit_align.errors import WorldFailed

__all__ = ["JUMPPADS", "WorldFailed"]

JUMPPADS = "LitAlign/Jumppads-v0"


if JUMPPADS not in gymnasium.registry:
    gymnasium.register(JUMPPADS, entry_point="lit_align.envs.jumppads.env:JumppadsEnv")
