"""The trajectories format: it opens elsewhere, gives back what was written, and bad folders are named."""

import errno
import json
import re
import tempfile
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.data.cache import FrameCache
from lit_align.data.trajectories import TrajectoryDataset, TrajectoryWriter, read_meta
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.models.frames import resize
from lit_align.spaces import ActionCodec, gamepad_space
from tests.helpers import made_up, record


@pytest.fixture
def folder(tmp_path):
    return record(tmp_path / "play", [made_up(9, 4), made_up(2, 7, outcome="none"), made_up(5, 1)])


def test_what_was_written_is_read_back_in_the_order_of_ids(folder):
    dataset = TrajectoryDataset(folder)
    assert [int(i) for i in dataset.episodes["id"]] == [2, 5, 9]
    assert dataset.meta.outcomes == {"left": 2, "none": 1}
    for i, want in enumerate([made_up(2, 7, outcome="none"), made_up(5, 1), made_up(9, 4)]):
        found = dataset[i]
        for name in ("frames", "actions", "positions", "rewards", "log_probs"):
            assert np.array_equal(getattr(found, name), getattr(want, name)), name
        for name in ("id", "seed", "outcome", "reason", "player", "terminated", "truncated"):
            assert getattr(found, name) == getattr(want, name), name


def test_the_folder_opens_in_datasets_with_frames_as_images(folder):
    import datasets

    FrameCache(folder)  # what lies beside the data must not confuse the reader
    table = datasets.load_dataset(folder, split="train")
    assert isinstance(table.features["frame"], datasets.Image)
    assert len(table) == 5 + 8 + 2
    row = table.filter(lambda r: r["episode"] == 2 and r["step"] == 3)[0]
    assert np.array_equal(np.asarray(row["frame"]), made_up(2, 7).frames[3])
    assert row["action"] == made_up(2, 7).actions[3].tolist()
    last = table.filter(lambda r: r["episode"] == 2 and r["step"] == 7)[0]
    assert last["action"] is None


def test_a_shard_that_was_cut_short_is_named_before_anything_else(folder):
    name = next(iter(read_meta(folder).shards))
    path = f"{folder}/{name}"
    with open(path, "rb+") as file:
        file.truncate(2000)
    with pytest.raises(ValueError, match=r"train-00000\.parquet cannot be read.*cut short"):
        TrajectoryDataset(folder)


def test_a_shard_with_fewer_rows_than_promised_is_named(folder):
    path = f"{folder}/data/train-00000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    with pytest.raises(ValueError, match="holds 5 frames, meta.json says 15"):
        TrajectoryDataset(folder)


def test_a_folder_that_another_program_wrote_over_is_named(folder):
    path = f"{folder}/data/train-00000.parquet"
    pq.write_table(pq.read_table(path), path)  # all episodes in one row group
    with pytest.raises(ValueError, match="does not hold an episode in each row group"):
        TrajectoryDataset(folder)


