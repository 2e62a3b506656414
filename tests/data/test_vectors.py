"""Vector observations on disk, in the cache and in batches, alone and beside pixels; folders from before them."""

import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lit_align.data.cache import FrameCache
from lit_align.data.modules import PreferenceDataModule, TrajectoryDataModule
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.trajectories import TrajectoryDataset, read_meta
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.spaces import ActionCodec, gamepad_space
from tests.helpers import made_up, record

KINDS = [(0, 3), (8, 3), (8, 0)]  # frame size and vector size
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([0, 1, 8]), st.integers(0, 4), st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_vectors_come_back_as_they_were(data, size, numbers, lengths):
    if not size and not numbers:
        numbers = 1
    episodes = [
        replace(
            made_up(i, steps, size=size),
            vectors=data.draw(arrays.arrays(np.float32, (steps + 1, numbers), elements=finite)),
        )
        for i, steps in enumerate(lengths)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = record(Path(scratch) / "play", episodes)
        dataset, cache = TrajectoryDataset(folder), FrameCache(folder)
        assert (dataset.meta.image_size, dataset.meta.vector_size) == (size, numbers)
        assert (cache.frames.shape[1:], cache.vectors.shape[1:]) == ((size, size, 3), (numbers,))
        for i, want in enumerate(episodes):
            found = dataset[i]
            part = slice(cache.starts[i], cache.starts[i] + cache.lengths[i] + 1)
            for name in ("frames", "vectors", "actions", "positions", "rewards"):
                assert np.array_equal(getattr(found, name), getattr(want, name)), name
                assert getattr(found, name).dtype == getattr(want, name).dtype
            assert np.array_equal(cache.frames[part], want.frames)
            assert np.array_equal(cache.vectors[part], want.vectors)
            assert np.array_equal(cache.actions[part][:-1], want.actions)


def test_what_the_world_does_not_show_has_no_column(tmp_path):
    columns = {}
    for size, numbers in KINDS:
        folder = record(tmp_path / f"{size}-{numbers}", [made_up(0, 3, size=size, vector=numbers)])
        columns[size, numbers] = set(pq.read_schema(Path(folder) / "data/train-00000.parquet").names)
        import datasets

        row = datasets.load_dataset(folder, split="train")[1]
        assert ("frame" in row, "vector" in row) == (size > 0, numbers > 0)
        if numbers:
            assert row["vector"] == made_up(0, 3, size=size, vector=numbers).vectors[1].tolist()
    assert columns[0, 3] ^ columns[8, 3] == {"frame"}
    assert columns[8, 3] ^ columns[8, 0] == {"vector"}


def by_hand(folder, **more):
    """A folder as versions before vectors left it, written without any of our code."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images = []
    for frame in pixels:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    table = pa.table(
        {
            "episode": pa.array([4, 4, 4], pa.int64()),
            "step": pa.array([0, 1, 2], pa.int32()),
            "frame": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "action": pa.array([[0] * 16, [1] * 16, None], pa.list_(pa.uint8())),
            "position": pa.array([[0.0, 1.0, 2.0]] * 3, pa.list_(pa.float32())),
            "reward": pa.array([0.5, 1.5, None], pa.float32()),
            "log_prob": pa.array([None] * 3, pa.float32()),
            "length": pa.array([2] * 3, pa.int32()),
            "seed": pa.array([9] * 3, pa.int64()),
            **{name: pa.array([name] * 3) for name in ("outcome", "reason", "player")},
            "terminated": pa.array([True] * 3),
            "truncated": pa.array([False] * 3),
        }
    )
    (folder / "data").mkdir(parents=True)
    pq.write_table(table, folder / "data" / "train-00000.parquet")
    meta = {"fps": 10.0, "actions": ActionCodec(gamepad_space()).to_dict(), "image_size": 8, "env": "", "env_args": {}}
    meta |= {"episodes": 1, "steps": 2, "outcomes": {"outcome": 1}, "shards": {"data/train-00000.parquet": 3}}
    (folder / "meta.json").write_text(json.dumps({**meta, "provenance": {}, "schema": 1, **more}))
    return meta.keys() | {"provenance", "schema"}, pixels


def test_folders_from_before_vectors_are_read_and_pixels_alone_are_still_written_so(tmp_path):
    keys, pixels = by_hand(tmp_path / "old")
    dataset = TrajectoryDataset(tmp_path / "old")
    assert dataset.meta.vector_size == 0
    assert dataset[0].vectors.shape == (3, 0)
    assert np.array_equal(dataset[0].frames, pixels)
    data = TrajectoryDataModule([str(tmp_path / "old")], batch_size=1)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["vectors"].shape == (1, 2, 0)
    assert np.array_equal(batch["frames"][0], pixels[:2])

    record(tmp_path / "new", [made_up(0, 3)])
    written = json.loads((tmp_path / "new" / "meta.json").read_text())
    assert written.keys() == keys  # a version that knows no vectors finds nothing that it does not know
    assert written["schema"] == 1


@pytest.mark.parametrize(("size", "numbers"), KINDS[:2])
def test_what_older_versions_cannot_read_has_another_schema(tmp_path, size, numbers):
    record(tmp_path / "new", [made_up(0, 3, size=size, vector=numbers)])
    written = json.loads((tmp_path / "new" / "meta.json").read_text())
    assert (written["schema"], written["vector_size"], written["image_size"]) == (2, numbers, size)


def test_a_later_version_is_told_by_its_schema_before_its_keys(tmp_path):
    by_hand(tmp_path / "later", schema=3, tensors=5)
    with pytest.raises(UserError, match="has schema 3; this version reads schemas 1 and 2"):
        read_meta(tmp_path / "later")


@pytest.fixture(params=KINDS, ids=["vector", "both", "pixels"])
def play(request, tmp_path):
    size, numbers = request.param
    episodes = [made_up(10 * i, 3 + i % 4, size=size, vector=numbers) for i in range(8)]
    return record(tmp_path / "play", episodes), {e.id: e for e in episodes}, size, numbers


def told_apart(batch, known, row):
    """The episode that a row of a batch begins with, and where in it: no two observations are alike."""
    for episode in known.values():
        for step in range(len(episode) + 1):
            same = np.array_equal(batch["frames"][row, 0], episode.frames[step])
            if same and np.array_equal(batch["vectors"][row, 0], episode.vectors[step]):
                return episode, step
    raise AssertionError("the row is of no episode")


def check(batch, known, size, numbers):
    assert batch["vectors"].dtype == torch.float32
    assert batch["frames"].shape[2:] == (size, size, 3)
    assert batch["vectors"].shape == (*batch["frames"].shape[:2], numbers)
    for row, length in enumerate(batch["lengths"].tolist()):
        episode, at = told_apart(batch, known, row)
        assert np.array_equal(batch["frames"][row, :length], episode.frames[at : at + length])
        assert np.array_equal(batch["vectors"][row, :length], episode.vectors[at : at + length])
        assert not batch["vectors"][row, length:].any()


def test_batches_for_imitation_hold_vectors_beside_frames(play):
    folder, known, size, numbers = play
    data = TrajectoryDataModule([folder], window=4, batch_size=2, val_fraction=0.3)
    assert (data.image_size, data.vector_size) == (size, numbers)
    data.setup()
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert batches
    for batch in batches:
        check(batch, known, size, numbers)


def test_batches_for_rewards_hold_vectors_beside_frames(play, tmp_path):
    folder, known, size, numbers = play
    splits = {"train": Preferences(np.array([0, 20, 40]), np.array([10, 30, 0]))}
    splits["test"] = Preferences(np.array([50]), np.array([60]))
    write_preferences(tmp_path / "pairs", splits, PreferenceMeta(folder), "today")
    data = PreferenceDataModule(str(tmp_path / "pairs"), pairs=2)
    assert (data.image_size, data.vector_size) == (size, numbers)
    data.setup()
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        check(batch, known, size, numbers)
    frames, lengths = data.frames_of([30, 0])
    vectors = data.vectors_of([30, 0])
    assert lengths.tolist() == [len(known[30]) + 1, len(known[0]) + 1]
    for row, i in enumerate((30, 0)):
        assert np.array_equal(frames[row, : lengths[row]], known[i].frames)
        assert np.array_equal(vectors[row, : lengths[row]], known[i].vectors)


def test_pixels_can_be_left_out_and_resized_beside_vectors(tmp_path):
    folder = record(tmp_path / "play", [made_up(i, 4, vector=2) for i in range(4)])
    for wanted in (0, 16, None):
        data = TrajectoryDataModule([folder], window=4, batch_size=2, image_size=wanted)
        data.setup()
        batch = next(iter(data.train_dataloader()))
        size = 32 if wanted is None else wanted
        assert batch["frames"].shape == (2, 4, size, size, 3)
        assert batch["vectors"].shape == (2, 4, 2)
        assert data.image_size == size
    assert not list((tmp_path / "play" / ".cache").glob("frames-0-*.u8"))
    only_pixels = record(tmp_path / "pixels", [made_up(0, 4)])
    with pytest.raises(UserError, match=r"image_size is 0; .* holds frames of 32 pixels and vectors of 0 numbers"):
        TrajectoryDataModule([only_pixels], image_size=0)
    only_vectors = record(tmp_path / "vectors", [made_up(0, 4, size=0, vector=2)])
    with pytest.raises(UserError, match=r"image_size is 64; .* holds frames of 0 pixels"):
        TrajectoryDataModule([only_vectors], image_size=64)
    with pytest.raises(UserError, match=r"hold vectors of \[0, 2\] numbers; they must be the same"):
        TrajectoryDataModule([folder, only_pixels])


def test_a_cache_that_lacks_a_part_is_built_again(tmp_path):
    folder = record(tmp_path / "play", [made_up(0, 4, vector=2)])
    want = made_up(0, 4, vector=2)
    for name in (".vectors", ".actions", ".u8"):
        FrameCache(folder).path.with_suffix(name).unlink()
        cache = FrameCache(folder)
        assert np.array_equal(cache.vectors, want.vectors)
        assert np.array_equal(cache.frames, want.frames)
    assert len(list(cache.path.parent.iterdir())) == 3, "nothing half-written is left"


def test_sizes_that_change_and_vectors_that_are_wrong_are_named(tmp_path):
    one, other = made_up(0, 3, vector=2), made_up(1, 3, vector=5)
    with pytest.raises(UserError, match="episode 1 has .* vectors of 5 numbers, the ones before 32 and 2"):
        record(tmp_path / "play", [one, other])
    with pytest.raises(UserError, match="episode 1 has frames of 0 pixels .* the ones before 32 and 2"):
        record(tmp_path / "play", [one, made_up(1, 3, size=0, vector=2)])
    with pytest.raises(UserError, match="episode 0 holds neither pixels nor a vector"):
        record(tmp_path / "play", [made_up(0, 3, size=0)])
    assert list(tmp_path.iterdir()) == []
    bad = one.vectors.copy()
    bad[2, 1] = np.inf
    with pytest.raises(UserError, match=r"vectors holds a value that is not finite \(step 2\)"):
        replace(one, vectors=bad)
    with pytest.raises(UserError, match=r"vectors is float32 of shape \(3, 2\), expected float32 of shape \(4, \*\)"):
        Trajectory(frames=one.frames, actions=one.actions, id=0, vectors=one.vectors[1:])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: [*v[:2], [1.0], v[3]], "the vector of row 2 has 1 numbers; meta.json says 2"),
        (lambda v: [*v[:2], None, v[3]], "the vector of row 2 has 0 numbers"),
        (lambda v: [*v[:2], [1.0, None], v[3]], "number 1 of the vector of row 2 is nan"),
        (lambda v: [*v[:3], [float("-inf"), 1.0]], "number 0 of the vector of row 3 is -inf"),
    ],
)
def test_recorded_vectors_that_are_wrong_are_named_before_training(tmp_path, change, word):
    folder = Path(record(tmp_path / "play", [made_up(7, 3, size=0, vector=2)]))
    shard = folder / "data" / "train-00000.parquet"
    table = pq.read_table(shard)
    column = pa.array(change(table["vector"].to_pylist()), table.schema.field("vector").type)
    pq.write_table(table.set_column(table.column_names.index("vector"), "vector", column), shard)
    with pytest.raises(UserError, match=f"play', episode 7: {word}"):
        FrameCache(folder)
