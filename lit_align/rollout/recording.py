"""Episodes to record, one after another: played by an agent here, or by scripted players in processes of their own."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium
import pyarrow as pa

from lit_align.data.encoding import encode
from lit_align.data.trajectory import Trajectory
from lit_align.envs.isolate import make_world
from lit_align.errors import WorldFailed
from lit_align.seeds import episode_seeds
from lit_align.spaces import AXIS_BINS

if TYPE_CHECKING:
    from lit_align.models.agent import Agent

CHUNK = 4  # episodes that a worker plays at a time


@dataclass
class Play:
    """What is played.

    Attributes:
        env: Gymnasium id of the world.
        env_args: Arguments that it is made with.
        purpose: Range of seeds (`lit_align.seeds.PURPOSES`).
        seed: The run's seed.
        episodes: How many; None goes on without end.
        isolate: Whether an agent's worlds have processes of their own.
        step_timeout: Seconds that a step may take; see `make_world`.
    """

    env: str
    env_args: dict[str, Any] = field(default_factory=dict)
    purpose: str = "play"
    seed: int = 0
    episodes: int | None = None
    isolate: bool = False
    step_timeout: float | None = None

    def make_world(self) -> gymnasium.Env[Any, Any]:
        """One world."""
        return make_world(self.env, self.env_args, self.isolate, self.step_timeout)

    def deal(self) -> Iterator[tuple[int, int]]:
        """Episodes as (id, world's seed)."""
        at = 0
        while self.episodes is None or at < self.episodes:
            step = CHUNK if self.episodes is None else min(CHUNK, self.episodes - at)
            yield from enumerate(episode_seeds(self.purpose, self.seed, step, at), start=at)
            at += step


@dataclass
class Recorded:
    """An episode that was played.

    Attributes:
        outcome: How it ended.
        table: Its rows in the trajectories format, frames encoded.
        image_size: Height and width of the frames in pixels; 0 without pixels.
        failures: Attempts at it, or at those beside it, that were thrown away since a world died.
    """

    outcome: str
    table: pa.Table
    image_size: int
    failures: int = 0

    @classmethod
    def of(cls, trajectory: Trajectory, failures: int = 0) -> Recorded:
        """Encodes a trajectory."""
        return cls(trajectory.outcome, encode(trajectory), trajectory.frames.shape[1], failures)


Recordings = Generator[Recorded, None, None]


def agent_plays(agent: Agent, play: Play, worlds: int, temperature: float = 1.0, top_p: float = 1.0) -> Recordings:
    """An agent's episodes in the order of their ids: the first so many of an outcome are not the quickest ones."""
    from lit_align.rollout.sampler import Sampler

    worlds = min(worlds, play.episodes or worlds)
    name = str(agent.info.get("stage", "agent"))

    with Sampler(agent, play.make_world, worlds, temperature, play.seed, name, top_p=top_p) as sampler:
        counted, at = 0, 0
        ended: dict[int, Recorded] = {}
        for trajectory in sampler.play(play.deal()):
            ended[trajectory.id] = Recorded.of(trajectory, sampler.failures - counted)
            counted = sampler.failures
            while at in ended:
                yield ended.pop(at)
                at += 1


def players_play(
    mixture: dict[str, float], targets: list[str] | None, play: Play, workers: int, bins: int = AXIS_BINS
) -> Recordings:
    """Scripted players' episodes; their order does not depend on the number of processes."""
    dealt = play.deal()
    chunks = iter(lambda: [episode for _, episode in zip(range(CHUNK), dealt, strict=False)], [])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start, (mixture, targets, play, bins)) as pool:
        waiting: list[Future[list[Recorded]]] = []
        try:
            while True:
                while len(waiting) < 2 * workers and (chunk := next(chunks, None)) is not None:
                    waiting.append(pool.submit(_play_chunk, chunk))
                if not waiting:
                    return
                try:
                    yield from waiting.pop(0).result()
                except BrokenProcessPool as error:
                    raise WorldFailed(
                        "a process that plays died (out of memory, or killed); fewer --workers need less"
                    ) from error
        finally:
            for future in waiting:
                future.cancel()


def _exit_with_parent() -> None:
    """Ends this process when the one that started it is gone; its engine's watchdog then ends the engine."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


_worker: Any = None


def _start(mixture: dict[str, float], targets: list[str] | None, play: Play, bins: int) -> None:
    from lit_align.rollout.scripted import ScriptedPlay

    threading.Thread(target=_exit_with_parent, daemon=True).start()

    global _worker
    _worker = ScriptedPlay(mixture, targets, play.env, play.env_args, play.seed, play.step_timeout, bins)


def _play_chunk(chunk: list[tuple[int, int]]) -> list[Recorded]:
    played = []
    for episode, seed in chunk:
        before = _worker.failures
        trajectory = _worker.play(episode, seed)
        played.append(Recorded.of(trajectory, _worker.failures - before))
    return played
