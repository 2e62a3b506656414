"""Null actions: kept, masked or dropped, against loops over the recorded steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.data.modules import TrajectoryDataModule
from lit_align.data.targets import Targets, onto_targets
from lit_align.data.windows import plan_epoch
from lit_align.errors import UserError
from lit_align.spaces import ActionCodec, gamepad_space
from tests.helpers import made_up, record

NULL = ActionCodec(gamepad_space()).null


def idle(episode, steps, share):
    """An episode in which nothing is done at a share of the steps; its vector says (episode, step)."""
    one = made_up(episode, steps, size=4)
    rests = np.random.default_rng(episode).random(steps) < share
    vectors = np.stack([np.full(steps + 1, episode), np.arange(steps + 1)], axis=1).astype(np.float32)
    return replace(one, vectors=vectors, actions=np.where(rests[:, None], NULL, one.actions).astype(np.uint8))


EPISODES = [idle(i, 4 + i, (0.0, 0.5, 0.9, 1.0)[i % 4]) for i in range(16)]
ACTED = {e.id: [t for t in range(len(e)) if e.actions[t].tolist() != NULL.tolist()] for e in EPISODES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return record(tmp_path_factory.mktemp("idle") / "play", EPISODES)


def batches_of(folder, how, window=100, loader="train_dataloader", **more):
    data = TrajectoryDataModule([folder], window=window, batch_size=2, null_actions=how, **more)
    data.setup()
    return data, list(getattr(data, loader)())


def rows_of(batch):
    """For each row of a batch: its episode, its steps, and what is beside them."""
    for row, length in enumerate(batch["lengths"].tolist()):
        vectors = batch["vectors"][row, :length]
        assert (vectors[:, 0] == vectors[0, 0]).all()
        yield row, EPISODES[int(vectors[0, 0])], vectors[:, 1].int().tolist()


def check_rows(batch):
    for row, episode, steps in rows_of(batch):
        assert np.array_equal(batch["frames"][row, : len(steps)], episode.frames[steps])
        assert np.array_equal(batch["actions"][row, : len(steps)], episode.actions[steps])
        for name in ("frames", "vectors", "actions"):
            assert not batch[name][row, len(steps) :].any()


def test_null_is_no_button_sticks_at_rest_and_the_first_choice():
    assert NULL.tolist() == [0] * 12 + [5] * 4
    other = spaces.Dict(
        {
            "choice": spaces.Discrete(4, start=-1),
            "many": spaces.MultiDiscrete([3, 2]),
            "press": spaces.MultiBinary(2),
            "steer": spaces.Box(-1.0, 1.0, (1,)),
            "throttle": spaces.Box(0.0, 30.0, (1,)),
            "tilt": spaces.Box(-3.0, 2.0, (1,)),
            "heat": spaces.Box(5.0, 9.0, (1,)),
        }
    )
    codec = ActionCodec(other)
    by_name = {head.name: int(c) for head, c in zip(codec.heads, codec.null, strict=True)}
    assert by_name.pop("tilt.0") == 6  # -3, -2.5, ..., 0
    assert by_name == {
        "choice": 0, "many.0": 0, "many.1": 0, "press.0": 0, "press.1": 0, "steer.0": 5, "throttle.0": 0, "heat.0": 5,
    }  # fmt: skip
    codec.check(codec.null)
    assert other.contains(codec.decode(codec.null))


def test_kept_steps_are_all_there_and_there_is_no_mask(folder):
    _, batches = batches_of(folder, "keep", val_fraction=0.0)
    seen: dict[int, list[int]] = {}
    for batch in batches:
        assert "mask" not in batch
        check_rows(batch)
        seen |= {episode.id: steps for _, episode, steps in rows_of(batch)}
    assert seen == {e.id: list(range(len(e))) for e in EPISODES}


def test_dropped_steps_are_taken_out_of_the_sequence(folder):
    data, batches = batches_of(folder, "drop", val_fraction=0.0)
    want = {i: steps for i, steps in ACTED.items() if steps}
    assert 0 < len(want) < len(EPISODES)
    assert sorted(data.lengths(data.train_episodes)) == sorted(map(len, want.values()))
    seen: dict[int, list[int]] = {}
    for batch in batches:
        assert "mask" not in batch
        check_rows(batch)
        seen |= {episode.id: steps for _, episode, steps in rows_of(batch)}
    assert len(seen) >= len(want) - 1  # an odd one out fills no batch
    assert seen == {i: want[i] for i in seen}


def test_windows_of_dropped_sequences_are_pieces_of_them(folder):
    _, batches = batches_of(folder, "drop", window=3, val_fraction=0.0)
    for batch in batches:
        check_rows(batch)
        for _, episode, steps in rows_of(batch):
            at = ACTED[episode.id].index(steps[0])
            assert steps == ACTED[episode.id][at : at + len(steps)]


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
@pytest.mark.parametrize("window", [2, 5, 100])
def test_masked_steps_are_seen_and_are_no_targets(folder, window, loader):
    _, batches = batches_of(folder, "mask", window, loader, val_fraction=0.5 if loader == "val_dataloader" else 0.0)
    assert batches
    for batch in batches:
        check_rows(batch)
        assert batch["mask"].dtype == torch.bool
        for row, episode, steps in rows_of(batch):
            assert steps == list(range(steps[0], steps[0] + len(steps)))
            want = [t in ACTED[episode.id] for t in steps]
            assert batch["mask"][row].tolist() == want + [False] * (batch["mask"].shape[1] - len(want))
            assert any(want), "a window without a target teaches nothing"


@pytest.mark.parametrize("how", ["mask", "drop"])
def test_validation_holds_every_target_of_its_episodes_once(folder, how):
    data, batches = batches_of(folder, how, 3, "val_dataloader", val_fraction=0.5)
    seen = [
        (episode.id, step)
        for batch in batches
        for row, episode, steps in rows_of(batch)
        for place, step in enumerate(steps)
        if how == "drop" or batch["mask"][row, place]
    ]
    held_out = [int(e) for _, e in data.val_episodes]
    assert sorted(seen) == [(i, step) for i in sorted(held_out) for step in ACTED[i]]


@pytest.mark.parametrize("how", ["mask", "drop"])
def test_nothing_but_null_actions_is_an_error(tmp_path, how):
    folder = record(tmp_path / "play", [idle(i, 5, 1.0) for i in range(3)])
    data = TrajectoryDataModule([folder], null_actions=how)
    with pytest.raises(UserError, match="hold null actions only: set data.null_actions to keep"):
        data.setup()
    with pytest.raises(UserError, match="null_actions is 'skip'; expected keep, mask or drop"):
        TrajectoryDataModule([folder], null_actions="skip")  # type: ignore[arg-type]


@st.composite
def plays(draw):
    lengths = draw(st.lists(st.integers(1, 30), min_size=1, max_size=12))
    steps = [draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4, unique=True).map(sorted)) for n in lengths]
    return np.array(lengths), steps, draw(st.integers(1, 9)), draw(st.integers(0, 99))


@settings(max_examples=100, deadline=None)
@given(plays())
def test_every_window_is_moved_onto_a_target_if_it_holds_none(drawn):
    lengths, steps, window, seed = drawn
    targets = Targets.join([np.array(s, np.int64) for s in steps])
    assert targets.counts.tolist() == [len(s) for s in steps]
    for batch in plan_epoch(lengths, window, 1, seed, 0, targets=targets):
        for w in batch:
            assert 0 <= w.start <= lengths[w.episode] - w.length
            assert any(w.start <= t < w.start + w.length for t in steps[w.episode])
    rng = np.random.default_rng(seed)
    episodes = rng.integers(0, len(lengths), 50)
    sizes = np.minimum(lengths[episodes], window)
    starts = rng.integers(0, lengths[episodes] - sizes + 1)
    moved = onto_targets(episodes, starts, sizes, lengths, targets, rng)
    for episode, before, after, size in zip(episodes, starts, moved, sizes, strict=True):
        if any(before <= t < before + size for t in steps[episode]):
            assert after == before
