"""Iterations of so many env steps: the same episodes whichever is quickest, on any number of worlds and processes."""

import random
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.rollout.buffer import RolloutDataModule
from lit_align.rollout.quota import Played, Quota, play_steps
from lit_align.rollout.sampler import Sampler
from lit_align.seeds import episode_seeds
from tests.helpers import LightWorld, tiny_agent


class Made:
    """Stands for a trajectory."""

    def __init__(self, episode: int, length: int) -> None:
        self.id, self.length = episode, length

    def __len__(self) -> int:
        return self.length


class Uneven:
    """Plays like the sampler, each world at a pace of its own; an episode's length is a function of its id.

    Args:
        length_of: Env steps of an episode.
        worlds: Episodes side by side.
        noise: Decides which worlds move.
        fails: How often an episode's world dies after a step, and it is begun again.
    """

    def __init__(self, length_of: Any, worlds: int, noise: random.Random, fails: float = 0.0) -> None:
        self.length_of, self.worlds, self.noise, self.fails = length_of, worlds, noise, fails
        self.steps = 0

    def play(self, episodes: Iterable[tuple[int, int]], wants: Any = None) -> Iterator[Made]:
        queue = iter(episodes)
        running = [[one[0], 0] for one in (next(queue, None) for _ in range(self.worlds)) if one]
        while running:
            world = self.noise.choice(running)
            world[1] += 1
            self.steps += 1
            wanted = wants is None or wants(world[0], world[1])
            ended = world[1] == self.length_of(world[0])
            if self.noise.random() < self.fails and not ended:
                world[1] = 0
                continue
            if ended:
                yield Made(*world)
            if ended or not wanted:
                following = next(queue, None)
                running.remove(world)
                if following:
                    running.append([following[0], 0])


