"""Folders of trajectories and of preferences whose `meta.json` or Parquet files are not as they were written."""

from __future__ import annotations

import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  it loads for seconds, which are no case's
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lit_align.data.preferences import PreferenceMeta, Preferences, read_preferences, write_preferences
from lit_align.data.trajectories import TrajectoryDataset, TrajectoryWriter
from lit_align.data.trajectory import Trajectory
from lit_align.spaces import ActionCodec, gamepad_space
from tools.fuzz import _mutate

KEYS = ("fps", "actions", "image_size", "env", "env_args", "episodes", "steps", "outcomes", "shards", "provenance")
KEYS += ("vector_size", "schema", "trajectories", "rule", "counts", "data/train-00000.parquet", "train", "test")

Files = dict[str, bytes]


@cache
def given() -> dict[str, Files]:
    """The files of good folders: pixels, pixels and vectors, vectors alone, preferences."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, size, vector in (("pixels", 8, 0), ("both", 8, 2), ("vectors", 0, 3)):
            with TrajectoryWriter(root / name, ActionCodec(gamepad_space()), 10.0, "World-v0") as writer:
                for episode in range(3):
                    writer.write(made_up(episode, 2 + episode, size, vector))
        pairs = Preferences(np.array([0, 1]), np.array([2, 2]), annotator="rule")
        write_preferences(root / "pairs", {"train": pairs, "test": pairs}, PreferenceMeta(str(root / "pixels")), "now")
        return {
            folder.name: {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
            for folder in root.iterdir()
        }


def made_up(episode: int, steps: int, size: int, vector: int) -> Trajectory:
    """An episode of noise."""
    rng = np.random.default_rng(episode)
    sizes = ActionCodec(gamepad_space()).sizes
    return Trajectory(
        frames=rng.integers(0, 256, (steps + 1, size, size, 3), dtype=np.uint8),
        actions=np.stack([rng.integers(0, n, steps) for n in sizes], axis=1).astype(np.uint8),
        id=episode,
        outcome="left",
        vectors=rng.normal(size=(steps + 1, vector)).astype(np.float32),
        log_probs=np.zeros(steps, np.float32) if episode else None,
    )


def one(rng: random.Random) -> None:
    """A folder with something wrong in it: what is taken can be read to its end."""
    kind = rng.choice(sorted(given()))
    files = dict(given()[kind])
    how = rng.randrange(6)
    shard = rng.choice([name for name in files if name.endswith(".parquet")])
    if how < 2:
        files["meta.json"] = json.dumps(_mutate.tree(rng, json.loads(files["meta.json"]), KEYS)).encode()
    elif how == 2:
        files["meta.json"] = _mutate.encoded(rng, _mutate.text(rng, files["meta.json"].decode()))
    elif how == 3:
        files[shard] = _mutate.data(rng, files[shard])
    else:
        files[shard] = changed_table(rng, files[shard])
    if rng.random() < 0.03:
        del files[rng.choice(sorted(files))]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        for name, content in files.items():
            path = Path(scratch) / "d" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if kind == "pairs":
            read_pairs(Path(scratch) / "d")
        else:
            read_all(Path(scratch) / "d")


def read_all(folder: Path) -> None:
    """Reads trajectories as training, scoring and the report do."""
    dataset = TrajectoryDataset(folder)
    for i in range(len(dataset)):
        trajectory = dataset[i]
        assert dataset.index_of(trajectory.id) == i, trajectory.id
        assert len(trajectory.actions) == len(dataset.actions(i)) == dataset.episodes["length"][i]
        assert dataset.frames(i).shape == trajectory.frames.shape
        assert dataset.vectors(i).shape[1] == dataset.meta.vector_size
        assert len(dataset.positions(i)) == len(trajectory) + 1


def read_pairs(folder: Path) -> None:
    """Reads preferences."""
    meta, splits = read_preferences(folder)
    for split, pairs in splits.items():
        assert len(pairs) == meta.counts[split] == len(pairs.rejected) == len(pairs.tie) == len(pairs.margin)
        assert pairs.chosen.dtype == pairs.rejected.dtype == np.int64, pairs.chosen.dtype
        assert pairs.tie.dtype == bool, pairs.tie.dtype
        assert len(pairs.head(1)) == min(1, len(pairs))


def changed_table(rng: random.Random, shard: bytes) -> bytes:
    """A Parquet file that is whole, with other columns, values, rows or row groups."""
    file = pq.ParquetFile(pa.BufferReader(shard))
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    name = rng.choice(groups[0].column_names)
    at, how = rng.randrange(len(groups)), rng.randrange(8)
    if how == 0:
        groups = [group.drop_columns([name]) for group in groups]
    elif how == 1:
        groups = [group.rename_columns([rng.choice((n, "x", "step")) for n in group.column_names]) for group in groups]
    elif how == 2:
        groups = [_replaced(group, name, _column(rng, len(group))) for group in groups]
    elif how in (3, 4):
        groups[at] = _with_value(rng, groups[at], name)
    elif how == 5:
        groups[at] = groups[at].slice(rng.randrange(2), rng.randrange(4))
    elif how == 6:
        groups = [*groups[at:], *groups[:at], groups[at]]
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(out, groups[0].schema) as writer:
        for group in groups if how != 7 else [pa.concat_tables(groups)]:
            if group.schema.equals(groups[0].schema):
                writer.write_table(group, row_group_size=rng.choice((1, max(1, len(group)))) if how == 7 else None)
    return out.getvalue().to_pybytes()


def _replaced(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _column(rng: random.Random, rows: int) -> pa.Array:
    kind: Any = rng.choice((pa.int64(), pa.float64(), pa.string(), pa.binary(), pa.bool_(), pa.list_(pa.float64())))
    value = {pa.int64(): rng.choice((0, -1, 2**62)), pa.float64(): rng.choice((0.5, float("nan"))), pa.string(): "1"}
    value |= {pa.binary(): b"x", pa.bool_(): True, pa.list_(pa.float64()): [0.5, None]}
    return pa.array([rng.choice((value[kind], value[kind], None)) for _ in range(rows)], kind)


def _with_value(rng: random.Random, table: pa.Table, name: str) -> pa.Table:
    """A table with one value changed to another of its type."""
    values, kind = table[name].to_pylist(), table.schema.field(name).type
    choices: list[Any] = [None]
    if pa.types.is_integer(kind):
        choices += [-1, 0, 1, 100, 2**31 - 1]
    elif pa.types.is_floating(kind):
        choices += [float("nan"), float("inf"), 1e30]
    elif pa.types.is_string(kind):
        choices += ["", "\x00", "tie", "x" * 1000]
    elif pa.types.is_list(kind):
        choices += [[], [1], [None], [200] * 40]
    elif pa.types.is_struct(kind):
        picture = next(v["bytes"] for v in values if v)
        choices += [{"bytes": b, "path": None} for b in (None, b"", _mutate.data(rng, picture), picture[:30])]
        choices += [{"bytes": None, "path": "/etc/hostname"}]
    values[rng.randrange(len(values))] = rng.choice(choices)
    return _replaced(table, name, pa.array(values, kind))
