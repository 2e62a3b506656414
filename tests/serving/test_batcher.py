"""For whom a step waits, and how long."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lit_align.serving.batcher import LONGEST, Batcher, Pace
from lit_align.serving.slots import Slots, Step
from tests.helpers import tiny_agent
from tests.serving.helpers import film

PATIENCE = 30.0


def test_a_lone_client_is_never_waited_for():
    pace, now = Pace(), 0.0
    for _ in range(5):
        pace.arrived(3, now)
        assert pace.due(now) == (set(), now)
        pace.stepped([3], now + 0.01, 0.01)
        now += 0.012


def played(*took: float, step: float = 0.004) -> Pace:
    """A pace that was answered at 10 s, by clients that took so long before."""
    pace = Pace()
    pace.stepped(range(len(took)), 0.0, step)
    for row, seconds in enumerate(took):
        pace.arrived(row, seconds)
    pace.stepped(range(len(took)), 10.0, step)
    return pace


def test_those_who_are_quicker_than_a_step_are_waited_for_twice_their_time_at_most():
    pace = played(0.001, 0.0015, 0.05, 0.003)
    pace.arrived(0, 10.001)
    assert pace.due(10.001) == ({1, 3}, pytest.approx(10.005))  # no longer than a step, and 2 takes its time
    assert pace.due(10.0025) == ({1, 3}, pytest.approx(10.006))
    assert pace.due(10.004) == ({3}, pytest.approx(10.006))  # 1 is late
    assert pace.due(10.007) == (set(), 10.007)


def test_no_step_waits_long_and_who_is_quick_again_is_waited_for_again():
    pace = played(0.03, LONGEST - 0.001, step=5.0)
    assert pace.due(10.0) == ({1}, pytest.approx(10.0 + LONGEST))
    pace = played(3.0)
    assert pace.due(10.001)[0] == set()
    pace.arrived(0, 10.002)
    pace.stepped([0], 11.0, 0.004)
    assert pace.due(11.001)[0] == {0}


def test_clients_that_come_together_are_answered_together_and_one_that_stays_away_holds_up_nobody():
    agent, rng = tiny_agent(), np.random.default_rng(0)

    async def turn(batcher, rows, t):
        steps = [Step(r, t == 0, film(r, 1)[0], np.zeros(0, np.float32), rng.random(16, np.float32)) for r in rows]
        answers = []
        for step in steps:  # each in its own turn of the loop, as from sockets
            answers.append(batcher.act(step))
            await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*answers), PATIENCE)

    async def all_turns():
        slots = Slots(agent, 4)
        act = slots.act
        slots.act = lambda steps: (time.sleep(0.02), act(steps))[1]  # so long that a turn is short beside it
        batcher = Batcher(slots)
        for t in range(8):
            await turn(batcher, range(4), t)
        together = batcher.sizes[4]
        for t in range(8, 12):
            await turn(batcher, range(3), t)
        await batcher.close()
        return together, batcher.sizes

    together, sizes = asyncio.run(all_turns())
    assert together >= 4
    assert sum(size * count for size, count in enumerate(sizes)) == 8 * 4 + 4 * 3


class Gated:
    """Slots whose steps end when they are let."""

    def __init__(self, count: int) -> None:
        self.cache, self.steps, self.free = SimpleNamespace(steps=range(count)), [], threading.Semaphore(0)

    def act(self, steps):
        self.steps.append([step.row for step in steps])
        assert self.free.acquire(timeout=PATIENCE)
        return np.array([[step.row] for step in steps], np.uint8), np.zeros(len(steps), np.float32)


def frame(row: int) -> Step:
    return Step(row, False, film(0, 1)[0], np.zeros(0, np.float32), np.zeros(1, np.float32))


async def begun(slots: Gated, count: int) -> None:
    end = time.monotonic() + PATIENCE
    while len(slots.steps) < count:
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def waits_for(batcher: Batcher, *rows: int) -> None:
    """Leaves it so that its next step waits for those, for as long as this test may take."""
    batcher._pace.due = lambda at: (set(rows), at + 10 * PATIENCE)  # type: ignore[method-assign]


def test_a_step_begins_at_once_when_the_last_of_those_it_waits_for_is_here():
    async def play():
        batcher = Batcher(slots := Gated(4))
        waits_for(batcher, 1, 2)
        answers = [batcher.act(frame(row)) for row in (0, 2)]
        await asyncio.sleep(0.05)
        assert slots.steps == []
        answers += [batcher.act(frame(3)), batcher.act(frame(1))]  # 3 comes along, 1 is the last
        await begun(slots, 1)
        assert slots.steps == [[0, 2, 3, 1]]
        slots.free.release()
        assert [int(classes[0]) for classes, _ in await asyncio.gather(*answers)] == [0, 2, 3, 1]
        await batcher.close()

    asyncio.run(play())


def test_the_end_comes_after_all_that_waits_and_takes_no_more():
    """While a step waits for somebody; and while one goes on and others wait behind it."""

    async def play():
        batcher = Batcher(slots := Gated(4))
        waits_for(batcher, 1)
        waiting = batcher.act(frame(0))
        ending = asyncio.ensure_future(batcher.close())
        await begun(slots, 1)
        with pytest.raises(RuntimeError, match="no more steps"):
            batcher.act(frame(1))
        slots.free.release()
        await asyncio.wait_for(ending, PATIENCE)
        assert waiting.done()

        batcher = Batcher(slots := Gated(4))
        answers = [batcher.act(frame(0))]
        await begun(slots, 1)
        waits_for(batcher, 3)
        answers += [batcher.act(frame(1)), batcher.act(frame(2))]
        ending = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0.05)
        assert not ending.done()
        slots.free.release(2)
        await asyncio.wait_for(ending, PATIENCE)
        assert slots.steps == [[0], [1, 2]]
        assert all(answer.done() for answer in answers)

    asyncio.run(play())


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
