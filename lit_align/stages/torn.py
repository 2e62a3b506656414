"""Whether a checkpoint is whole, and the one before it; without torch, which takes long to import."""

from __future__ import annotations

import os
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
SHARDED = (".metadata", "meta.pt")
"""What a sharded checkpoint, a folder, gets when all its shards are there: the plan of its shards, Lightning's part."""


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, in a few words; empty if nothing is.

    A file is a zip archive that `torch.save` wrote, with a CRC-32 of each tensor, which `torch.load` does not look at.
    All of it is read. A folder of shards is whole when what is written last is there.

    Args:
        path: the file or the folder.
    """
    if path.is_dir():
        absent = [name for name in SHARDED if not (path / name).is_file()]
        return f"it has no {absent[0]}, so not all shards were written" if absent else ""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except FileNotFoundError:
        return "it is not there"
    except Exception as error:  # a damaged archive may fail in any way
        return f"it was cut short or is no checkpoint ({type(error).__name__}: {error})"
    return f"its part {bad} does not match its checksum" if bad else ""


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
