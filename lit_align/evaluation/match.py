"""Playing an agent's evaluation episodes and counting how they end."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from lit_align.data.trajectory import Trajectory
from lit_align.envs.gym import fps_of, make
from lit_align.envs.isolate import make_world
from lit_align.errors import UserError
from lit_align.evaluation.episodes import Episodes, Slim
from lit_align.evaluation.footage import INDEX, Film, Picks, film, replay
from lit_align.evaluation.outcomes import OUTCOMES, OutcomeMetric
from lit_align.evaluation.recovery import check_target, recovery
from lit_align.evaluation.results import AgentResult, agent_result
from lit_align.evaluation.returns import return_of, summary
from lit_align.models.agent import Agent
from lit_align.rollout.sampler import Sampler
from lit_align.seeds import episode_seeds
from lit_align.spaces import ActionCodec

_log = logging.getLogger(__name__)

LARGER = {"render_mode": "rgb_array", "resolution": "320x240"}
PICTURE = ("size", "resolution", "render_mode")  # arguments that say how a world is drawn, not what it is


class Blanked(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Shows nothing but black, and zeros for a vector: what an agent does without looking."""

    def observation(self, observation: Any) -> Any:
        """Return zeros like the observation, or like each part of it."""
        if isinstance(observation, dict):
            return {key: np.zeros_like(part) for key, part in observation.items()}
        return np.zeros_like(observation)


@dataclass
class Match:
    """How evaluation episodes are played.

    Attributes:
        env: Gymnasium id of the world.
        env_args: Arguments that it is made with.
        episodes: Episodes to play.
        seed: The run's seed; the worlds' seeds are `episode_seeds("evaluation", seed, episodes)`.
        temperature: Sampling temperature.
        worlds: Worlds played in one batch.
        blank: Whether the agent sees black frames (and vectors of zeros) only.
        videos: Episodes filmed for each outcome.
        top_p: Classes are drawn from the smallest set that holds this much probability.
        precision: The agent's arithmetic, told with the results.
        target: The pad that is wanted, for recovery after a miss; None for any.
        isolate: Whether each world that is played has a process of its own.
        step_timeout: Seconds that a step may take; see `isolate.make_world`.
    """

    env: str
    env_args: dict[str, Any]
    episodes: int
    seed: int
    temperature: float = 1.0
    worlds: int = 16
    blank: bool = False
    videos: int = 3
    top_p: float = 1.0
    precision: str = "fp32"
    target: str | None = None
    isolate: bool = False
    step_timeout: float | None = None

    def make_world(self, **extra: Any) -> gymnasium.Env[Any, Any]:
        """Make one world."""
        world = make_world(self.env, {**self.env_args, **extra}, self.isolate, self.step_timeout)
        return Blanked(world) if self.blank else world

    def fps(self) -> float:
        """Return how many steps the world makes in a second."""
        world = make(self.env, **self.env_args)
        world.close()
        return fps_of(world)

    def changes(self) -> dict[str, Any]:
        """Return the arguments that make another world than the id alone does."""
        world = make(self.env, **self.env_args)
        world.close()
        known = inspect.signature(type(world.unwrapped).__init__).parameters
        return {
            name: value
            for name, value in self.env_args.items()
            if name not in PICTURE and not (name in known and known[name].default == value)
        }

    def larger(self) -> Callable[[], gymnasium.Env[Any, Any]] | None:
        """Return a maker of worlds that render larger pictures; None where the world does not take such arguments."""
        world = make(self.env, **self.env_args)
        takes = set(inspect.signature(type(world.unwrapped).__init__).parameters)
        world.close()
        if not set(LARGER) <= takes:
            return None
        return lambda: make(self.env, **{**self.env_args, **LARGER})

    def film(
        self, trajectories: Iterable[Trajectory], folder: str | os.PathLike[str], codec: ActionCodec
    ) -> list[Film]:
        """Film episodes as `footage.film` does; where they hold no pixels, as the world renders them.

        Nothing is filmed of a world that does not render, or that goes another way when its episode is played again.
        Whatever goes wrong is a warning: the episodes are counted already, and a film is not worth their numbers.
        """
        played = list(trajectories)
        try:
            # Films of an earlier evaluation in this folder are not of these episodes.
            (Path(folder) / INDEX).unlink(missing_ok=True)
            if any(not one.frames.size for one in played):
                return film(self._rendered(played, codec), folder, self.fps(), codec)
            return film(played, folder, self.fps(), codec, self.larger())
        except Exception as error:
            _log.warning("no videos in %s: %s: %s", folder, type(error).__name__, error)
            return []

    def _rendered(self, trajectories: list[Trajectory], codec: ActionCodec) -> Iterator[Trajectory]:
        """Yield the episodes with what the world renders in the place of their frames, one at a time."""
        try:
            with contextlib.closing(make(self.env, **{**self.env_args, "render_mode": "rgb_array"})) as world:
                for one in trajectories:
                    frames = replay(one, world, codec)
                    if frames is not None:
                        yield dataclasses.replace(one, frames=frames)
        # Whatever a renderer raises.
        except Exception as error:
            _log.warning("not filmed: the agent sees no pixels and %s does not render (%s)", self.env, error)


