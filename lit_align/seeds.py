"""Seeds of episodes: one range a purpose, so that what is trained on is never what is measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_align.errors import UserError

if TYPE_CHECKING:
    import numpy as np

PURPOSES = ("play", "demonstrations", "rollouts", "train", "validation", "evaluation")
_RUNS = 1 << 7  # run seeds 0..127
_EPISODES = 1 << 21  # episodes of one purpose in one run; all in all 31 bits, which every world takes


def episode_seeds(purpose: str, seed: int, count: int, start: int = 0) -> list[int]:
    """Seeds of the episodes `start .. start + count - 1` that a run plays for a purpose.

    Two different (purpose, seed, index) never share an episode seed.

    Args:
        purpose: One of `PURPOSES`.
        seed: The run's seed, 0 to 127.
        count: Number of episodes.
        start: Index of the first one.

    Raises:
        ValueError: Unknown purpose, or a number out of its range.
    """
    if purpose not in PURPOSES:
        raise UserError(f"unknown purpose {purpose!r} for episode seeds; expected one of {', '.join(PURPOSES)}")
    if not 0 <= seed < _RUNS:
        raise UserError(f"the run's seed is {seed}; expected 0 to {_RUNS - 1}")
    if start < 0 or count < 0 or start + count > _EPISODES:
        raise UserError(f"episodes {start} to {start + count} asked for; a run has {_EPISODES} for each purpose")
    base = (PURPOSES.index(purpose) * _RUNS + seed) * _EPISODES + start
    return list(range(base, base + count))


def noise_of(seed: int, episode: int, world_seed: int) -> np.random.Generator:
    """The source of all that is drawn in an episode: of its actions, or by who plays it.

    Args:
        seed: The run's or the client's.
        episode: The episode's number.
        world_seed: The seed that its world begins with.
    """
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence([seed, episode, world_seed]))
