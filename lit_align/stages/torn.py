"""Whether a checkpoint is whole, and the one before it; without torch, which takes long to import."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from lit_align.files import mapping_of

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SHARDED = (".metadata", "meta.pt")
"""What a sharded checkpoint, a folder, gets when all its shards are there: the plan of its shards, Lightning's part."""
CHECKSUMS = "checksums.json"
"""Written into such a folder last: of each of its other files the size in bytes and the CRC-32."""
CHUNK = 8 * 2**20
READERS = 8


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if nothing is.

    A file is a zip archive that `torch.save` wrote, with a CRC-32 of each tensor, which `torch.load` does not look at.
    A folder of shards has a list of checksums. All of it is read.

    Args:
        path: the file or the folder.
    """
    if path.is_dir():
        return _damage_of_shards(path)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except FileNotFoundError:
        return "it is not there"
    except Exception as error:  # a damaged archive may fail in any way
        return f"it was cut short or is no checkpoint ({type(error).__name__}: {error})"
    return f"its part {bad} does not match its checksum" if bad else ""


def _damage_of_shards(folder: Path) -> str:
    absent = [name for name in SHARDED if not (folder / name).is_file()]
    if absent:
        return f"it has no {absent[0]}, so not all shards were written"
    if not (folder / CHECKSUMS).exists():  # of a version that wrote none
        wrong = damage(folder / SHARDED[1])
        return f"its {SHARDED[1]}: {wrong}" if wrong else ""
    told = mapping_of(folder / CHECKSUMS)
    if not set(SHARDED) <= told.keys():
        return f"its {CHECKSUMS} cannot be read"
    lengths = {name: (folder / name).stat().st_size if (folder / name).is_file() else None for name in told}
    for name, length in lengths.items():
        if length is None:
            return f"it has no {name}"
        if [length] != told[name][:1]:
            return f"its {name} has {length} bytes of {told[name][0]}"
    try:
        found = checksums(folder, told)
    except OSError as error:
        return f"it cannot be read ({error})"
    bad = [name for name in told if found[name] != told[name]]
    return f"its part {bad[0]} does not match its checksum" if bad else ""


def checksums(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size in bytes and CRC-32 of each of some files of a folder; several are read at a time."""
    names = list(names)
    with ThreadPoolExecutor(READERS) as readers:  # neither reading nor `crc32` holds the interpreter
        return dict(zip(names, readers.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: Path) -> list[int]:
    size, sum_so_far = 0, 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(CHUNK):
            size, sum_so_far = size + len(part), zlib.crc32(part, sum_so_far)
    return [size, sum_so_far]


def keep_before(last: Path) -> None:
    """Gives the checkpoint that is about to be replaced the name `previous.ckpt` too.

    Whenever this is broken off, one of the two names leads to a whole checkpoint.

    Args:
        last: the checkpoint, a file or a folder; one that is not there is no error.
    """
    before, aside = last.with_name(PREVIOUS), last.with_name(f".{PREVIOUS}.{os.getpid()}.tmp")
    if last.is_dir():
        remove(before)
        os.replace(last, before)
        return
    aside.unlink(missing_ok=True)
    try:
        os.link(last, aside)
    except FileNotFoundError:
        return
    except OSError:  # a file system without hard links
        os.replace(last, before)
        return
    if before.is_dir():  # of a run that was sharded
        remove(before)
    os.replace(aside, before)
    aside.unlink(missing_ok=True)  # renaming onto another name of the same file does nothing


def go_back(last: Path) -> None:
    """Puts `previous.ckpt` in the place of a damaged `last.ckpt`, so that the next one does not push it out."""
    before = last.with_name(PREVIOUS)
    if before.is_dir() or last.is_dir():
        remove(last)
        os.replace(before, last)
        return
    aside = last.with_name(f".{LAST}.{os.getpid()}.tmp")
    try:
        os.link(before, aside)
    except OSError:
        os.replace(before, last)
        return
    os.replace(aside, last)


def remove(path: Path) -> None:
    """Removes a checkpoint, a file or a folder; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
