"""For whom a step waits, and how long."""

from __future__ import annotations

import asyncio

import numpy as np

from lit_align.serving.batcher import LONGEST, SHORTEST, Batcher, Window
from lit_align.serving.slots import Slots, Step
from tests.helpers import tiny_agent
from tests.serving.helpers import film


def test_nobody_is_missing_where_one_plays_alone():
    window = Window()
    for _ in range(5):
        assert window.missing(frozenset({3})) == 0
        window.stepped(frozenset({3}), 0.01)


def test_the_clients_of_the_last_two_steps_are_missing():
    window = Window()
    for rows in ({9}, {1, 2}, {3}):
        window.stepped(frozenset(rows), 0.01)
    assert window.missing(frozenset({1})) == 2
    assert window.missing(frozenset({1, 2, 3})) == 0


def test_who_comes_is_waited_for_no_longer_than_a_step_and_who_does_not_hardly():
    window = Window()
    window.stepped(frozenset({1, 2}), 0.004)
    for _ in range(20):
        window.waited(4, 2)
    assert window.seconds == 0.004
    window.stepped(frozenset({1, 2}), 5.0)
    for _ in range(20):
        window.waited(4, 4)
    assert window.seconds == LONGEST
    for _ in range(20):
        window.waited(4, 1)
    assert window.seconds == SHORTEST


def test_every_frame_is_answered_whoever_comes_when():
    agent, rng = tiny_agent(), np.random.default_rng(0)

    async def play(batcher, row, steps):
        for t in range(steps):
            frame, noise = film(row, 1)[0], rng.random(16, np.float32)
            classes, _ = await batcher.act(Step(row, t == 0, frame, np.zeros(0, np.float32), noise))
            assert classes.shape == (16,)
            if row == 2:
                await asyncio.sleep(0.01)

    async def all_of_them():
        batcher = Batcher(Slots(agent, 4))
        await asyncio.gather(*(play(batcher, row, 5 + 5 * row) for row in range(4)))
        await batcher.close()
        return batcher.sizes

    sizes = asyncio.run(all_of_them())
    assert sum(size * count for size, count in enumerate(sizes)) == 5 + 10 + 15 + 20
