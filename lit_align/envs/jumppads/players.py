"""Scripted players, whose recorded play stands in for what people would have recorded.

A player steers with the right stick towards a point that it can see and runs with the left stick forward. What sets
players apart is where they want to go, how firmly they steer, and what distracts them. A network clones them from
pixels alone, so what a player is about to do shows in what it sees and in what it just did.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lit_align.envs.jumppads.controls import ATTACK, CROUCH, JUMP, TURN
from lit_align.envs.jumppads.routes import next_point
from lit_align.envs.jumppads.terrain import PADS, ROCKS, RUIN, SIGHTS, SPAWN, Point
from lit_align.errors import UserError, did_you_mean

KINDS = ("goal", "detour", "wander", "stuck", "boxer")

# How often each kind plays in the recordings, and which pad those who want one prefer: the middle, as people do.
MIXTURE: dict[str, float] = {"goal": 0.42, "detour": 0.17, "wander": 0.17, "stuck": 0.13, "boxer": 0.11}
PREFERENCE: dict[str, float] = {"left": 0.24, "middle": 0.63, "right": 0.13}

_DEGREES_A_STEP = 4 * TURN


class Player(Protocol):
    """Chooses actions from what an episode shows."""

    def act(self, obs: NDArray[np.uint8], info: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The next action, from the observation and the `info` of the last reset or step."""
        ...


