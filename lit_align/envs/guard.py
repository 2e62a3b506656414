"""A world that may misbehave: whatever it does comes out as one kind of error, and it is made anew."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_align.envs import WorldFailed
from lit_align.envs.gym import Observations
from lit_align.errors import UserError

_log = logging.getLogger(__name__)

BACKOFF = 0.5
"""Seconds before the second restart in a row; the first comes at once, each one after it waits twice as long."""
LONGEST_BACKOFF = 30.0

Seen = tuple[NDArray[np.uint8], NDArray[np.float32]]


class Guard(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Turns every exception and every malformed answer of a world into `WorldFailed`, and restarts the world.

    The `reset` after a failure restarts it. A world that raised `WorldFailed` restarts itself, as that error promises;
    after any other failure, or the second in a row, it is closed and made anew.

    Args:
        make: Makes the world.
        number: Which world this is, said in errors.
        backoff: Seconds before the second restart in a row; doubled each time, up to half a minute.

    Attributes:
        shown: What the world shows.
        seen: What it showed last: frame `(S, S, 3)`, uint8, the world's own array, and vector `(V,)`, float32.

    Raises:
        UserError: What the world shows cannot be read, or (from `make`) it cannot be made.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], number: int = 0, backoff: float = BACKOFF) -> None:
        super().__init__(make())
        self._make, self.number, self._backoff = make, number, backoff
        try:
            self.shown = Observations.of(self.env)
        except BaseException:
            self.env.close()
            raise
        self.seen: Seen = (np.zeros((0, 0, 3), np.uint8), np.zeros(0, np.float32))
        self._step = 0
        self._seed: int | None = None
        self._in_a_row, self._anew = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, on a restarted world where the last one failed.

        Raises:
            WorldFailed: It failed (again).
        """
        self._step, self._seed = 0, seed
        if self._in_a_row > 1:
            time.sleep(min(self._backoff * 2 ** (self._in_a_row - 2), LONGEST_BACKOFF))
        try:
            if self._anew:
                with contextlib.suppress(Exception):  # of a world that is broken anyhow
                    self.env.close()
                self.env = self._make()
                self._anew = False
            answer = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._failed(error) from error
        try:
            observation, info = answer
            self.seen = self.shown.split(observation)
            _check_info(info)
        except (UserError, TypeError, ValueError) as error:
            raise self._malformed(error, answer, 2) from error
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Goes one step.

        Raises:
            WorldFailed: The world failed; the episode is lost.
        """
        self._step += 1
        try:
            answer = self.env.step(action)
        except Exception as error:
            raise self._failed(error) from error
        try:
            observation, reward, terminated, truncated, info = answer
            self.seen = self.shown.split(observation)
            worth, over, cut = _number(reward), bool(terminated), bool(truncated)
            _check_info(info)
        except (UserError, TypeError, ValueError) as error:
            raise self._malformed(error, answer, 5) from error
        if over or cut:
            self._in_a_row = 0
        return observation, worth, over, cut, info

    def close(self) -> None:
        """Ends the world, whatever it does about it."""
        try:
            self.env.close()
        except Exception as error:
            _log.warning("%s could not be closed: %s", self._name, _told(error))

    @property
    def _name(self) -> str:
        return f"world {self.number} ({self.shown.world})"

    def _failed(self, error: Exception) -> WorldFailed:
        if isinstance(error, WorldFailed):
            return self._lost(str(error), anew=False)
        _log.warning("%s raised an error", self._name, exc_info=error)  # where in the world it was
        return self._lost(f"raised {_told(error)}", anew=True)

    def _malformed(self, error: Exception, answer: Any, parts: int) -> WorldFailed:
        if not isinstance(error, UserError):
            found = f"{len(answer)} values" if isinstance(answer, tuple) else f"a {type(answer).__name__}"
            expected = "observation, info" if parts == 2 else "observation, reward, terminated, truncated, info"
            return self._lost(f"answered with {found}; expected {expected} ({error})", anew=True)
        return self._lost(str(error).removeprefix(f"the environment {self.shown.world} "), anew=True)

    def _lost(self, what: str, anew: bool) -> WorldFailed:
        self._in_a_row += 1
        self._anew = self._anew or anew or self._in_a_row > 1
        where = f"at step {self._step}" if self._step else "at its reset"
        return WorldFailed(f"{self._name}, seed {self._seed}, {where}: {what}")


def _number(reward: Any) -> float:
    """The reward as a number; raises UserError where it is an array or not finite."""
    if np.ndim(reward):
        raise UserError(
            f"gave a reward that is an array of shape {np.shape(reward)}; expected a number, such as float(reward[0])"
        )
    worth = float(reward)
    if not math.isfinite(worth):
        raise UserError(f"gave a reward that is {worth}; expected a finite number")
    return worth


def _check_info(info: Any) -> None:
    """Raises UserError unless the info is a dict whose `position`, where there is one, is 3 finite numbers."""
    if not isinstance(info, dict):
        raise UserError(f"gave a {type(info).__name__} as info; expected a dict")
    position = info.get("position")
    if position is None:
        return
    there = np.asarray(position, np.float32)
    if there.shape != (3,) or not all(map(math.isfinite, there.tolist())):
        raise UserError(f"gave the position {position}; expected 3 finite numbers")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
