"""The data module of online RL: a buffer that one iteration fills and its minibatches empty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from lit_align.data.cache import pad_right
from lit_align.data.loader import ResumableLoader, rng
from lit_align.data.modules import Batch, world_of
from lit_align.data.trajectory import Trajectory
from lit_align.envs.gym import Observations, fps_of
from lit_align.envs.isolate import make_world
from lit_align.errors import UserError
from lit_align.rollout.quota import Gather, Quota, play_steps
from lit_align.rollout.sampler import Sampler
from lit_align.rollout.steps import Rollout, Steps
from lit_align.seeds import episode_seeds
from lit_align.spaces import ActionCodec


class RolloutDataModule(pl.LightningDataModule):
    """Worlds to play in, and the batches of an iteration.

    One Lightning epoch is one iteration: `RolloutCallback` plays the episodes and fills the buffer, then the loop draws
    `epochs` passes of `minibatches` batches over it. Batches are whole episodes, or fragments of them.

    Args:
        env: Gymnasium id of the world.
        env_args: Arguments that it is made with.
        worlds: Worlds that each process steps together.
        episodes: Episodes of an iteration, over all processes, where `steps` does not decide it; a multiple of
            processes x minibatches (of whole episodes) and of processes x group.
        minibatches: Optimizer steps in a pass over the buffer.
        epochs: Passes over the buffer; 1 pass, 1 minibatch and no clipping is REINFORCE.
        validation_episodes: Episodes of `validate`.
        seed: Decides worlds, choices and order.
        group: Episodes of a group: they start alike (the world's seed is the same) and differ by their choices. With
            1 each episode has a start of its own, and rloo and grpo compare all episodes of the iteration.
        steps: Env steps of an iteration, over all processes: it is the fewest episodes, in whole groups, that hold so
            many, and at least a group for each process. None: always `episodes`.
        fragment: Train on pieces of at most this many env steps, which minibatches share out, in place of whole
            episodes. The frames that a piece's outputs depend on go before it, so nothing changes but the memory and
            which steps share a batch.
        isolate: Each world in a process of its own, for worlds that crash or hang: it is killed and restarted, and its
            episode is played again. The same episodes, at some cost in speed.
        step_timeout: Seconds that a world's step may take (a reset ten times as long) before it counts as hung and is
            killed. Needs `isolate`, but not on the island, whose limit is 60 where this is None; elsewhere None is no
            limit.

    Attributes:
        codec: The world's action space; the stage sets it to the agent's, whose axes may be cut otherwise.
        image_size: Height and width of its frames in pixels; 0 without pixels.
        vector_size: Numbers in its vector observation; 0 without one.
        fps: Steps that it makes in a second.
        burn_in: Frames before a fragment that its outputs depend on, a matter of the network; the stage sets it.
        least: Episodes of an iteration of `steps` at the least, a matter of the estimator; the stage sets it.
        unused: Env steps that this process played beyond the last iteration's episodes, to know that they are enough.
    """

    def __init__(
        self,
        env: str = "LitAlign/Jumppads-v0",
        env_args: dict[str, Any] | None = None,
        worlds: int = 16,
        episodes: int = 64,
        minibatches: int = 4,
        epochs: int = 2,
        validation_episodes: int = 64,
        seed: int = 0,
        group: int = 1,
        steps: int | None = None,
        fragment: int | None = None,
        isolate: bool = False,
        step_timeout: float | None = None,
    ) -> None:
        super().__init__()
        counts = (worlds, episodes, minibatches, epochs, validation_episodes, group, steps or 1, fragment or 1)
        uneven = steps is None and ((not fragment and episodes % minibatches) or episodes % group)
        if min(counts) < 1 or uneven or 0 in (steps, fragment):
            raise UserError(
                f"data.worlds {worlds}, data.episodes {episodes}, data.minibatches {minibatches}, "
                f"data.epochs {epochs}, data.validation_episodes {validation_episodes}, data.group {group}, "
                f"data.steps {steps}, data.fragment {fragment}: "
                "expected 1 or more, and (unless steps decide) episodes a multiple of minibatches, if there are no "
                "fragments, and of group"
            )
        self.env, self.env_args = env, dict(env_args or {})
        self.worlds, self.episodes, self.minibatches, self.epochs = worlds, episodes, minibatches, epochs
        self.validation_episodes, self.seed = validation_episodes, seed
        self.group, self.steps, self.fragment = group, steps, fragment
        self.isolate, self.step_timeout = isolate, step_timeout
        self.burn_in, self.least, self.unused = 0, 1, 0
        self.buffer: Steps | None = None
        self.iteration = 0
        # The first episode of the next iteration, where `steps` decided how many there were before.
        self._next: int | None = None
        world = self.make_world()  # a wrong id or argument is found before anything is trained
        try:
            self.codec = ActionCodec(world.action_space)
            seen = Observations.of(world)
            self.image_size, self.vector_size = seen.image_size, seen.vector_size
            self.fps = fps_of(world)
        finally:
            world.close()

    def setup(self, stage: str | None = None) -> None:
        """Finds numbers that cannot be shared out over the processes before anything is played."""
        if self.steps is None:
            self.deal(0)
        _, ranks = world_of(self)
        if self.validation_episodes < ranks:
            raise UserError(
                f"data.validation_episodes is {self.validation_episodes}; expected one or more for each of the "
                f"{ranks} processes"
            )

    def make_world(self) -> gymnasium.Env[Any, Any]:
        """One environment."""
        return make_world(self.env, self.env_args, self.isolate, self.step_timeout)

    def play(self, sampler: Sampler, iteration: int, gather: Gather = lambda mine: [mine]) -> list[Trajectory]:
        """Plays this process's episodes of an iteration, and gives them in the order of their ids.

        Args:
            sampler: Plays.
            iteration: Which one; iterations are played one after another.
            gather: See `play_steps`.
        """
        start = self._start(iteration)
        if self.steps is None:
            dealt = self.deal(iteration)
            if self._next is not None:
                self._next = start + self.episodes
            # What follows must not depend on which world was quickest.
            return sorted(sampler.play(dealt), key=lambda t: t.id)
        process, group = world_of(self), self.group
        quota = Quota(self.steps, group, max(process[1], -(-self.least // group)))

        def seed_of(place: int) -> int:
            return episode_seeds("train", self.seed, 1, start + place - place % group)[0]

        played = play_steps(sampler, quota, start, seed_of, process, gather)
        self._next, self.unused = start + played.episodes, played.unused
        return played.trajectories

    def deal(self, iteration: int) -> list[tuple[int, int]]:
        """This process's episodes of an iteration: (id, seed), every process the same number, dealt out before play.

        Where `steps` decides how many there are, `play` deals them.
        """
        rank, ranks = world_of(self)
        if self.episodes % self.unit:
            raise UserError(
                f"data.episodes is {self.episodes}; expected a multiple of {self.unit}, which {ranks} processes, "
                f"data.minibatches {self.minibatches} and data.group {self.group} divide"
            )
        start, group = self._start(iteration), self.group
        seeds = episode_seeds("train", self.seed, self.episodes, start)
        return [(start + i, seeds[i - i % group]) for i in range(self.episodes) if i // group % ranks == rank]

    @property
    def unit(self) -> int:
        """What an iteration's number of episodes must be a multiple of: every process has as many, in whole groups."""
        _, ranks = world_of(self)
        return ranks * (self.group if self.fragment else math.lcm(self.group, self.minibatches))

    def _start(self, iteration: int) -> int:
        """An iteration's first episode."""
        return iteration * self.episodes if self._next is None else self._next

    def state_dict(self) -> dict[str, Any]:
        """Which episode comes next, where `steps` decided how many there were before."""
        return {} if self._next is None else {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._next = int(state_dict["next"])

    def fill(self, iteration: int, rollouts: list[Rollout]) -> None:
        """Puts an iteration's rollouts into the buffer, ordered by episode id."""
        self.iteration = iteration
        ordered = sorted(rollouts, key=lambda r: r.trajectory.id)
        self.buffer = Steps(ordered, self.fragment, self.burn_in)

    def largest_batch(self, longest: int) -> tuple[int, int]:
        """Sequences and frames of each in a batch of one process, if every episode has `longest` env steps."""
        _, ranks = world_of(self)
        episodes = self.episodes
        if self.steps is not None:
            episodes = max(math.ceil(self.steps / longest / self.group), ranks) * self.group
        pieces = math.ceil(episodes / ranks) * math.ceil(longest / (self.fragment or longest))
        frames = min(longest, self.fragment + self.burn_in) if self.fragment else longest
        return math.ceil(pieces / self.minibatches), frames

    def _plan(self, _: int) -> list[list[int]]:
        assert self.buffer is not None, "an iteration fills the buffer before it is trained on"
        count = len(self.buffer.pieces)
        rank, _ = world_of(self)
        passes = [
            np.array_split(rng(self.seed, self.iteration, n, rank).permutation(count), self.minibatches)
            for n in range(self.epochs)
        ]
        return [batch.tolist() for parts in passes for batch in parts]

    def _make(self, picked: list[int]) -> Batch:
        assert self.buffer is not None
        return self.buffer.batch(picked)

    def train_dataloader(self) -> ResumableLoader:
        """`epochs * minibatches` batches an iteration."""
        return ResumableLoader(self._plan, self._make, self.epochs * self.minibatches)

    def val_dataloader(self) -> ResumableLoader:
        """One batch that says which episodes to play: ids and seeds `(n, 2)` of this process."""
        return self._dealt("validation")

    def test_dataloader(self) -> ResumableLoader:
        """The same with the seeds of the final evaluation."""
        return self._dealt("evaluation")

    def _dealt(self, purpose: str) -> ResumableLoader:
        rank, ranks = world_of(self)
        dealt = list(enumerate(episode_seeds(purpose, self.seed, self.validation_episodes)))
        return ResumableLoader(lambda _: [dealt[rank::ranks]], lambda mine: {"episodes": torch.tensor(mine)}, 1)


def pad(trajectories: list[Trajectory], last: bool = False) -> tuple[Tensor, Tensor]:
    """Frames `(B, T, H, W, 3)` padded on the right and how many of each count `(B,)`.

    `last` includes the frame after the last action.
    """
    frames = pad_right([t.frames if last else t.frames[:-1] for t in trajectories])
    return frames, torch.tensor([len(t) + int(last) for t in trajectories])


def pad_vectors(trajectories: list[Trajectory], last: bool = False) -> Tensor:
    """The vector observations beside the frames of `pad`: `(B, T, V)`, float32, padded on the right."""
    return pad_right([t.vectors if last else t.vectors[:-1] for t in trajectories])


def in_batches(trajectories: list[Trajectory], size: int, run: Callable[[list[Trajectory]], list[Any]]) -> list[Any]:
    """Runs over trajectories of like length together, and gives the results back in the order of the trajectories."""
    order = sorted(range(len(trajectories)), key=lambda i: len(trajectories[i]))
    results: list[Any] = [None] * len(trajectories)
    for at in range(0, len(order), size):
        picked = order[at : at + size]
        for i, result in zip(picked, run([trajectories[i] for i in picked]), strict=True):
            results[i] = result
    return results
