"""Playing until there are enough env steps: which episodes that takes depends on the episodes alone.

An iteration of `steps` env steps is the first episodes in the order of their ids, in whole groups, the fewest that hold
so many. An episode is a function of its id and of who plays, so this set is the same whichever world was quickest, and
for any number of worlds and processes. Worlds are kept busy with the next episodes until it is sure that no more are
needed; what was played beyond the set is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count

from lit_align.data.trajectory import Trajectory
from lit_align.rollout.sampler import Sampler

Gather = Callable[[dict[int, int]], list[dict[int, int]]]
"""Hands every process what each process has: places of episodes in the iteration, with their lengths in env steps."""


@dataclass(frozen=True)
class Quota:
    """What an iteration should hold, over all processes.

    Attributes:
        steps: Env steps.
        group: Episodes of a group, which are played by one process, side by side.
        least: Groups at the least.
    """

    steps: int
    group: int = 1
    least: int = 1

    def episodes(self, lengths: Mapping[int, int]) -> tuple[int, bool]:
        """The fewest first episodes, in whole groups, that surely suffice.

        Args:
            lengths: Of some of the episodes, by place, in env steps; what is not known counts as 0.

        Returns:
            How many, and whether these are the iteration: all of them are known, and they are enough. Where all that
            is known is not enough, as many groups more as there should be at the least.
        """
        beyond = max(lengths, default=-1) + 1
        groups, held, whole = 0, 0, True
        while (held < self.steps or groups < self.least) and groups * self.group < beyond:
            places = range(groups * self.group, (groups + 1) * self.group)
            held += sum(lengths.get(place, 0) for place in places)
            whole = whole and all(place in lengths for place in places)
            groups += 1
        if held < self.steps or groups < self.least:
            return (groups + self.least) * self.group, False
        return groups * self.group, whole


class Share:
    """Deals one process its episodes in order until they surely hold its share, told of every step that is played.

    Args:
        quota: The process's own part.
        episodes: Its episodes as (id, seed), ascending, without an end.
    """

    def __init__(self, quota: Quota, episodes: Iterator[tuple[int, int]]) -> None:
        self._quota, self._episodes = quota, episodes
        self._order: dict[int, int] = {}
        self._taken: list[int] = []  # steps so far of each episode, in the order in which they were dealt
        self._kept, self._held = 0, 0  # the first so many are needed still; their steps so far

    @property
    def steps(self) -> int:
        """Env steps of all that was played."""
        return sum(self._taken)

    def deal(self) -> Iterator[tuple[int, int]]:
        """Episodes, for as long as those that were dealt may not be enough."""
        quota = self._quota
        while self._held < quota.steps or self._kept < quota.least * quota.group or self._kept % quota.group:
            episode, seed = next(self._episodes)
            self._order[episode] = len(self._taken)
            self._taken.append(0)
            self._kept += 1
            yield episode, seed

    def wants(self, episode: int, steps: int) -> bool:
        """Takes in that a running episode has `steps` env steps so far; whether it is needed still."""
        place, size = self._order[episode], self._quota.group
        more = max(0, steps - self._taken[place])  # an episode that starts again has had its steps counted
        self._taken[place] += more
        if place < self._kept:
            self._held += more
        while self._kept > self._quota.least * size and self._kept % size == 0:
            last = sum(self._taken[self._kept - size : self._kept])
            if self._held - last < self._quota.steps:
                break
            self._held, self._kept = self._held - last, self._kept - size
        return place < self._kept


@dataclass(frozen=True)
class Played:
    """What came of playing.

    Attributes:
        trajectories: This process's episodes, in the order of their ids.
        episodes: Of the iteration, over all processes.
        unused: Env steps that this process played beyond them.
    """

    trajectories: list[Trajectory]
    episodes: int
    unused: int


def play_steps(
    sampler: Sampler,
    quota: Quota,
    start: int,
    seed_of: Callable[[int], int],
    process: tuple[int, int] = (0, 1),
    gather: Gather = lambda mine: [mine],
) -> Played:
    """Plays this process's part of an iteration.

    First every process plays its share of the steps; then what is missing among the first episodes that are needed. So
    processes wait for each other twice in most iterations.

    Args:
        sampler: Plays.
        quota: Of the iteration, over all processes.
        start: The iteration's first episode.
        seed_of: The world's seed of the episode at a place of the iteration.
        process: Rank and number of processes; groups are dealt to them in turns.
        gather: Of all processes, each of which calls it as often.
    """
    (rank, ranks), size = process, quota.group

    def dealt(group: int) -> list[tuple[int, int]]:
        return [(start + place, seed_of(place)) for place in range(group * size, (group + 1) * size)]

    own = Quota(-(-quota.steps // ranks), size, -(-quota.least // ranks))
    share = Share(own, chain.from_iterable(dealt(group) for group in count(rank, ranks)))
    played = {t.id - start: t for t in sampler.play(share.deal(), share.wants)}
    taken = share.steps
    while True:
        known: dict[int, int] = {}
        for part in gather({place: len(t) for place, t in played.items()}):
            known |= part
        episodes, enough = quota.episodes(known)
        if enough:
            kept = [played[place] for place in sorted(played) if place < episodes]
            return Played(kept, episodes, taken - sum(map(len, kept)))
        mine = chain.from_iterable(dealt(group) for group in range(rank, episodes // size, ranks))
        for t in sampler.play([one for one in mine if one[0] - start not in played]):
            played[t.id - start] = t
            taken += len(t)
