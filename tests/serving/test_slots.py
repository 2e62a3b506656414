"""Many pasts in one cache, beside an agent for each client alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_align.serving.slots import Slots, Step
from tests.helpers import tiny_agent
from tests.serving.helpers import alone, film

COUNT = 5


@pytest.mark.parametrize("context", [1, 6])
def test_each_client_gets_what_it_would_get_alone_whoever_else_has_a_frame(context):
    agent = tiny_agent(context=context)
    rng = np.random.default_rng(0)
    episodes = [film(i, 30) for i in range(COUNT)]
    noise = [rng.random((30, 16), np.float32) for _ in range(COUNT)]
    kinds = [(1.0, 1.0), (0.0, 1.0), (0.5, 1.0), (1.0, 0.8), (1.0, 1.0)]
    slots = Slots(agent, COUNT)
    done = [0] * COUNT
    got = [[] for _ in range(COUNT)]
    sizes = set()
    while min(done) < 30:
        able = [row for row in range(COUNT) if done[row] < 30]
        rows = rng.permutation(able)[: rng.integers(1, len(able) + 1)]
        steps = [
            Step(
                row,
                done[row] == 0,
                episodes[row][done[row]],
                np.zeros(0, np.float32),
                noise[row][done[row]],
                *kinds[row],
            )
            for row in rows
        ]
        sizes.add(len(rows))
        for row, classes, log_prob in zip(rows, *slots.act(steps), strict=True):
            got[row].append((classes, log_prob))
            done[row] += 1
    assert sizes == set(range(1, COUNT + 1))
    for row in range(COUNT):
        classes, log_probs = alone(agent, episodes[row], noise[row], *kinds[row])
        assert np.array_equal(np.stack([c for c, _ in got[row]]), classes)
        assert np.array([p for _, p in got[row]]) == pytest.approx(log_probs, abs=1e-4)


@pytest.mark.parametrize("rows", [[1], [0, 1], [0, 3], [4, 1, 3]])
def test_the_cache_of_those_without_a_frame_does_not_change(rows):
    agent, rng = tiny_agent(), np.random.default_rng(0)
    slots = Slots(agent, COUNT)

    def step(row, fresh=False):
        return Step(row, fresh, film(row, 1)[0], np.zeros(0, np.float32), rng.random(16, np.float32))

    slots.act([step(row, True) for row in range(COUNT)])
    pairs = slots.cache.pairs.clone()
    slots.act([step(row) for row in rows])
    others = [row for row in range(COUNT) if row not in rows]
    assert torch.equal(slots.cache.pairs[:, :, others], pairs[:, :, others])
    assert slots.cache.steps.tolist() == [2 if row in rows else 1 for row in range(COUNT)]
    for row in rows:
        assert not torch.equal(slots.cache.pairs[:, :, row], pairs[:, :, row])


@torch.inference_mode()
def test_nothing_of_a_past_is_left_even_where_it_was_not_finite():
    agent = tiny_agent(vector_size=2)
    noise = np.random.default_rng(0).random((8, 16), np.float32)
    frames, vectors = film(0, 8), np.ones((8, 2), np.float32)
    slots = Slots(agent, 2)
    slots.act([Step(0, True, frames[0], vectors[0], noise[0])])
    slots.cache.pairs[:, :, 0] = torch.nan
    got = [slots.act([Step(0, t == 0, frames[t], vectors[t], noise[t])]) for t in range(8)]
    classes, log_probs = alone(agent, frames, noise, vectors=vectors)
    assert np.array_equal(np.concatenate([c for c, _ in got]), classes)
    assert np.concatenate([p for _, p in got]) == pytest.approx(log_probs, abs=1e-4)


def test_slots_are_taken_from_the_lowest():
    slots = Slots(tiny_agent(), 3)
    assert [slots.take() for _ in range(4)] == [0, 1, 2, None]
    slots.give_back(2)
    slots.give_back(0)
    assert [slots.take(), slots.take(), slots.take()] == [0, 2, None]