def on_processes(ranks: int, run: Any) -> list[Any]:
    """What each process gives, all of them at once; `run` takes a rank and a function that gathers."""
    parts: list[Any] = [None] * ranks
    found: list[Any] = [None] * ranks
    meet = threading.Barrier(ranks, timeout=60)

    def gather(rank: int, mine: Any) -> list[Any]:
        parts[rank] = mine
        meet.wait()
        together = list(parts)
        meet.wait()
        return together

    def process(rank: int) -> None:
        try:
            found[rank] = run(rank, partial(gather, rank))
        except BaseException:
            meet.abort()
            raise

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def fewest(lengths: list[int], steps: int, group: int, least: int) -> int:
    """How many first episodes, in whole groups, hold so many steps: by trying all."""
    held = [0, *accumulate(lengths)]
    return next(n for n in range(group * least, len(lengths) + 1) if n % group == 0 and held[n] >= steps)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 120),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.05]),
)
def test_the_episodes_are_the_first_that_suffice_whoever_was_quickest(steps, ranks, group, worlds, least, luck, fails):
    least = max(least, ranks)
    noise = random.Random(luck)
    longest = noise.choice([1, 4, 60])
    lengths = [noise.randint(1, longest) for _ in range(300)]
    start = 17
    samplers = [
        Uneven(lambda i: lengths[i - start], worlds, random.Random(f"{luck} {rank}"), fails) for rank in range(ranks)
    ]

    def run(rank: int, gather: Any) -> Played:
        quota = Quota(steps, group, least)
        return play_steps(samplers[rank], quota, start, lambda place: place, (rank, ranks), gather)  # type: ignore[arg-type]

    found = on_processes(ranks, run)
    wanted = fewest(lengths, steps, group, least)
    assert {played.episodes for played in found} == {wanted}
    for rank, played in enumerate(found):
        mine = [start + i for i in range(wanted) if i // group % ranks == rank]
        assert [t.id for t in played.trajectories] == mine
        if not fails:
            assert played.unused == samplers[rank].steps - sum(map(len, played.trajectories))


def test_one_world_plays_nothing_in_vain_and_more_stop_when_it_is_sure():
    lengths = [500] * 20
    # In the 48th step of the fifth there are 2048; of two episodes 24 steps are enough, of three 16.
    for worlds, beyond in ((1, 0), (4, 48 + 24 + 16)):
        sampler = Uneven(lambda i: lengths[i], 1, random.Random(0))
        sampler.play = partial(lock_step, lengths, worlds)  # type: ignore[method-assign]
        played = play_steps(sampler, Quota(2048), 0, lambda place: place)  # type: ignore[arg-type]
        assert (played.episodes, played.unused) == (5, beyond)


def lock_step(
    lengths: list[int], worlds: int, episodes: Iterable[tuple[int, int]], wants: Any = None
) -> Iterator[Made]:
    """All worlds move together, as the sampler's do."""
    queue = iter(episodes)
    running = [[one[0], 0] if one else None for one in (next(queue, None) for _ in range(worlds))]
    while any(running):
        for w, world in enumerate(running):
            if world is None:
                continue
            world[1] += 1
            wanted = wants is None or wants(world[0], world[1])
            if world[1] == lengths[world[0]]:
                yield Made(*world)
            if world[1] == lengths[world[0]] or not wanted:
                following = next(queue, None)
                running[w] = [following[0], 0] if following else None


@pytest.mark.parametrize("group", [1, 2])
def test_the_sampler_plays_the_same_iterations_on_any_number_of_worlds_and_processes(group):
    def iterations(ranks: int, worlds: int) -> list[list[tuple[int, int, bytes]]]:
        """The episodes of two iterations, over all processes, and again after the data module's state was restored."""
        modules = [
            RolloutDataModule("tests.helpers:LitAlign-test/Light-v0", steps=70, group=group, episodes=3, minibatches=2)
            for _ in range(ranks)
        ]
        for rank, data in enumerate(modules):
            data.trainer = SimpleNamespace(global_rank=rank, world_size=ranks)  # type: ignore[assignment]
            data.setup()
        agents = [tiny_agent() for _ in range(ranks)]
        told = []
        for iteration in range(2):
            if iteration == 1:
                states = [data.state_dict() for data in modules]
                for data, state in zip(modules, states, strict=True):
                    data._next = None
                    data.load_state_dict(state)

            def run(rank: int, gather: Any, iteration: int = iteration) -> list[Any]:
                with Sampler(agents[rank], LightWorld, worlds, threads=1) as sampler:
                    return modules[rank].play(sampler, iteration, gather)

            together = sorted((t for part in on_processes(ranks, run) for t in part), key=lambda t: t.id)
            told.append([(t.id, t.seed, t.actions.tobytes()) for t in together])
            assert len({data._next for data in modules}) == 1
        return told

    alone = iterations(1, 1)
    ids = [episode for iteration in alone for episode, _, _ in iteration]
    assert ids == list(range(len(ids)))
    seeds = episode_seeds("train", 0, len(ids))
    assert [seed for iteration in alone for _, seed, _ in iteration] == [seeds[i - i % group] for i in ids]
    for ranks, worlds in ((1, 5), (2, 1), (2, 3)):
        assert iterations(ranks, worlds) == alone


def test_an_iteration_goes_on_from_the_last_ones_episodes_when_steps_are_no_longer_asked_for():
    data = RolloutDataModule("CartPole-v1", steps=40, episodes=4, minibatches=2)
    assert data.state_dict() == {}
    with Sampler(tiny_agent(space=data.codec.space, image_size=0, vector_size=4), data.make_world, 2) as sampler:
        count = len(data.play(sampler, 0))
        plain = RolloutDataModule("CartPole-v1", episodes=4, minibatches=2)
        plain.load_state_dict(data.state_dict())
        assert [t.id for t in plain.play(sampler, 1)] == list(range(count, count + 4))
        assert [i for i, _ in plain.deal(2)] == list(range(count + 4, count + 8))
    assert RolloutDataModule("CartPole-v1", episodes=4, minibatches=2).state_dict() == {}
