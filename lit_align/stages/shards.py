"""Checkpoints of sharded weights: a folder with a file a process, written aside and read without running code."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.load import _METADATA_FILENAME as META
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load as load_shards

from lit_align.errors import UserError
from lit_align.stages.torn import CHECKSUMS, checksums

_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
KNOWN = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    *((_METADATA, f"{kind}StorageMetadata") for kind in ("Tensor", "Bytes", "Chunk")),
    *((_METADATA, name) for name in ("TensorProperties", "ChunkStorageMetadata")),
    (_FILES, "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("pathlib", name) for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")),
    *(("pathlib._local", name) for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")),
}
"""What the plan of a checkpoint's shards is made of, beside numbers and words."""


class _Plan(pickle.Unpickler):
    """Makes a plan of shards, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in KNOWN
        if not known and module == "torch" and "." not in name:
            known = isinstance(getattr(torch, name, None), torch.dtype)
        if not known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """torch's reader, whose plan can hold any pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_plan(Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    """torch's planner, which unpickles what is no tensor."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        path: Any = self.mappings[read_item.dest_index.fqn]
        place: Any = self.original_state_dict
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = torch.load(value, weights_only=True)


def is_shards(path: str | Path) -> bool:
    """Whether a checkpoint is a folder of shards."""
    return (Path(path) / META).is_file()


def read_plan(path: Path) -> Metadata:
    """Which tensors a folder of shards holds, and where.

    Raises:
        UserError: It cannot be read, or holds code, which is not run.
    """
    try:
        with (path / ".metadata").open("rb") as file:
            plan = _Plan(file).load()
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(plan, Metadata):
        raise UserError(f"{path} is no folder of shards; expected a checkpoint of a stage's checkpoints/ folder")
    return plan


def read_facts(path: Path) -> dict[str, Any]:
    """All of a checkpoint but weights and optimizer state: counters, random states, the loops' places.

    Raises:
        UserError: It cannot be read, or holds code, which is not run.
    """
    try:
        content = torch.load(path / META, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no checkpoint of a stage; expected one of its checkpoints/ folder")
    return content


def weight_names(path: Path) -> set[str]:
    """The names of the weights in a folder of shards."""
    start = "state_dict."
    return {name.removeprefix(start) for name in read_plan(path).state_dict_metadata if name.startswith(start)}


def read_into(state: dict[str, Any], path: Path, alone: bool = False) -> None:
    """Fills the tensors of a state from a folder of shards, however many processes wrote it.

    Args:
        state: `state_dict` or `optimizer_0` with what they hold, as `torch.distributed.checkpoint` takes it.
        path: The folder.
        alone: This process reads for itself; else every process calls this.

    Raises:
        UserError: A file is missing or damaged, or something of the state is not in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # `alone` says so
            load_shards(state, storage_reader=_Reader(path), planner=_Planner(), no_dist=alone)
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise _unreadable(path, first) from error
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise _unreadable(path, error) from error


def write_facts(content: dict[str, Any], folder: Path) -> None:
    """Writes what `read_facts` reads; it and the folder's list of files reach the disk."""
    with (folder / META).open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    reach_disk(folder)


def write_checksums(folder: Path, known: Mapping[str, list[int]]) -> None:
    """Writes of each file of a folder of shards how long it is and its CRC-32, by which `torn.damage` knows it whole.

    Args:
        folder: The folder, with all its other files.
        known: Those of files that other processes have read already, as `torn.checksums` gives them.
    """
    rest = sorted({path.name for path in folder.iterdir()} - known.keys() - {CHECKSUMS})
    with (folder / CHECKSUMS).open("w") as file:
        json.dump({**known, **checksums(folder, rest)}, file)
        file.flush()
        os.fsync(file.fileno())
    reach_disk(folder)


def reach_disk(folder: Path) -> None:
    """Has a folder's list of files survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unreadable(path: Path, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return UserError(
        f"{path} is no whole checkpoint of this network, was cut short, or holds code, which is not run ({reason}): "
        "use another one, with the architecture, model.train and optimizer of the run, as its config.yaml has them"
    )
