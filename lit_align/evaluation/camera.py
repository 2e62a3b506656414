"""What a watcher sees of a world: larger pictures than the agent's, or any at all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_align.envs.gym import Observations, make
from lit_align.evaluation.match import Match

_log = logging.getLogger(__name__)


class Camera(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A world with a twin that goes the same way and renders: larger pictures than the agent sees, or any at all.

    Args:
        world: The world that is played; nothing of it changes.
        twin: Makes the other one; None goes without.

    Attributes:
        picture: What the twin showed last `(H, W, 3)`, uint8; None without a twin, and where it went another way: what
            is shown must be what is played.
    """

    def __init__(self, world: gymnasium.Env[Any, Any], twin: Callable[[], gymnasium.Env[Any, Any]] | None) -> None:
        super().__init__(world)
        self.picture: NDArray[np.uint8] | None = None
        self._twin: gymnasium.Env[Any, Any] | None = None
        self._along = False
        if twin is not None:
            self._try(lambda: setattr(self, "_twin", twin()))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in both."""
        observation, info = self.env.reset(seed=seed, options=options)
        twin, self._along = self._twin, True
        if twin is not None:
            self._try(lambda: self._look(info, twin.reset(seed=seed, options=options)[1]))
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Goes one step in both."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        twin = self._twin
        if twin is not None and self._along:
            self._try(lambda: self._look(info, twin.step(action)[4]))
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Ends both."""
        twin, self._twin = self._twin, None
        if twin is not None:
            with contextlib.suppress(Exception):
                twin.close()
        self.env.close()

    def _look(self, info: dict[str, Any], seen: dict[str, Any]) -> None:
        assert self._twin is not None
        nowhere = (0.0, 0.0, 0.0)
        self._along = bool(np.allclose(info.get("position", nowhere), seen.get("position", nowhere), atol=1e-3))
        rendered = self._twin.render() if self._along else None
        shown = isinstance(rendered, np.ndarray) and rendered.ndim == 3 and rendered.shape[-1] == 3
        self.picture = np.array(rendered, np.uint8) if shown else None
        if not self._along:
            _log.warning("the world that renders went another way; what the agent sees is shown from here on")

    def _try(self, do: Callable[[], None]) -> None:
        """Whatever a renderer raises, the episode goes on without it."""
        try:
            do()
        except Exception as error:
            _log.warning("no larger picture: %s: %s", type(error).__name__, error)
            twin, self._twin, self.picture = self._twin, None, None
            if twin is not None:
                with contextlib.suppress(Exception):
                    twin.close()


def twin_of(match: Match) -> Callable[[], gymnasium.Env[Any, Any]] | None:
    """What makes the world that is shown, where it can show more than the agent sees; None where it cannot."""
    larger = match.larger()
    if larger is not None:
        return larger
    with contextlib.closing(make(match.env, **match.env_args)) as world:
        pixels = Observations.of(world).image_size
        renders = "rgb_array" in (world.metadata.get("render_modes") or ())
    if pixels or not renders:
        return None
    return lambda: make(match.env, **{**match.env_args, "render_mode": "rgb_array"})
