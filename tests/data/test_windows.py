"""Which windows an epoch holds, and that a loader goes on where it was."""

import itertools
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.data.loader import ResumableLoader
from lit_align.data.modules import TrajectoryDataModule
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.select import Select
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.data.windows import batches_per_epoch, plan_epoch
from lit_align.errors import UserError
from tests.helpers import made_up, record

plans = st.tuples(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(1, 3),
)


@settings(max_examples=150, deadline=None)
@given(plans)
def test_windows_lie_inside_their_episodes_and_ranks_share_them_out(drawn):
    lengths, window, batch_size, seed, epoch, ranks = drawn
    lengths = np.array(lengths)
    parts = [plan_epoch(lengths, window, batch_size, seed, epoch, rank, ranks) for rank in range(ranks)]
    count = batches_per_epoch(lengths, window, batch_size, ranks)
    assert [len(part) for part in parts] == [count] * ranks
    windows = [w for part in parts for batch in part for w in batch]
    assert len(windows) == count * ranks * batch_size
    assert all(
        w.length == min(window, lengths[w.episode]) and 0 <= w.start <= lengths[w.episode] - w.length for w in windows
    )
    per_episode = np.bincount([w.episode for w in windows], minlength=len(lengths))
    assert (per_episode <= np.ceil(lengths / window)).all()
    alone = plan_epoch(lengths, window, batch_size, seed, epoch)
    assert sum(len(part) for part in parts) <= len(alone) + ranks
    assert plan_epoch(lengths, window, batch_size, seed, epoch, 0, ranks) == parts[0]


def test_other_epochs_and_seeds_have_another_order():
    lengths = np.full(64, 30)
    first = plan_epoch(lengths, 16, 4, seed=0, epoch=0)
    assert plan_epoch(lengths, 16, 4, seed=0, epoch=1) != first
    assert plan_epoch(lengths, 16, 4, seed=1, epoch=0) != first


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 20))
def test_a_loader_goes_on_with_the_very_next_batch(length, stop):
    def make():
        return ResumableLoader(lambda epoch: [(epoch, i) for i in range(length)], lambda d: {"batch": d}, length)

    def endless(loader):
        while True:
            yield from loader

    loader = make()
    before = list(itertools.islice(endless(loader), stop))
    after = make()
    after.load_state_dict(loader.state_dict())
    found = before + list(itertools.islice(endless(after), 5))
    assert [batch["batch"] for batch in found] == [divmod(i, length) for i in range(stop + 5)]


def test_batches_hold_the_recorded_frames_beside_their_actions(tmp_path):
    folder = record(tmp_path / "play", [made_up(i, 5 + i) for i in range(8)])
    data = TrajectoryDataModule([folder], window=6, batch_size=3, val_fraction=0.25)
    data.setup()
    known = {
        tuple(t.frames[s].ravel()[:40].tolist()): t.actions[s]
        for t in (made_up(i, 5 + i) for i in range(8))
        for s in range(len(t))
    }
    batches = list(data.train_dataloader())
    assert batches
    for batch in batches:
        for row, length in enumerate(batch["lengths"].tolist()):
            for step in range(length):
                want = known[tuple(batch["frames"][row, step].numpy().ravel()[:40].tolist())]
                assert np.array_equal(batch["actions"][row, step].numpy(), want)
    train = {tuple(e) for e in data.train_episodes.tolist()}
    assert len(train) == 6
    assert train.isdisjoint(tuple(e) for e in data.val_episodes.tolist())


def test_validation_sees_every_step_of_the_held_out_episodes_once(tmp_path):
    folder = record(tmp_path / "play", [made_up(i, 5 + 3 * i) for i in range(8)])
    data = TrajectoryDataModule([folder], window=6, batch_size=3, val_fraction=0.5)
    data.setup()
    held_out = [made_up(int(e), 5 + 3 * int(e)) for _, e in data.val_episodes]
    want = sorted(t.frames[s].tobytes() for t in held_out for s in range(len(t)))
    batches = list(data.val_dataloader())
    seen = [
        b["frames"][row, s].numpy().tobytes() for b in batches for row, n in enumerate(b["lengths"]) for s in range(n)
    ]
    assert sorted(seen) == want


def test_selection_keeps_what_it_says(tmp_path):
    episodes = [made_up(i, 3 + i, outcome="left" if i % 2 else "none") for i in range(10)]
    folder = record(tmp_path / "play", episodes)
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"scores": {str(i): float(-i) for i in range(10)}}))
    dataset = TrajectoryDataset(folder)
    assert Select(scores=str(scores), top=0.2).apply(dataset).tolist() == [0, 1]
    assert Select(outcomes=["left"], max_steps=8).apply(dataset).tolist() == [1, 3, 5]
    assert Select(scores=str(scores), at_least=-4.0, outcomes=["left"], limit=1).apply(dataset).tolist() == [1]
    with pytest.raises(ValueError, match="leaves no episode"):
        Select(outcomes=["middle"]).apply(dataset)
    with pytest.raises(ValueError, match=r"need data\.select\.scores"):
        Select(top=0.2).apply(dataset)
    scores.write_text(json.dumps({"scores": {"0": 1.0}}))
    with pytest.raises(ValueError, match="no score for 9 of the 10"):
        Select(scores=str(scores)).apply(dataset)


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 6),
    change=st.sampled_from([{}, {"outcome": "right"}, {"seed": 7}, {"steps": 2}]),
    drawn=st.data(),
)
def test_scores_are_of_their_episodes_alone_however_many_of_them_there_are(count, change, drawn):
    some = drawn.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    changed = drawn.draw(st.sampled_from(some))
    usual: dict[str, Any] = {"steps": 1, "size": 8}
    with tempfile.TemporaryDirectory() as folder:
        whole = TrajectoryDataset(record(f"{folder}/play", [made_up(i, **usual) for i in range(count)]))
        part = [made_up(i, **usual | (change if i == changed else {})) for i in some]
        dataset = TrajectoryDataset(record(f"{folder}/part", part))
        content = {"scores": {str(i): float(i) for i in range(count)}, "episodes": whole.digests()}
        (scores := Path(folder, "scores.json")).write_text(json.dumps(content))
        assert len(Select(scores=str(scores)).apply(whole)) == count
        if not change:
            assert len(Select(scores=str(scores)).apply(dataset)) == len(some)
            return
        said = rf"other episodes than 1 of the {len(some)} of .*part', under the same ids .*first: {changed}\)"
        with pytest.raises(UserError, match=said):
            Select(scores=str(scores)).apply(dataset)


