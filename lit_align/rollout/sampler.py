"""An agent in many worlds at once: one batched, cached forward a step, each world reset on its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.trajectory import ENDED, Trajectory
from lit_align.envs import WorldFailed
from lit_align.envs.guard import BACKOFF, Guard, Seen
from lit_align.envs.gym import Observations
from lit_align.errors import MAX_ATTEMPTS, UserError
from lit_align.models.acting import check_sampling
from lit_align.models.agent import Agent
from lit_align.models.transformer import KVCache
from lit_align.seeds import noise_of
from lit_align.spaces import Classes

_log = logging.getLogger(__name__)


def check_fits(agent: Agent, world: gymnasium.Env[Any, Any]) -> None:
    """Raises ValueError, naming both sides, unless the agent's observations and actions are the world's."""
    shown = Observations.of(world)
    wanted = Observations("", agent.config.image_size, agent.config.vector_size)
    if (shown.image_size, shown.vector_size) != (wanted.image_size, wanted.vector_size):
        only_size = shown.vector_size == wanted.vector_size and shown.image_size and wanted.image_size
        mend = f"make it with env_args size={wanted.image_size}" if only_size else "use an agent trained for it"
        raise UserError(
            f"the agent sees {'frames of shape ' if wanted.image_size else ''}{wanted}; "
            f"the environment shows {shown}: {mend}"
        )
    codec = agent.codec.of(world.action_space)
    if codec != agent.codec:
        raise UserError(
            f"the agent acts on {agent.codec}; the environment takes {codec}: "
            "use an agent that was trained for this environment"
        )


@dataclass
class _Episode:
    """An episode while it is played."""

    id: int
    seed: int
    noise: np.random.Generator
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    actions: list[NDArray[np.uint8]] = field(default_factory=list)
    positions: list[NDArray[np.float32]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    attempts: int = 0


class _View:
    """What the worlds show now, side by side, as the agent takes it."""

    def __init__(self, shown: Observations, worlds: int) -> None:
        self.frames = np.zeros((worlds, shown.image_size, shown.image_size, 3), np.uint8)
        self.vectors = np.zeros((worlds, shown.vector_size), np.float32)

    def see(self, w: int, episode: _Episode, seen: Seen, info: dict[str, Any]) -> None:
        """Takes in what a world shows, and keeps it for the episode."""
        frame, vector = seen
        self.frames[w], self.vectors[w] = frame, vector
        episode.frames.append(frame.copy())  # a copy: some worlds draw every frame into the same array
        episode.vectors.append(vector)
        position = info.get("position")
        episode.positions.append(np.array((0.0, 0.0, 0.0) if position is None else position, np.float32))


class Sampler:
    """Plays episodes with an agent, `worlds` of them at a time.

    The noise of a choice is a function of (seed, episode id, step), so an episode does not depend on which world plays
    it or what plays beside it.

    Args:
        agent: Who plays; put in evaluation mode.
        make_world: Makes one environment.
        worlds: Environments that are stepped together.
        temperature: Divides the logits; 0 takes the likeliest class of every head.
        seed: Seed of the choices.
        player: Name that the trajectories carry.
        threads: Threads that step the worlds (engines run outside the interpreter's lock); None takes as many as torch.
        top_p: Draw from the smallest set of classes of a head that holds this much probability.
        backoff: Seconds before a world that failed twice in a row is restarted, doubled each time (see `Guard`).

    Attributes:
        failures: Episodes thrown away because their world died, hung, raised an error or gave a malformed answer; each
            is played again from its start.

    Raises:
        ValueError: The agent's frames or actions are not the environment's.
    """

    def __init__(
        self,
        agent: Agent,
        make_world: Callable[[], gymnasium.Env[Any, Any]],
        worlds: int,
        temperature: float = 1.0,
        seed: int = 0,
        player: str = "agent",
        threads: int | None = None,
        top_p: float = 1.0,
        backoff: float = BACKOFF,
    ) -> None:
        check_sampling(temperature, top_p)
        if worlds < 1:
            raise UserError(f"{worlds} worlds; expected 1 or more")
        self.agent = agent.eval()
        self.temperature, self.top_p, self.seed, self.player = temperature, top_p, seed, player
        self.failures = 0
        self.threads = min(threads or torch.get_num_threads(), worlds)
        self._pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        self._worlds: list[Guard] = []
        try:
            for w in range(worlds):
                self._worlds.append(Guard(make_world, w, backoff))
                check_fits(agent, self._worlds[-1])
            self._shown = self._worlds[0].shown
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all worlds."""
        if self._pool is not None:  # first, so that no thread steps a world that is being closed
            self._pool.shutdown(wait=True, cancel_futures=True)
        while self._worlds:
            self._worlds.pop().close()

    @torch.inference_mode()
    def play(
        self, episodes: Iterable[tuple[int, int]], wants: Callable[[int, int], bool] = lambda *_: True
    ) -> Iterator[Trajectory]:
        """Plays episodes given as (id, world's seed); yields each when it ends, in the order in which they end.

        Args:
            episodes: Taken one by one, as worlds become free.
            wants: Told of each step: the episode's id and its env steps so far. One that is not wanted is thrown away.

        Raises:
            WorldFailed: A world failed again and again over the same episode.
        """
        queue = iter(episodes)
        running: list[_Episode | None] = [None] * len(self._worlds)
        cache = self.agent.new_cache(len(self._worlds))
        view = _View(self._shown, len(self._worlds))
        uniform = np.zeros((len(self._worlds), len(self.agent.codec.heads)), np.float32)

        def begin(w: int, episode: _Episode | None) -> None:
            while episode is not None:
                try:
                    _, info = self._worlds[w].reset(seed=episode.seed)
                except WorldFailed as error:
                    episode = self._again(episode, error)
                    continue
                view.see(w, episode, self._worlds[w].seen, info)
                break
            running[w] = episode
            cache.reset([w])

        def fresh() -> _Episode | None:
            dealt = next(queue, None)
            return None if dealt is None else self._new(*dealt)

        for w in range(len(running)):
            begin(w, fresh())
        while any(running):
            _draw(running, uniform)
            actions, log_probs = self._choose(view, uniform, cache)
            for w, moved in self._step([(w, actions[w]) for w, episode in enumerate(running) if episode is not None]):
                episode = running[w]
                assert episode is not None
                if isinstance(moved, WorldFailed):
                    begin(w, self._again(episode, moved))
                    continue
                _, reward, terminated, truncated, info = moved
                view.see(w, episode, self._worlds[w].seen, info)
                episode.actions.append(actions[w])
                episode.rewards.append(reward)
                episode.log_probs.append(float(log_probs[w]))
                over, wanted = terminated or truncated, wants(episode.id, len(episode.actions))
                if over:
                    yield self._finish(episode, info, terminated, truncated)
                if over or not wanted:
                    begin(w, fresh())

    def _step(self, moves: list[tuple[int, Classes]]) -> list[tuple[int, Any]]:
        """Steps some worlds, shared out over threads; gives each world's answer, or the WorldFailed that it raised."""

        def group(part: list[tuple[int, Classes]]) -> list[tuple[int, Any]]:
            answers: list[tuple[int, Any]] = []
            for w, action in part:
                try:
                    answers.append((w, self._worlds[w].step(self.agent.codec.decode(action))))
                except WorldFailed as error:
                    answers.append((w, error))
            return answers

        if self._pool is None:
            return group(moves)
        parts = [moves[i :: self.threads] for i in range(self.threads)]
        return sorted(
            (answer for part in self._pool.map(group, parts) for answer in part), key=lambda answer: answer[0]
        )

    def _choose(self, view: _View, uniform: NDArray[np.float32], cache: KVCache) -> tuple[Classes, NDArray[np.float32]]:
        """Classes `(B, heads)` and their joint log-probabilities `(B,)`; the noise `(B, heads)` is in [0, 1)."""
        frames, vectors, noise = (
            torch.from_numpy(array).to(cache.pairs.device) for array in (view.frames, view.vectors, uniform)
        )
        actions, log_probs = self.agent.choose(frames, cache, vectors, noise, self.temperature, self.top_p)
        return actions.to(torch.uint8).cpu().numpy(), log_probs.cpu().numpy()

    def _new(self, episode: int, seed: int, attempts: int = 0) -> _Episode:
        return _Episode(episode, seed, noise_of(self.seed, episode, seed), attempts=attempts)

    def _again(self, episode: _Episode, error: WorldFailed) -> _Episode:
        self.failures += 1
        if episode.attempts + 1 >= MAX_ATTEMPTS:
            raise WorldFailed(
                f"a world failed {MAX_ATTEMPTS} times over episode {episode.id}; last: {error}"
            ) from error
        _log.warning(
            "a world failed; episode %d is thrown away after %d steps and played again (attempt %d of %d): %s",
            episode.id,
            len(episode.actions),
            episode.attempts + 2,
            MAX_ATTEMPTS,
            error,
        )
        return self._new(episode.id, episode.seed, episode.attempts + 1)

    def _finish(self, episode: _Episode, info: dict[str, Any], terminated: bool, truncated: bool) -> Trajectory:
        return Trajectory(
            frames=np.stack(episode.frames),
            vectors=np.stack(episode.vectors),
            actions=np.stack(episode.actions),
            id=episode.id,
            seed=episode.seed,
            outcome=str(info.get("outcome") or ENDED),
            reason=str(info.get("reason") or ""),
            player=self.player,
            positions=np.stack(episode.positions),
            rewards=np.array(episode.rewards, np.float32),
            log_probs=np.array(episode.log_probs, np.float32),
            terminated=bool(terminated),
            truncated=bool(truncated),
        )


def _draw(running: list[_Episode | None], noise: NDArray[np.float32]) -> None:
    """Each running episode's own noise for its next step, into its row of `(worlds, heads)`."""
    for w, episode in enumerate(running):
        if episode is not None:
            noise[w] = episode.noise.random(noise.shape[1], np.float32)
