"""Trajectories on disk: a Hugging Face `datasets` Parquet folder and its `meta.json`.

A row is a frame, a row group is an episode, so that the folder opens in `datasets.load_dataset` and in the Hub's
viewer, and one episode is one read.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lit_align.data.described import (
    AGAIN,
    BOOLEAN,
    FLOATING,
    INTEGER,
    check_columns,
    images,
    inside,
    lists_of,
    read_described,
    readable,
    rows_of,
    text,
)
from lit_align.data.encoding import decode_frames, decode_vectors, encode
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError, shortly
from lit_align.hub import fetch
from lit_align.spaces import ActionCodec

SCHEMAS = (1, 2)
META = "meta.json"
MOST = 1 << 20
"""Pixels of a side, and numbers of a vector: more is a mistake."""
_SHARD_BYTES = 200_000_000
_OF_EPISODES = {"episode": INTEGER, "seed": INTEGER, "length": INTEGER, "outcome": text, "reason": text}
_OF_EPISODES |= {"player": text, "terminated": BOOLEAN, "truncated": BOOLEAN}
_OF_STEPS = {"step": INTEGER, "action": lists_of(INTEGER), "position": lists_of(FLOATING)}
_OF_STEPS |= {"reward": FLOATING, "log_prob": FLOATING}
"""Columns, and of which type each has to be."""


@dataclass
class Meta:
    """What a folder of trajectories holds.

    Attributes:
        fps: Env steps in a second of the world's time.
        actions: The action space (`ActionCodec.to_dict`).
        image_size: Height and width of the frames in pixels; 0 without pixels.
        env: Id of the world, and `env_args` it was made with.
        episodes: Number of episodes.
        steps: Number of env steps in all of them.
        outcomes: Number of episodes for each outcome.
        shards: Rows (frames) in each Parquet file, by its name.
        provenance: How the data came to be: who played, with which seeds, with which version.
        vector_size: Numbers in a vector observation; 0 without vectors.
        schema: Version of this format: 1 for pixels alone, which versions before vectors read as well, otherwise 2.
    """

    fps: float
    actions: dict[str, Any]
    image_size: int
    env: str = ""
    env_args: dict[str, Any] = field(default_factory=dict)
    episodes: int = 0
    steps: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    vector_size: int = 0
    schema: int = 1

    def to_json(self) -> str:
        """The text of `meta.json`."""
        content = asdict(self)
        if self.schema == 1:
            del content["vector_size"]  # versions that know schema 1 alone refuse keys that they do not know
        return json.dumps(content, indent=2) + "\n"


class TrajectoryWriter:
    """Writes episodes to a folder that appears when all of them are written, and not at all if anything goes wrong.

    Args:
        folder: The target; it must not exist or be empty.
        codec: The action space that `actions` are classes of.
        fps: Env steps in a second of the world's time.
        env: Id of the world.
        env_args: What the world was made with.
        provenance: Free JSON facts: who played, seeds, versions.

    Raises:
        ValueError: The folder holds something already, or an episode does not fit the action space.
    """

    def __init__(
        self,
        folder: str | Path,
        codec: ActionCodec,
        fps: float,
        env: str = "",
        env_args: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(
                f"'{folder}' is not empty; trajectories are written to a new folder: name another or remove it"
            )
        if not 0 < fps < math.inf:
            raise UserError(f"fps is {fps}; expected the env steps in a second of the world's time, such as 10")
        self.codec = codec
        self.meta = Meta(
            fps=float(fps),
            actions=codec.to_dict(),
            image_size=0,
            env=env,
            env_args=env_args or {},
            provenance=provenance or {},
        )
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._aside = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        (self._aside / "data").mkdir()
        self._shard: pq.ParquetWriter | None = None
        self._bytes = 0
        self._ids: set[int] = set()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def write(self, trajectory: Trajectory) -> None:
        """Appends an episode."""
        try:
            self.codec.check(trajectory.actions)
        except UserError as error:
            raise UserError(f"episode {shortly(trajectory.id)}: {error}") from error
        self.write_table(encode(trajectory), trajectory.frames.shape[1])

    def write_table(self, table: pa.Table, image_size: int) -> None:
        """Appends an episode that `encode` made, in another process perhaps."""
        episode, outcome = table["episode"][0].as_py(), table["outcome"][0].as_py()
        if episode in self._ids:
            raise UserError(f"episode {episode} was written already; ids must differ")
        sizes = (image_size, len(table["vector"][0]) if "vector" in table.column_names else 0)
        if not self.meta.episodes:
            self._describe(episode, *sizes)
        before = (self.meta.image_size, self.meta.vector_size)
        if sizes != before:
            raise UserError(
                f"episode {episode} has frames of {sizes[0]} pixels and vectors of {sizes[1]} numbers, the ones before "
                f"{before[0]} and {before[1]}; one folder holds one size"
            )
        if self._shard is None or self._bytes > _SHARD_BYTES:
            self._open_shard(table.schema)
        assert self._shard is not None
        self._shard.write_table(table, row_group_size=len(table))
        self._bytes += table.nbytes
        self._ids.add(episode)
        name = list(self.meta.shards)[-1]
        self.meta.shards[name] += len(table)
        self.meta.episodes += 1
        self.meta.steps += len(table) - 1
        self.meta.outcomes[outcome] = self.meta.outcomes.get(outcome, 0) + 1

    def _describe(self, episode: int, image_size: int, vector_size: int) -> None:
        """Takes the sizes of the folder from its first episode."""
        if not image_size and not vector_size:
            raise UserError(f"episode {episode} holds neither pixels nor a vector; there is nothing to learn from")
        if max(image_size, vector_size) > MOST:
            raise UserError(
                f"episode {episode} has frames of {image_size} pixels and vectors of {vector_size} numbers; expected "
                f"{MOST} or less"
            )
        self.meta.image_size, self.meta.vector_size = image_size, vector_size
        self.meta.schema = 2 if vector_size or not image_size else 1

    def _open_shard(self, schema: pa.Schema) -> None:
        if self._shard is not None:
            self._shard.close()
        name = f"data/train-{len(self.meta.shards):05d}.parquet"
        # PNG bytes do not compress further; the small columns are dictionaries.
        self._shard = pq.ParquetWriter(
            self._aside / name, schema, compression="none", use_dictionary=["outcome", "reason", "player"]
        )
        self.meta.shards[name] = 0
        self._bytes = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._shard is not None:
                self._shard.close()
            if kind is None:
                if not self.meta.episodes:
                    raise UserError(f"no episode was recorded for '{self.folder}'")
                (self._aside / META).write_text(self.meta.to_json())
                self._aside.chmod(0o755)
                if self.folder.exists():
                    self.folder.rmdir()
                self._aside.rename(self.folder)
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)


def read_meta(folder: str | Path) -> Meta:
    """The checked `meta.json` of a folder of trajectories.

    Raises:
        ValueError: The folder is missing, is not one of trajectories, or was cut short.
    """
    folder = fetch(folder, "dataset")
    path = folder / META
    if not path.is_file():
        what = "has no meta.json" if folder.is_dir() else "does not exist"
        raise UserError(
            f"'{folder}' {what}; expected a folder of trajectories (made by 'lit-align collect' or a TrajectoryWriter)"
        )
    meta = read_described(path, Meta, SCHEMAS)
    try:
        ActionCodec.from_dict(meta.actions)
    except UserError as error:
        raise UserError(f"{path} cannot be read: 'actions': {error}") from error
    if not meta.fps > 0 or max(meta.image_size, meta.vector_size) > MOST or not meta.shards:
        raise UserError(
            f"{path} has fps {meta.fps}, image_size {meta.image_size}, vector_size {meta.vector_size} and "
            f"{len(meta.shards)} shards; expected more than 0, {MOST} or less, and 1 or more"
        )
    for name, rows in meta.shards.items():
        shard = inside(folder, name)
        with readable(shard):
            found = pq.read_metadata(shard).num_rows
        if found != rows:
            raise UserError(f"shard {shard} holds {found} frames, meta.json says {rows}; {AGAIN}")
    return meta


class TrajectoryDataset:
    """Episodes of a folder, in the order of their ids.

    Args:
        folder: A folder that `TrajectoryWriter` left, or `user/name` on the Hub.

    Raises:
        ValueError: The folder is missing, is not one of trajectories, or was cut short.

    Attributes:
        meta: What the folder says of itself.
        codec: The action space.
        episodes: Columns `id, seed, length, outcome, reason, player, terminated, truncated`, an array each, a
            value an episode.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = fetch(folder, "dataset")
        self.meta = read_meta(self.folder)
        self.codec = ActionCodec.from_dict(self.meta.actions)
        tables, places = [], []
        for shard in self.meta.shards:
            first = self._episodes_of(self.folder / shard)
            tables.append(first)
            places += [(shard, group) for group in range(len(first))]
        table = pa.concat_tables(tables, promote_options="permissive")
        order = np.argsort(table["episode"].to_numpy(), kind="stable")
        names = {"episode": "id"}
        self.episodes: dict[str, NDArray[Any]] = {
            names.get(c, c): table[c].to_numpy(zero_copy_only=False)[order] for c in _OF_EPISODES
        }
        self._places = [places[i] for i in order]
        self._row = {int(e): i for i, e in enumerate(self.episodes["id"])}
        if len(self._row) < len(order):
            raise UserError(f"'{self.folder}' holds several episodes of the same id; {AGAIN}")

    def _episodes_of(self, shard: Path) -> pa.Table:
        """The episodes of a shard, a row each; its columns are checked."""
        wanted = {**_OF_EPISODES, **_OF_STEPS}
        wanted |= {"frame": images} if self.meta.image_size else {}
        wanted |= {"vector": lists_of(FLOATING)} if self.meta.vector_size else {}
        with readable(shard):
            file = pq.ParquetFile(shard)
            check_columns(file.schema_arrow, wanted, shard)
            table = file.read(columns=[*_OF_EPISODES, "step"])
            table.validate(full=True)
        first = table.filter(pc.equal(table["step"], 0)).drop_columns(["step"])
        rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        if rows != [length + 1 for length in first["length"].to_pylist() if length is not None]:
            raise UserError(
                f"shard {shard} does not hold an episode in each row group; it was written by another program: write "
                "the episodes with TrajectoryWriter"
            )
        empty = [name for name in _OF_EPISODES if first[name].null_count]
        if empty:
            raise UserError(f"shard {shard} lacks the {empty[0]} of an episode; {AGAIN}")
        return first

    @cached_property
    def _files(self) -> dict[str, pq.ParquetFile]:
        return {
            shard: pq.ParquetFile(self.folder / shard, memory_map=True, pre_buffer=False) for shard in self.meta.shards
        }

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self._places)

    def index_of(self, episode: int) -> int:
        """Position of a global episode id.

        Raises:
            ValueError: The folder does not hold it.
        """
        if episode not in self._row:
            raise UserError(f"episode {episode} is not in '{self.folder}' ({len(self)} episodes)")
        return self._row[episode]

    def digests(self) -> dict[str, str]:
        """Tells each episode from others of the same id: its id -> 16 hexadecimal digits.

        They are of its seed, length and outcome, wherever it is kept and among which others.
        """
        columns = (self.episodes[name].tolist() for name in ("id", "seed", "length", "outcome"))
        return {
            str(episode): hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
            for episode, *facts in zip(*columns, strict=True)
        }

    def digest(self, ids: NDArray[np.int64]) -> str:
        """Tells some episodes from others of the same ids by one text.

        Args:
            ids: Global episode ids; those that the folder does not hold are left out.

        Returns:
            Hexadecimal digits, of the ids and the `digests` of the episodes.
        """
        wanted = set(map(str, ids.tolist()))
        some = {episode: digits for episode, digits in self.digests().items() if episode in wanted}
        return hashlib.sha256(json.dumps(some).encode()).hexdigest()

    def read(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of an episode, some columns of them."""
        shard, group = self._places[index]
        with readable(self.folder / shard):
            return self._files[shard].read_row_group(group, columns=columns, use_threads=False)

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """What is wrong with an episode is told with its name."""
        try:
            yield
        except UserError as error:
            raise UserError(f"'{self.folder}', episode {self.episodes['id'][index]}: {error}") from error

    def images(self, index: int) -> list[bytes]:
        """The encoded frames of an episode, T + 1 of them; none where there are no pixels."""
        if not self.meta.image_size:
            return []
        column = self.read(index, ["frame"])["frame"].combine_chunks()
        found: list[bytes] = column.field("bytes").to_pylist()
        return found

    def decode(self, index: int, images: list[bytes]) -> NDArray[np.uint8]:
        """The encoded frames of an episode as pixels `(n, H, W, 3)`, uint8.

        Raises:
            ValueError: One is no image, or of another size than `meta.json` says.
        """
        with self._named(index):
            return decode_frames(images, self.meta.image_size)

    def frames(self, index: int) -> NDArray[np.uint8]:
        """Decoded frames `(T + 1, H, W, 3)`, uint8; H and W are 0 where there are no pixels."""
        if not self.meta.image_size:
            return np.zeros((int(self.episodes["length"][index]) + 1, 0, 0, 3), np.uint8)
        return self.decode(index, self.images(index))

    def vectors(self, index: int) -> NDArray[np.float32]:
        """Vector observations `(T + 1, V)`, float32, checked to be finite; V is 0 where there are none."""
        if not self.meta.vector_size:
            return np.zeros((int(self.episodes["length"][index]) + 1, 0), np.float32)
        with self._named(index):
            return decode_vectors(self.read(index, ["vector"])["vector"], self.meta.vector_size)

    def actions(self, index: int) -> NDArray[np.uint8]:
        """Classes `(T, heads)`, uint8, checked against the action space."""
        rows = self.read(index, ["action"])["action"].to_pylist()
        with self._named(index):
            actions = rows_of(rows[:-1], np.uint8, len(self.codec.heads), "action")
            self.codec.check(actions)
        return actions

    def positions(self, index: int) -> NDArray[np.float32]:
        """Where the player was `(T + 1, 3)`, float32."""
        with self._named(index):
            return rows_of(self.read(index, ["position"])["position"].to_pylist(), np.float32, 3, "position")

    def __getitem__(self, index: int) -> Trajectory:
        """The whole episode."""
        table = self.read(index, ["position", "reward", "log_prob"])
        log_probs = table["log_prob"].to_pylist()[:-1]
        facts = {
            name: column[index].item() if isinstance(column[index], np.generic) else column[index]
            for name, column in self.episodes.items()
            if name != "length"
        }
        with self._named(index):
            positions = rows_of(table["position"].to_pylist(), np.float32, 3, "position")
            rewards = rows_of(table["reward"].to_pylist()[:-1], np.float32, None, "reward")
        return Trajectory(
            frames=self.frames(index),
            actions=self.actions(index),
            vectors=self.vectors(index),
            positions=positions,
            rewards=rewards,
            log_probs=None if any(x is None for x in log_probs) else np.array(log_probs, np.float32),
            **facts,
        )
