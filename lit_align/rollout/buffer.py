"""The data module of online RL: a buffer that one iteration fills and its minibatches empty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import lightning.pytorch as pl
import torch
from torch import Tensor

from lit_align.data.cache import pad_right
from lit_align.data.loader import ResumableLoader, rng
from lit_align.data.modules import Batch, world_of
from lit_align.data.trajectory import Trajectory
from lit_align.envs.gym import Observations, make
from lit_align.errors import UserError
from lit_align.seeds import episode_seeds
from lit_align.spaces import ActionCodec


@dataclass
class Rollout:
    """A trajectory and what the update needs of it.

    Attributes:
        trajectory: The episode.
        advantage: Of the whole episode: its actions share it.
        reference: Log-probabilities of every class under the reference policy `(T, heads, widest)`, float32.
    """

    trajectory: Trajectory
    advantage: float
    reference: Tensor


class RolloutDataModule(pl.LightningDataModule):
    """Worlds to play in, and the batches of an iteration.

    One Lightning epoch is one iteration: `RolloutCallback` plays the episodes and fills the buffer, then the loop draws
    `epochs` passes of `minibatches` batches over it. Batches are whole episodes.

    Args:
        env: Gymnasium id of the world.
        env_args: Arguments that it is made with.
        worlds: Worlds that each process steps together.
        episodes: Episodes of an iteration, over all processes; a multiple of processes x minibatches.
        minibatches: Optimizer steps in a pass over the buffer.
        epochs: Passes over the buffer; 1 pass, 1 minibatch and no clipping is REINFORCE.
        validation_episodes: Episodes of `validate`.
        seed: Decides worlds, choices and order.

    Attributes:
        codec: The world's action space.
        image_size: Height and width of its frames in pixels; 0 without pixels.
        vector_size: Numbers in its vector observation; 0 without one.
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
    ) -> None:
        super().__init__()
        if min(worlds, episodes, minibatches, epochs, validation_episodes) < 1 or episodes % minibatches:
            raise UserError(
                f"data.worlds {worlds}, data.episodes {episodes}, data.minibatches {minibatches}, "
                f"data.epochs {epochs}: "
                "expected 1 or more, and episodes a multiple of minibatches"
            )
        self.env, self.env_args = env, dict(env_args or {})
        self.worlds, self.episodes, self.minibatches, self.epochs = worlds, episodes, minibatches, epochs
        self.validation_episodes, self.seed = validation_episodes, seed
        self.buffer: list[Rollout] = []
        self.iteration = 0
        world = self.make_world()  # a wrong id or argument is found before anything is trained
        try:
            self.codec = ActionCodec(world.action_space)
            seen = Observations.of(world)
            self.image_size, self.vector_size = seen.image_size, seen.vector_size
        finally:
            world.close()

    def setup(self, stage: str | None = None) -> None:
        """Finds numbers that cannot be shared out over the processes before anything is played."""
        self.deal(0)
        _, ranks = world_of(self)
        if self.validation_episodes < ranks:
            raise UserError(
                f"data.validation_episodes is {self.validation_episodes}; expected one or more for each of the "
                f"{ranks} processes"
            )

    def make_world(self) -> gymnasium.Env[Any, Any]:
        """One environment."""
        return make(self.env, **self.env_args)

    def deal(self, iteration: int) -> list[tuple[int, int]]:
        """This process's episodes of an iteration: (id, seed), every process the same number, dealt out before play."""
        rank, ranks = world_of(self)
        if self.episodes % (ranks * self.minibatches):
            raise UserError(
                f"data.episodes is {self.episodes}; expected a multiple of "
                f"processes x data.minibatches = {ranks} x {self.minibatches}"
            )
        start = iteration * self.episodes
        seeds = episode_seeds("train", self.seed, self.episodes, start)
        return [(start + i, seeds[i]) for i in range(rank, self.episodes, ranks)]

    def fill(self, iteration: int, rollouts: list[Rollout]) -> None:
        """Puts an iteration's rollouts into the buffer, ordered by episode id."""
        self.iteration = iteration
        self.buffer = sorted(rollouts, key=lambda r: r.trajectory.id)

    def _plan(self, _: int) -> list[list[int]]:
        count = len(self.buffer)
        size = count // self.minibatches
        rank, _ = world_of(self)
        passes = [
            rng(self.seed, self.iteration, n, rank).permutation(count).reshape(self.minibatches, size)
            for n in range(self.epochs)
        ]
        return [batch.tolist() for order in passes for batch in order]

    def _make(self, picked: list[int]) -> Batch:
        rollouts = [self.buffer[i] for i in picked]
        return collate(rollouts)

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


def collate(rollouts: list[Rollout]) -> Batch:
    """Rollouts as one batch, padded on the right.

    Its entries: frames, vectors, actions, log_probs `(B, T)`, reference `(B, T, heads, widest)`, advantages `(B,)`,
    lengths.
    """
    trajectories = [r.trajectory for r in rollouts]
    frames, lengths = pad(trajectories)
    steps = frames.shape[1]

    def stack(values: list[Tensor]) -> Tensor:
        return torch.stack([torch.cat((v, v.new_zeros(steps - len(v), *v.shape[1:]))) for v in values])

    return {
        "frames": frames,
        "vectors": pad_vectors(trajectories),
        "lengths": lengths,
        "actions": stack([torch.from_numpy(t.actions) for t in trajectories]),
        "log_probs": stack([torch.from_numpy(t.log_probs) for t in trajectories if t.log_probs is not None]),
        "reference": stack([r.reference for r in rollouts]),
        "advantages": torch.tensor([r.advantage for r in rollouts]),
    }


def in_batches(trajectories: list[Trajectory], size: int, run: Callable[[list[Trajectory]], list[Any]]) -> list[Any]:
    """Runs over trajectories of like length together, and gives the results back in the order of the trajectories."""
    order = sorted(range(len(trajectories)), key=lambda i: len(trajectories[i]))
    results: list[Any] = [None] * len(trajectories)
    for at in range(0, len(order), size):
        picked = order[at : at + size]
        for i, result in zip(picked, run([trajectories[i] for i in picked]), strict=True):
            results[i] = result
    return results
