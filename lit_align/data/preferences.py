"""Preferences on disk: pairs of episodes, which of them is better, and by whose judgement."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lit_align.data.described import AGAIN, FLOATING, INTEGER, check_columns, read_described, readable, text
from lit_align.errors import UserError
from lit_align.files import beside, put_folder
from lit_align.hub import fetch, is_id, pin, split_id

SCHEMA = 1
SPLITS = ("train", "test")
COLUMNS = {"chosen": INTEGER, "rejected": INTEGER, "dataset": text, "label": text, "margin": FLOATING}
COLUMNS |= {"annotator": text, "created_at": text}
"""Columns, and of which type each has to be."""


@dataclass
class Preferences:
    """Comparisons of one split.

    Attributes:
        chosen: Global episode ids of the better ones `(pairs,)`.
        rejected: Of the worse ones `(pairs,)`.
        tie: Neither is better `(pairs,)`, bool; `chosen` and `rejected` are then in no order.
        margin: How much better by the rule itself, in its ranks or its score; 0 for a tie, and less than 0 where the
            annotator said the opposite `(pairs,)`.
        annotator: Who judged.
    """

    chosen: NDArray[np.int64]
    rejected: NDArray[np.int64]
    tie: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    margin: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    annotator: str = ""

    def __post_init__(self) -> None:
        if not self.tie.size:
            self.tie = np.zeros(len(self.chosen), bool)
        if not self.margin.size:
            self.margin = np.ones(len(self.chosen), np.float32)

    def __len__(self) -> int:
        """Number of comparisons."""
        return len(self.chosen)

    def head(self, count: int) -> Preferences:
        """The first `count` comparisons."""
        return Preferences(
            self.chosen[:count], self.rejected[:count], self.tie[:count], self.margin[:count], self.annotator
        )


@dataclass
class PreferenceMeta:
    """`meta.json` of a folder of preferences.

    Attributes:
        trajectories: Folder of the trajectories, relative to this one, or `user/name@commit` on the Hub.
        rule: What decided, such as the ranking of outcomes.
        counts: Comparisons in each split.
        provenance: Free JSON facts; of synthetic ones `annotator`, and for each split `best_accuracy`, the share of
            untied labels that the rule itself would get right, and `flips`, the untied labels that oppose it. Where
            there is `episodes`, `TrajectoryDataset.digest` of those compared, others of the same ids are refused.
        schema: Version of this format.
    """

    trajectories: str
    rule: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def ids_of(*splits: Preferences) -> NDArray[np.int64]:
    """The episodes that are compared, each once, in ascending order."""
    return np.unique(np.concatenate([np.unique(side) for p in splits for side in (p.chosen, p.rejected)]))


def write_preferences(
    folder: str | Path, splits: dict[str, Preferences], meta: PreferenceMeta, created_at: str
) -> None:
    """Writes a folder that `datasets.load_dataset` opens, whole or not at all.

    Args:
        folder: Folder to write.
        splits: The comparisons.
        meta: What they are; its `trajectories`, a folder or `user/name` on the Hub, becomes relative to `folder`, or
            names the commit.
        created_at: When they were made, UTC.

    Raises:
        ValueError: The folder holds something already, or the trajectories are not on the Hub that are said to be.
    """
    target = Path(folder)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"'{folder}' is not empty; preferences are written to a new folder: name another or remove it")
    with beside(target) as scratch:
        aside = scratch / target.name
        (aside / "data").mkdir(parents=True)
        on_hub = is_id(meta.trajectories)
        name = Path(split_id(meta.trajectories)[0] if on_hub else meta.trajectories).name
        meta.trajectories = pin(meta.trajectories, "dataset") if on_hub else os.path.relpath(meta.trajectories, target)
        for split, pairs in splits.items():
            count = len(pairs)
            table = pa.table(
                {
                    "chosen": pairs.chosen,
                    "rejected": pairs.rejected,
                    "dataset": pa.repeat(name, count),
                    "label": pa.array(["chosen", "tie"]).take(pa.array(pairs.tie.astype(np.int8))),
                    "margin": pairs.margin.astype(np.float32),
                    "annotator": pa.repeat(pairs.annotator, count),
                    "created_at": pa.repeat(created_at, count),
                }
            )
            pq.write_table(table, aside / "data" / f"{split}-00000.parquet")
            meta.counts[split] = count
        (aside / "meta.json").write_text(json.dumps(asdict(meta), indent=2) + "\n")
        put_folder(aside, target)


def compared(folder: str | Path, meta: PreferenceMeta) -> str:
    """The trajectories that preferences compare: a folder, or `user/name` on the Hub."""
    beside = fetch(folder, "dataset") / meta.trajectories
    return meta.trajectories if is_id(meta.trajectories) and not beside.exists() else os.path.normpath(beside)


def read_preferences(folder: str | Path) -> tuple[PreferenceMeta, dict[str, Preferences]]:
    """Reads a folder of preferences.

    Raises:
        ValueError: The folder is missing, cut short, or not one of preferences.
    """
    folder = fetch(folder, "dataset")
    path = folder / "meta.json"
    if not path.is_file():
        raise UserError(f"'{folder}' has no meta.json; expected a folder of preferences (made by 'lit-align compare')")
    try:
        meta = read_described(path, PreferenceMeta, (SCHEMA,))
    except UserError as error:
        raise UserError(f"{error}; expected a folder of preferences (made by 'lit-align compare')") from error
    splits = {}
    for split, count in meta.counts.items():
        if not re.fullmatch(r"\w+", split):
            raise UserError(f"{path} names the split {split!r:.80}; expected a word such as train")
        shard = folder / "data" / f"{split}-00000.parquet"
        with readable(shard):
            check_columns(pq.read_schema(shard), COLUMNS, shard)
            # Millions of labels as small numbers, not as so many texts.
            table = pq.read_table(shard, read_dictionary=["label", "annotator"])
            table.validate(full=True)
        if len(table) != count:
            raise UserError(f"{shard} holds {len(table)} comparisons, meta.json says {count}; {AGAIN}")
        empty = [name for name in ("chosen", "rejected", "label", "margin") if table[name].null_count]
        if empty:
            raise UserError(f"{shard} lacks the {empty[0]} of a comparison; {AGAIN}")
        who = table["annotator"][0].as_py() if count else ""
        chosen, rejected = (table[c].to_numpy().astype(np.int64) for c in ("chosen", "rejected"))
        tie = pc.equal(table["label"], "tie").to_numpy()
        splits[split] = Preferences(chosen, rejected, tie, table["margin"].to_numpy().astype(np.float32), who or "")
    return meta, splits