def play(
    agent: Agent,
    match: Match,
    name: str,
    out: Path | None = None,
    on_episode: Callable[[Trajectory], None] | None = None,
) -> AgentResult:
    """Play the match and return the agent's entry of `results.json`.

    Args:
        agent: Who plays.
        match: How.
        name: The agent's name, said in errors.
        out: Folder for `episodes.npz` and `videos/`; None keeps the numbers only.
        on_episode: Called after each episode.

    Raises:
        UserError: The agent's frames or actions are not the world's, or there is no such target.
    """
    check_target(match.env, match.target)
    if match.episodes < 1 or match.worlds < 1:
        raise UserError(f"episodes is {match.episodes} and worlds {match.worlds}; expected 1 or more of each")
    seeds = episode_seeds("evaluation", match.seed, match.episodes)
    worlds = min(match.worlds, match.episodes)
    try:
        sampler = Sampler(agent, match.make_world, worlds, match.temperature, match.seed, name, top_p=match.top_p)
    except ValueError as error:
        raise UserError(f"agent '{name}' does not fit the environment {match.env}: {error}") from error
    picks, ended, returns = Picks(match.videos if out else 0), [], []
    try:
        for trajectory in sampler.play(enumerate(seeds)):
            picks.see(trajectory)
            ended.append(Slim.of(trajectory))
            returns.append(return_of(trajectory))
            if on_episode is not None:
                on_episode(trajectory)
        failures = sampler.failures
    finally:
        sampler.close()
    played = Episodes.of(sorted(ended, key=lambda one: one.id))
    # The island's outcomes are all counted, those that never happened too; of another world we know what we saw.
    seen = sorted(set(played.outcomes))
    metric = OutcomeMetric(OUTCOMES if set(seen) <= set(OUTCOMES) else seen)
    metric.update(played.outcomes, played.reasons)
    if out is not None:
        played.save(out / "episodes.npz")
        # A blanked agent is filmed as it played, in the world as it is: the black it saw shows nothing.
        match.film(picks.chosen(), out / "videos", agent.codec)
    info = agent.info
    extra: dict[str, Any] = {"return": summary(returns)}
    extra |= {"recovery": recovery(match.env, played, match.target), "env_args": match.changes()}
    return agent_result(
        metric.tally(),
        seed=match.seed,
        temperature=match.temperature,
        reasons=metric.reason_counts(),
        train_frames=info.get("train_frames"),
        train_seconds=info.get("train_seconds"),
        # Weights of 8 bits are no parameters any more.
        parameters=info.get("parameters") or sum(p.numel() for p in agent.parameters()),
        mean_steps=round(float(played.lengths.mean()), 2),
        worlds_failed=failures,
        env_steps=info.get("env_steps"),
        blank=match.blank,
        top_p=match.top_p,
        precision=match.precision,
        episode_seeds=[int(number) for number in played.seeds],
        **{name: value for name, value in extra.items() if value},
    )