def test_folders_that_are_none_are_named(tmp_path, folder):
    with pytest.raises(ValueError, match="does not exist"):
        read_meta(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no meta\.json"):
        read_meta(tmp_path)
    meta = json.loads((tmp_path / "play" / "meta.json").read_text())
    (tmp_path / "play" / "meta.json").write_text(json.dumps({**meta, "schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        read_meta(folder)


def test_out_of_range_actions_and_nan_are_refused_and_nothing_is_left(tmp_path):
    bad = made_up(0, 3)
    bad.actions[1, 0] = 2
    with pytest.raises(ValueError, match=r"action 1: class 2 of head 'buttons\.0' is out of range"):
        record(tmp_path / "play", [made_up(1, 2), bad])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="rewards holds a value that is not finite"):
        Trajectory(frames=bad.frames, actions=bad.actions, id=0, rewards=np.array([0, np.nan, 0], np.float32))
    with pytest.raises(ValueError, match=r"frames is uint8 of shape \(3, .*expected uint8 of shape \(4, "):
        Trajectory(frames=bad.frames[1:], actions=bad.actions, id=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": np.zeros((4, 32, 48, 3), np.uint8)}, "32 high and 48 wide; expected square ones"),
        ({"frames": np.zeros((4, 0, 5, 3), np.uint8)}, "0 high and 5 wide"),
        ({"outcome": None}, "outcome is None, NoneType; expected text"),
        ({"outcome": 3}, "outcome is 3, int; expected text"),
        ({"id": "ep1"}, "id is 'ep1', str; expected a whole number"),
        ({"id": True}, "id is True, bool; expected a whole number"),
        ({"seed": 1.0}, "seed is 1.0, float; expected a whole number"),
        ({"seed": 2**63}, "too large; expected numbers of 64 bits"),
        ({"terminated": 1}, "terminated is 1, int; expected true or false"),
        ({"log_probs": np.array([-1, 0.5, -1], np.float32)}, r"log_probs holds 0\.5 \(step 1\).*0 or less"),
        ({"frames": np.zeros((1, 8, 8, 3), np.uint8), "actions": np.zeros((0, 16), np.uint8)}, "it has no step"),
        ({"actions": np.full((3, 16), 7, np.uint8)}, "class 7 of head 'buttons.0' is out of range"),
        ({"actions": np.zeros((3, 2), np.uint8)}, "expected a column for each of the 16 heads"),
    ],
)
def test_what_reading_would_refuse_is_not_written(tmp_path, change, said):
    whole = {"frames": np.zeros((4, 8, 8, 3), np.uint8), "actions": np.zeros((3, 16), np.uint8), "id": 7}
    episode = Trajectory(**{**whole, **change})
    with pytest.raises(UserError, match=f"^episode {re.escape(repr(episode.id))}: .*{said}"):
        record(tmp_path / "play", [episode])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused_before_anything_is_written(tmp_path, fps):
    with pytest.raises(UserError, match="fps is .*; expected the env steps in a second"):
        record(tmp_path / "play", [made_up(0, 3)], fps=fps)
    assert list(tmp_path.iterdir()) == []


mostly = st.integers(0, 40)
rows = st.lists(
    st.tuples(
        st.one_of(st.floats(-9, 9, width=32), st.integers(-5, 5), mostly.map(lambda n: n if n else "a")),
        st.lists(mostly.map(lambda n: n % 2 if n else -1), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(rows)
def test_lists_are_taken_where_arrays_of_the_same_numbers_are(rows):
    rewards, actions = (list(column) for column in zip(*rows, strict=True))
    lists: dict[str, Any] = {"frames": [[[[0] * 3]]] * (len(rows) + 1), "actions": actions, "rewards": rewards}

    def made() -> Trajectory:
        return Trajectory(id=3, **lists)

    if "a" in rewards or any(-1 in classes for classes in actions):
        with pytest.raises(UserError, match="^episode 3: (rewards|actions) is a list that makes no array"):
            made()
        return
    with tempfile.TemporaryDirectory() as folder:
        found = TrajectoryDataset(record(f"{folder}/play", [made()], space=spaces.MultiBinary(3)))[0]
    assert found.actions.tolist() == actions
    assert found.rewards.tolist() == rewards
    assert found.frames.shape == (len(rows) + 1, 1, 1, 3)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rewards", np.array([0.5, 2.0, -1.0]), ""),
        ("rewards", np.array([1, 2, 3]), ""),
        ("vectors", np.ones((4, 2), np.float16), ""),
        ("actions", np.ones((3, 16), np.int64), ""),
        ("frames", np.full((4, 8, 8, 3), 255, np.int32), ""),
        ("rewards", np.array([1e300, 0, 0]), "rewards holds a value that is not finite"),
        ("rewards", np.array(["a", "b", "c"]), r"no array of float32 \(found <U1 values\); expected numbers"),
        (
            "actions",
            np.full((3, 16), 300),
            r"no array of uint8 \(found int64 values\); expected whole numbers from 0 to",
        ),
        ("actions", np.zeros((3, 16)), r"\(found float64 values\)"),
        (
            "frames",
            np.zeros((4, 8, 8, 3), np.float32),
            r"\(found float32 values\); expected whole numbers from 0 to 255",
        ),
    ],
)
def test_arrays_of_other_types_are_taken_where_nothing_is_lost(name, value, said):
    parts = {"frames": np.zeros((4, 8, 8, 3), np.uint8), "actions": np.zeros((3, 16), np.uint8), name: value}
    if said:
        with pytest.raises(UserError, match=f"^episode 7: .*{said}"):
            Trajectory(id=7, **parts)
        return
    found = getattr(Trajectory(id=7, **parts), name)
    assert found.dtype == (np.uint8 if name in ("frames", "actions") else np.float32)
    assert found.tolist() == value.tolist()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = TrajectoryWriter(tmp_path / "play", ActionCodec(gamepad_space()), 10.0)

    def fill():
        with writer:
            writer.write(made_up(0, 3))
            monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
            writer.write(made_up(1, 3))

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_written_over(folder):
    with pytest.raises(ValueError, match="is not empty"):
        record(folder, [made_up(1, 2)])
    assert len(TrajectoryDataset(folder)) == 3


def test_the_cache_holds_the_frames_and_follows_the_folder(tmp_path, folder):
    cache = FrameCache(folder)
    dataset = TrajectoryDataset(folder)
    for i in range(3):
        part = slice(cache.starts[i], cache.starts[i] + cache.lengths[i] + 1)
        assert np.array_equal(cache.frames[part], dataset[i].frames)
        assert np.array_equal(cache.actions[part][:-1], dataset[i].actions)
    small = FrameCache(folder, image_size=16)
    # A box filter of factor two is the mean of 2 x 2 pixels.
    expected = dataset[0].frames.reshape(8, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(small.frames[:8] - expected).max() <= 1
    assert np.array_equal(resize(dataset[0].frames, 16), small.frames[:8])
