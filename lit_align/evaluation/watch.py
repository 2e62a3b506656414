"""Watching an agent: every step of an episode as it is played, with what the agent saw, thought and did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.trajectory import ENDED, Trajectory
from lit_align.evaluation.camera import Camera, twin_of
from lit_align.evaluation.hud import Hud
from lit_align.evaluation.match import Match
from lit_align.models.agent import Agent
from lit_align.models.reward import RewardModel
from lit_align.models.transformer import KVCache
from lit_align.rollout.sampler import Sampler
from lit_align.spaces import ActionCodec, Classes


class Closed(Exception):
    """Whoever watched has had enough."""


@dataclass(frozen=True)
class Step:
    """One moment of an episode.

    Attributes:
        episode: Its id.
        number: Env steps so far; 0 shows the first frame.
        picture: What is shown `(H, W, 3)`, uint8; None of a world without pictures.
        probabilities: Of every class of every head `(heads, widest)`, float32, at the temperature and before `top_p`
            cuts classes off; of autoregressive heads, given the classes chosen before. None when the episode is over.
        chosen: The classes that were drawn `(heads,)`; None when the episode is over.
        scores: The reward model's normalised reward of the episode up to each frame so far; empty without one.
        ended: How it ended; empty while it runs.
    """

    episode: int
    number: int
    picture: NDArray[np.uint8] | None
    probabilities: NDArray[np.float32] | None
    chosen: Classes | None
    scores: Sequence[float] = ()
    ended: str = ""


class Screen(Protocol):
    """Where steps are shown.

    Raises:
        Closed: From `show` and `end`: the play is over.
    """

    @property
    def wanted(self) -> bool:
        """Whether the episode that runs is still wanted; one that is not is thrown away."""

    def again(self) -> bool:
        """Whether the episode before is wanted once more; asked before each one but the first."""

    def show(self, step: Step) -> None:
        """Takes a step before it is made."""

    def end(self, step: Step, trajectory: Trajectory) -> None:
        """Takes the last frame of an episode, and the whole of it."""


class Watched(Sampler):
    """Plays one world as `Sampler` does, the same episodes to the last bit, and shows every step before it is made.

    Args:
        agent: Who plays.
        match: How.
        screen: Where it is shown.
        reward_model: Scores what was seen so far; None goes without.
    """

    def __init__(self, agent: Agent, match: Match, screen: Screen, reward_model: RewardModel | None = None) -> None:
        self.screen = screen
        self._scorer = None if reward_model is None else reward_model.scorer()
        self._scores: list[float] = []
        self._episode = 0
        twin = twin_of(match)

        def make_world() -> gymnasium.Env[Any, Any]:
            self._camera = Camera(match.make_world(), twin)
            return self._camera

        super().__init__(agent, make_world, 1, match.temperature, match.seed, threads=1, top_p=match.top_p)

    def watch(self, seeds: Sequence[int]) -> None:
        """Plays and shows the episodes 0, 1, ... in the worlds of these seeds, as far as the screen wants them."""

        def deal() -> Iterator[tuple[int, int]]:
            place = 0
            while place < len(seeds):
                self._episode = place
                yield place, seeds[place]
                place += not self.screen.again()

        for trajectory in self.play(deal(), wants=lambda *_: self.screen.wanted):
            scores = self._score(trajectory.frames[-1], trajectory.vectors[-1])
            picture = self._picture(trajectory.frames[-1])
            last = Step(trajectory.id, len(trajectory), picture, None, None, scores, how_it_ended(trajectory))
            self.screen.end(last, trajectory)

    def _choose(self, view: Any, uniform: NDArray[np.float32], cache: KVCache) -> tuple[Classes, NDArray[np.float32]]:
        """As in play, `Agent.choose` in its two parts: the features of one forward also tell what was likely."""
        number = int(cache.steps[0])
        frames, vectors, noise = (
            torch.from_numpy(array).to(cache.pairs.device) for array in (view.frames, view.vectors, uniform)
        )
        features = self.agent.backbone.step(frames, cache, vectors)
        actions, log_probs = self.agent.head.sample(features, noise, self.temperature, self.top_p)
        likely = self.agent.log_probs_of(features, actions, self.temperature or 1.0).exp()[0].float().cpu().numpy()
        classes = actions.to(torch.uint8).cpu().numpy()
        if number == 0:
            self._scores = []
            if self._scorer is not None:
                self._scorer.reset()
        scores = self._score(view.frames[0], view.vectors[0])
        picture = self._picture(view.frames[0])
        self.screen.show(Step(self._episode, number, picture, likely, classes[0], scores))
        return classes, log_probs.cpu().numpy()

    def _picture(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        if self._camera.picture is not None:
            return self._camera.picture
        return frame.copy() if frame.size else None

    def _score(self, frame: NDArray[np.uint8], vector: NDArray[np.float32]) -> list[float]:
        if self._scorer is not None:
            parts: Any = {name: part for name, part in (("pixels", frame), ("vector", vector)) if part.size}
            self._scores.append(self._scorer.step(parts))
        return list(self._scores)


def how_it_ended(trajectory: Trajectory) -> str:
    """Return the outcome, and the reason where there is one: `none (fell)`."""
    outcome = trajectory.outcome or ENDED
    return f"{outcome} ({trajectory.reason})" if trajectory.reason else outcome


class Painter:
    """Draws steps with the HUD, at any size.

    Args:
        codec: The action space.
        title: Who plays, and where.
        heads: Whether the action heads are drawn.
        line: Whether there is a reward model.
        joint: Whether the heads are independent.
    """

    def __init__(
        self, codec: ActionCodec, title: str, heads: bool = True, line: bool = False, joint: bool = True
    ) -> None:
        self.codec, self.title = codec, title
        self.heads, self.line, self.joint = heads, line, joint
        self._hud: tuple[Any, Hud] | None = None

    def __call__(self, step: Step, size: tuple[int, int], note: str = "") -> NDArray[np.uint8]:
        """Return a step as a picture of `size`, width and height: `(height, width, 3)`, uint8."""
        key = (size, step.picture is not None)
        if self._hud is None or self._hud[0] != key:
            self._hud = key, Hud(self.codec, size, key[1], self.heads, self.line, self.joint)
        where = f"episode {step.episode}, step {step.number}" + (f": {step.ended}" if step.ended else "")
        said = f"{note}   {where}" if note else where
        return self._hud[1].draw(step.picture, step.probabilities, step.chosen, step.scores, self.title, said)
