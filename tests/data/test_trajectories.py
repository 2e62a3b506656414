"""The trajectories format: it opens elsewhere, gives back what was written, and bad folders are named."""

import errno
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from lit_align.data.cache import FrameCache
from lit_align.data.trajectories import TrajectoryDataset, TrajectoryWriter, read_meta
from lit_align.data.trajectory import Trajectory
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