def test_scores_whose_episodes_are_told_otherwise_are_refused(tmp_path):
    dataset = TrajectoryDataset(record(tmp_path / "play", [made_up(0, 3)]))
    (scores := tmp_path / "scores.json").write_text(json.dumps({"scores": {"0": 1.0}, "episodes": "0123"}))
    with pytest.raises(UserError, match=r"'0123' as episodes; expected .* make it again"):
        Select(scores=str(scores)).apply(dataset)


def test_a_selection_is_told_with_what_in_it_fits_nothing(tmp_path, caplog):
    def said(outcomes: list[str] | None) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            TrajectoryDataModule([play], select=Select(outcomes=outcomes)).prepare_data()
        return caplog.text

    play = record(tmp_path / "play", [made_up(i, 3, outcome=("left", "none", "right")[i % 3]) for i in range(8)])
    told = said(["left", "rihgt"])
    assert f"data.select keeps 3 of the 8 episodes of '{play}'" in told
    assert "ends 'rihgt', which data.select.outcomes names; did you mean right? (outcomes" in told
    assert "WARNING" not in said(["left", "right"])
    assert "data.select" not in said(None)
    with pytest.raises(UserError, match=r"data.select.outcomes names 'Right', and .* end 'right'; expected the same"):
        said(["left", "Right"])


def test_the_best_are_counted_against_all_and_picked_from_what_other_conditions_leave(tmp_path):
    episodes = [made_up(i, 3, outcome="left" if i < 4 else "none") for i in range(10)]
    dataset = TrajectoryDataset(record(tmp_path / "play", episodes))
    (scores := tmp_path / "scores.json").write_text(json.dumps({"scores": {str(i): float(i) for i in range(10)}}))
    assert Select(scores=str(scores), top=0.3, outcomes=["left"]).apply(dataset).tolist() == [1, 2, 3]


def test_episodes_that_a_reward_model_is_tested_on_can_be_left_out(tmp_path):
    dataset = TrajectoryDataset(record(tmp_path / "play", [made_up(10 + n, 4) for n in range(10)]))
    pairs = {
        "train": Preferences(np.array([11, 13, 15]), np.array([13, 17, 19])),
        "test": Preferences(np.array([10, 12]), np.array([14, 12])),
    }
    write_preferences(tmp_path / "pairs", pairs, PreferenceMeta(str(tmp_path / "play")), "now")
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"scores": {str(10 + n): float(n) for n in range(10)}}))
    compared = str(tmp_path / "pairs")
    assert Select(compared=compared).apply(dataset).tolist() == [1, 3, 5, 7, 9]
    # The best two fifths of those five; of all ten it would be four.
    assert Select(compared=compared, scores=str(scores), top=0.4).apply(dataset).tolist() == [7, 9]
    assert Select(scores=str(scores), top=0.4).apply(dataset).tolist() == [6, 7, 8, 9]
    with pytest.raises(UserError, match="has no meta.json"):
        Select(compared=str(tmp_path)).apply(dataset)


def test_folders_that_do_not_go_together_are_named(tmp_path):
    a = record(tmp_path / "a", [made_up(0, 5)])
    b = record(tmp_path / "b", [made_up(0, 5, space=made_up_space())], space=made_up_space())
    with pytest.raises(ValueError, match=r"they must be the same"):
        TrajectoryDataModule([a, b])
    data = TrajectoryDataModule([a])
    data.setup()
    with pytest.raises(
        ValueError, match=r"give 1 windows of up to 128 steps, fewer than one batch of 32: lower data.batch"
    ) as error:
        data.train_dataloader()
    assert "lower data.batch_size to 1 or less, or record more episodes" in str(error.value)
    data.batch_size = 1  # as it says
    assert len(list(data.train_dataloader())) == 1


def test_play_of_several_speeds_has_none_and_that_is_said(tmp_path, caplog):
    slow, slow_too = record(tmp_path / "slow", [made_up(0, 5)]), record(tmp_path / "too", [made_up(1, 5)])
    fast = record(tmp_path / "fast", [made_up(0, 5)], fps=60.0)
    assert TrajectoryDataModule([slow], also=[slow_too]).fps == 10.0
    assert not caplog.records
    assert TrajectoryDataModule([slow], also=[fast]).fps is None
    assert f"'{slow}' 10, '{fast}' 60" in caplog.text


def made_up_space():
    from gymnasium import spaces

    return spaces.Discrete(3)