class Walker:
    """Walks from place to place; the places and what it does there make the kind of player.

    Args:
        rng: Dice of its own.
        goals: Points to visit, in order.
        arrive: How near counts as there, in map units.
        stays: Steps that it stays at every goal but the last, shortest and longest.
        distraction: Chance at each step that something takes its mind off the way.
        boxing: Chance at each step of starting to punch the air.
        loops: Whether it goes round its goals again; otherwise it keeps on towards the last one.
    """

    def __init__(
        self,
        rng: random.Random,
        goals: list[Point],
        arrive: float = 150.0,
        stays: tuple[int, int] = (0, 0),
        distraction: float = 0.0,
        boxing: float = 0.0,
        loops: bool = False,
    ) -> None:
        self.rng = rng
        self.goals, self.arrive, self.stays, self.loops = goals, arrive, stays, loops
        self.distraction, self.boxing = distraction, boxing
        self.leg = 0
        self.gain = rng.uniform(0.4, 0.65)
        self.inertia = rng.uniform(0.1, 0.4)
        self.speed = rng.choice((1.0, 1.0, 1.0, 0.85))
        self.tremor = rng.uniform(0.01, 0.05)
        self.turn = 0.0
        self.mood, self.left, self.side = "walk", 0, 1.0
        self.fists = 0

    def act(self, obs: NDArray[np.uint8], info: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The next action; steers by `info['position']` and `info['heading']`."""
        x, y, _ = info["position"].tolist()
        self._arrive(x, y)
        if self.left == 0:
            self._choose_mood()
        self.left = max(0, self.left - 1)
        off = self._off_course(x, y, info["heading"])
        turn, forward, look, button = self._move(off)
        self.turn = self.inertia * self.turn + (1 - self.inertia) * (turn + self.rng.gauss(0.0, self.tremor))
        buttons = np.zeros(12, np.int8)
        if button >= 0:
            buttons[button] = 1
        if self.fists > 0:
            self.fists -= 1
            buttons[ATTACK] = 1
        return {
            "buttons": buttons,
            "left_stick": np.array((0.0, forward), np.float32),
            "right_stick": np.array((min(1.0, max(-1.0, self.turn)), look), np.float32),
        }

    def _arrive(self, x: float, y: float) -> None:
        last = self.leg == len(self.goals) - 1 and not self.loops
        if last or math.dist((x, y), self.goals[self.leg]) > self.arrive:
            return
        self.leg = (self.leg + 1) % len(self.goals)
        if self.stays[1] > 0:
            self._begin(self.rng.choice(("circle", "look", "box")), self.rng.randint(*self.stays))

    def _begin(self, mood: str, steps: int) -> None:
        self.mood, self.left = mood, steps
        self.side = self.rng.choice((-1.0, 1.0))
        if mood == "box":
            self.fists = steps

    def _choose_mood(self) -> None:
        self.mood = "walk"
        if self.rng.random() < self.distraction:
            mood = self.rng.choice(("look", "look", "idle", "hop", "nod", "box"))
            self._begin(mood, 8 if mood == "nod" else self.rng.randint(6, 14))
        elif self.fists == 0 and self.rng.random() < self.boxing:
            self.fists = self.rng.randint(15, 50)

    def _off_course(self, x: float, y: float, heading: float) -> float:
        """Degrees to turn right to face the next point on the way, in [-180, 180)."""
        return _bearing(x, y, heading, next_point(x, y, self.goals[self.leg]))

    def _move(self, off: float) -> tuple[float, float, float, int]:
        """Turn, forward and look of the sticks, and a button (or -1)."""
        steer = min(1.0, max(-1.0, self.gain * off / _DEGREES_A_STEP))
        walk = self.speed if abs(off) < 75 else 0.375 * self.speed
        return {
            "walk": (steer, walk, 0.0, -1),
            "look": (0.5 * self.side, 0.0, 0.0, -1),
            "circle": (0.375 * self.side, self.speed, 0.0, -1),
            "box": (0.15 * self.side, 0.0, 0.0, -1),
            "idle": (0.0, 0.0, 0.0, -1),
            "hop": (steer, walk, 0.0, JUMP if self.left % 4 == 3 else -1),
            # Up and down again, so that the view ends level.
            "nod": (steer, walk, 0.625 * self.side * (1 if self.left >= 4 else -1), -1),
            "duck": (steer, walk, 0.0, CROUCH),
        }[self.mood]


class Rambler(Walker):
    """Walks straight at its goals, whatever stands in the way; its goals are its own, so no ways are worked out."""

    def _off_course(self, x: float, y: float, heading: float) -> float:
        return _bearing(x, y, heading, self.goals[self.leg])


class Stubborn(Walker):
    """Walks up to a wall, or out to sea, and goes on pushing straight ahead for as long as its patience lasts."""

    def __init__(self, rng: random.Random, before: Point, target: Point, patience: int) -> None:
        super().__init__(rng, [before, target], arrive=220.0, distraction=0.02)
        self.target, self.patience = target, patience

    def _off_course(self, x: float, y: float, heading: float) -> float:
        if self.leg == 0:
            return super()._off_course(x, y, heading)
        self.patience -= 1
        if self.patience < 0:  # Enough: back to the middle of the island.
            self.goals[self.leg] = (0.0, -300.0)
            return super()._off_course(x, y, heading)
        return _bearing(x, y, heading, self.target)


def _bearing(x: float, y: float, heading: float, to: Point) -> float:
    """Degrees to turn right to face a point, in [-180, 180)."""
    return (heading - math.degrees(math.atan2(to[1] - y, to[0] - x)) + 180) % 360 - 180


def _pick_pad(rng: random.Random, target: str | None) -> Point:
    name = target or rng.choices(list(PREFERENCE), list(PREFERENCE.values()))[0]
    if name not in PADS:
        raise UserError(f"there is no pad '{name}'; expected one of {', '.join(PADS)}{did_you_mean(name, PADS)}")
    return PADS[name]


def _goal(rng: random.Random, target: str | None) -> Player:
    return Walker(rng, [_pick_pad(rng, target)], distraction=0.002)


def _detour(rng: random.Random, target: str | None) -> Player:
    pad = _pick_pad(rng, target)
    sights = sorted(SIGHTS.values(), key=lambda p: abs(p[0] - pad[0] / 2) + rng.uniform(0, 900))
    return Walker(rng, [sights[0], pad], arrive=230, stays=(10, 36), distraction=0.014, boxing=0.004)


def _wander(rng: random.Random, target: str | None) -> Player:
    sights = rng.sample(list(SIGHTS.values()), 5)
    return Walker(rng, sights, arrive=250, stays=(5, 25), distraction=0.02, boxing=0.004, loops=True)


def _stuck(rng: random.Random, target: str | None) -> Player:
    if rng.random() < 0.4:
        angle = math.radians(rng.choice((-160, -125, -60, -20, 0, 180)) + rng.uniform(-8, 8))
        out = (2500 * math.cos(angle), 2500 * math.sin(angle))
        return Rambler(rng, [(0.7 * out[0], 0.7 * out[1]), out], arrive=220, distraction=0.02)
    wall = rng.choice((*ROCKS[:4], *RUIN))
    part = (wall.radius + 180) / math.dist(wall.centre, SPAWN)
    before = (wall.centre[0] * (1 - part) + SPAWN[0] * part, wall.centre[1] * (1 - part) + SPAWN[1] * part)
    return Stubborn(rng, before, wall.centre, rng.randint(40, 120))


def _boxer(rng: random.Random, target: str | None) -> Player:
    places = [(rng.uniform(-500, 500), rng.uniform(-1300, -300)) for _ in range(3)]
    player = Rambler(rng, places, arrive=150, stays=(15, 45), distraction=0.01, boxing=0.15, loops=True)
    player.speed *= 0.625
    return player


_MAKERS = {"goal": _goal, "detour": _detour, "wander": _wander, "stuck": _stuck, "boxer": _boxer}


def make_player(kind: str, seed: int, env: gymnasium.Env[Any, Any] | None = None, target: str | None = None) -> Player:
    """A fresh player for one episode.

    Args:
        kind: One of `KINDS`.
        seed: Decides everything about it.
        env: The world it will play in; checked to be the island when given.
        target: The pad that a `goal` or `detour` player wants; drawn from `PREFERENCE` when None.

    Raises:
        UserError: The kind or the target is unknown, or the world is not the island.
    """
    if kind not in _MAKERS:
        raise UserError(f"there is no player '{kind}'; expected one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    if env is not None and type(env.unwrapped).__name__ != "JumppadsEnv":
        raise UserError(f"the player '{kind}' knows its way only on LitAlign/Jumppads-v0, not in {env.unwrapped}")
    return _MAKERS[kind](random.Random(f"{kind} {seed}"), target)


def draw_kind(seed: int, mixture: Mapping[str, float] | None = None) -> str:
    """Draws a kind of player.

    Args:
        seed: Of the draw.
        mixture: Weight of each kind; `MIXTURE` when None.
    """
    weights = MIXTURE if mixture is None else mixture
    return random.Random(f"kind {seed}").choices(list(weights), list(weights.values()))[0]
